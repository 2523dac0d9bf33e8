"""One WebSocket a stream: frames in, predictions and events out."""

import asyncio
import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kinescan.data.video import Limits
from kinescan.data.video.still_picture import decode_picture
from kinescan.errors import ConfigError, KinescanError
from kinescan.events.detector import EventDetector
from kinescan.events.told import Told
from kinescan.inference.event_rules import model_rules
from kinescan.inference.stream import StreamPrediction, StreamSession
from kinescan.inference.turns import Turn, turns_of
from kinescan.models.classifier import VideoClassifier
from kinescan.runtime.escaping import to_json
from kinescan.web.batcher import StreamBatcher
from kinescan.web.problems import RequestProblem, problem_body, problem_of
from kinescan.web.settings import LOWEST_FPS, ServeLimits

_MOST_WAITING = 4
"""Frames of one stream; while they wait, no more are read from its client."""
FORMATS = ("jpeg", "rgb24")


@dataclass(frozen=True, kw_only=True)
class StreamStart:
    """The first message of a stream: how frames come, and what is wanted.

    Attributes:
        format: "jpeg" for JPEG, PNG and the like, "rgb24" for rows of RGB bytes.
        width: of raw frames.
        height: of raw frames.
        fps: frames a second; None: each has the time at which it came.
        top: classes in a prediction.
        events: whether starts and ends of events are told, too.
    """

    format: str = "jpeg"
    width: int = 0
    height: int = 0
    fps: float | None = None
    top: int = 1
    events: bool = True


def parse_start(message: Any, limits: ServeLimits) -> StreamStart:
    """The settings of a first message.

    Raises:
        RequestProblem: one is unknown or makes no sense.
    """
    if not isinstance(message, dict) or message.get("type") != "start":
        raise RequestProblem(400, 'the first message is {"type": "start", "format": "jpeg", ...}.', "bad_start")
    values = {name: value for name, value in message.items() if name != "type"}
    kinds = {"format": str, "width": int, "height": int, "fps": (int, float, type(None)), "top": int, "events": bool}
    for name, value in values.items():
        if name not in kinds:
            raise RequestProblem(400, f"unknown setting {name[:40]!r}. There are: {', '.join(kinds)}.", "bad_start")
        if not isinstance(value, kinds[name]) or (isinstance(value, bool) and name != "events"):  # type: ignore[arg-type]
            raise RequestProblem(400, f"{name} has the wrong type.", "bad_start")
    start = StreamStart(**values)
    if start.format not in FORMATS:
        raise RequestProblem(400, f"format is one of {', '.join(FORMATS)}.", "bad_start")
    if start.fps is not None and not LOWEST_FPS <= start.fps <= 1000:
        raise RequestProblem(400, f"fps must lie in [{LOWEST_FPS}, 1000].", "bad_start")
    if not 1 <= start.top <= 1000:
        raise RequestProblem(400, "top must lie in [1, 1000].", "bad_start")
    if start.format == "rgb24":
        if min(start.width, start.height) < 1 or start.width * start.height > limits.max_pixels:
            raise RequestProblem(400, f"width x height must lie in [1, {limits.max_pixels}].", "bad_start")
        if start.width * start.height * 3 > limits.frame_bytes:
            raise RequestProblem(413, f"frames may have {limits.frame_bytes} bytes. Send JPEG.", "too_large")
    return start


class FrameStream:
    """The work of one stream, on a thread of its own: decode, take in turn, predict, detect.

    Args:
        model: causal.
        batcher: of that model.
        start: see `StreamStart`.
        limits: on time and pixels.
        tell: called with each message for the client; blocks while the client does not read.
    """

    def __init__(
        self,
        model: VideoClassifier,
        batcher: StreamBatcher,
        start: StreamStart,
        limits: ServeLimits,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        self._session = StreamSession(model, top=start.top)
        self._batcher, self._start, self._limits, self._tell = batcher, start, limits, tell
        self._frames: queue.Queue[tuple[bytes, float] | None] = queue.Queue(_MOST_WAITING)
        self._detector = EventDetector(model.class_names, model_rules(model)) if start.events else None
        self._begun: float | None = None
        self._num_told = 0
        self.num_received = 0
        self.num_predicted = 0
        self._is_closed = False
        self.on_end: Callable[[], object] = lambda: None
        self.thread = threading.Thread(target=self._run, name="a stream", daemon=True)

    def put(self, content: bytes) -> bool:
        """Takes a frame if there is room."""
        seconds = time.monotonic() if self._start.fps is None else self.num_received / self._start.fps
        try:
            self._frames.put_nowait((content, seconds))
        except queue.Full:
            return False
        self.num_received += 1
        return True

    def end(self) -> bool:
        """No frame follows; False while there is no room to say so."""
        try:
            self._frames.put_nowait(None)
        except queue.Full:
            return False
        return True

    def close(self) -> None:
        """Ends the thread soon, whatever still waits."""
        self._is_closed = True
        while not self.end():
            try:
                self._frames.get_nowait()
            except queue.Empty:
                continue

    def _run(self) -> None:
        try:
            self._answer_all()
        finally:
            self.on_end()

    def _answer_all(self) -> None:
        try:
            for turn in turns_of(self._session.model, self._decoded(), None, "a stream"):
                if self._is_closed:
                    return
                self._answer(turn, self._batcher.push(self._session, turn, self._limits.answer_seconds))
            if not self._is_closed:
                self._finish()
        except KinescanError as error:
            problem = problem_of(error)
            self._fail(problem.status, problem.message, problem.code)
        except TimeoutError:
            self._fail(503, "the model did not answer in time.", "too_slow")
        except ConnectionError:
            return

    def _fail(self, status: int, message: str, code: str) -> None:
        if not self._is_closed:
            self._tell({"type": "error", **problem_body(status, message, code)})

    def _decoded(self) -> Iterator[tuple[Tensor, float]]:
        limits = Limits(max_pixels=self._limits.max_pixels)
        first: float | None = None
        while (entry := self._frames.get()) is not None and not self._is_closed:
            content, seconds = entry
            first = seconds if first is None else first
            if self._start.format == "jpeg":
                pixels = decode_picture(content, limits=limits, name=f"frame {self.num_received - 1}")
            else:
                pixels = self._raw(content)
            yield pixels, seconds - first

    def _raw(self, content: bytes) -> Tensor:
        height, width = self._start.height, self._start.width
        if len(content) != height * width * 3:
            raise ConfigError(f"a frame of {width} x {height} has {height * width * 3} bytes, got {len(content)}.")
        return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(height, width, 3).permute(2, 0, 1)

    def _answer(self, turn: Turn, found: StreamPrediction) -> None:
        self.num_predicted += 1
        self._tell(
            {
                "type": "prediction",
                "frame_index": turn.frame_index,
                "seconds": None if turn.seconds is None else round(turn.seconds, 6),
                "labels": list(found.labels),
                "scores": [round(score, 6) for score in found.scores],
            }
        )
        if self._detector is not None and turn.seconds is not None and math.isfinite(turn.seconds):
            scores = self._session.model.probabilities(found.logits).double().numpy()
            self._tell_events(self._detector.push(turn.seconds, scores))

    def _finish(self) -> None:
        if self._detector is not None:
            self._tell_events(self._detector.finish(None))
        self._tell({"type": "end", "num_frames": self.num_received, "num_predictions": self.num_predicted})

    def _tell_events(self, updates: Any) -> None:
        for update in updates:
            self._num_told += 1
            told = Told(update=update, source="stream", sequence=self._num_told)
            self._tell({"type": "event", **told.to_plain()})


async def serve_stream(socket: Any, make: Callable[[StreamStart, Any], FrameStream], limits: ServeLimits) -> None:
    """Talks to the client of one stream until either of them ends it.

    Args:
        socket: of Starlette, accepted.
        make: makes the stream for its settings; the second argument tells the client something.
        limits: on sizes and silence.

    Raises:
        RequestProblem: what came is not allowed; said to the client by the caller.
    """
    start = parse_start(_parsed(await _received(socket, limits)), limits)
    loop, is_gone = asyncio.get_running_loop(), threading.Event()

    def tell(message: dict[str, Any]) -> None:
        if is_gone.is_set():
            raise ConnectionError
        text = to_json(message)
        sent = asyncio.run_coroutine_threadsafe(asyncio.wait_for(socket.send_text(text), limits.stall_seconds), loop)
        try:
            sent.result(limits.stall_seconds + 5)
        except Exception as error:
            # a client that does not read what it asked for is left
            is_gone.set()
            raise ConnectionError from error

    stream, has_ended = make(start, tell), asyncio.Event()
    stream.on_end = partial(loop.call_soon_threadsafe, has_ended.set)
    stream.thread.start()
    try:
        while not (has_ended.is_set() or is_gone.is_set()):
            message = await _received_before(has_ended, socket, limits)
            if message is None:
                break
            if isinstance(message, str):
                if _parsed(message) != {"type": "end"}:
                    raise RequestProblem(400, 'behind the start only frames and {"type": "end"} come.', "bad_message")
                break
            if len(message) > limits.frame_bytes:
                raise RequestProblem(413, f"frames may have {limits.frame_bytes} bytes.", "too_large")
            await _until(partial(stream.put, message), stream, is_gone)
        await _until(stream.end, stream, is_gone)
        await has_ended.wait()
    finally:
        is_gone.set()
        stream.close()


async def _until(done: Callable[[], bool], stream: FrameStream, is_gone: threading.Event) -> None:
    while stream.thread.is_alive() and not is_gone.is_set() and not done():
        await asyncio.sleep(0.005)


async def _received_before(end: asyncio.Event, socket: Any, limits: ServeLimits) -> str | bytes | None:
    """The next message; None where the stream's own work ends before one comes."""
    tasks = [asyncio.ensure_future(_received(socket, limits)), asyncio.ensure_future(end.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None  # type: ignore[return-value]
    finally:
        for task in tasks:
            task.cancel()


async def _received(socket: Any, limits: ServeLimits) -> str | bytes:
    try:
        message = await asyncio.wait_for(socket.receive(), limits.stall_seconds)
    except TimeoutError:
        raise RequestProblem(408, f"nothing came for {limits.stall_seconds:g} s.", "too_slow") from None
    if message["type"] == "websocket.disconnect":
        raise ConnectionError
    text, content = message.get("text"), message.get("bytes")
    return content if text is None else text


def _parsed(message: str | bytes) -> Any:
    if not isinstance(message, str) or len(message) > 2**16:
        raise RequestProblem(400, "a text message in JSON was expected.", "bad_message")
    try:
        return json.loads(message)
    except (ValueError, RecursionError):
        raise RequestProblem(400, "the message is not JSON.", "bad_message") from None
