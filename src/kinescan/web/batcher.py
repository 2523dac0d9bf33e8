"""Frames of many streams through one model: whatever waits goes in one pass."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from kinescan.errors import KinescanError
from kinescan.inference.exported import CausalModel
from kinescan.inference.stream import StreamPrediction, StreamSession
from kinescan.inference.stream_batch import StreamBatch
from kinescan.inference.turns import Turn

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 32
"""Frames of different streams in one pass; further ones wait for the next."""


class _Waiting(NamedTuple):
    session: StreamSession
    turn: Turn
    answer: "Future[StreamPrediction]"


class StreamBatcher:
    """One thread that runs one model; each stream gives it a frame and waits for the answer.

    An error of one frame is raised where that stream waits, and reaches no other.

    Args:
        model: of all sessions.
        on_pass: called with how many frames went through the model together.
    """

    def __init__(self, model: CausalModel, on_pass: Callable[[int], None] | None = None) -> None:
        self._batch = StreamBatch(model)
        self._on_pass = on_pass
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="frames of streams", daemon=True)
        self._thread.start()

    def push(self, session: StreamSession, turn: Turn, timeout_seconds: float) -> StreamPrediction:
        """What the model says after a frame.

        Args:
            session: of the stream.
            turn: its next frame.
            timeout_seconds: how long the answer may take, with the wait for earlier frames.

        Raises:
            KinescanError: of this frame.
            TimeoutError: it took too long, or the batcher was closed.
        """
        entry = _Waiting(session, turn, Future())
        with self._changed:
            if self._is_closed:
                raise TimeoutError("the service is stopping")
            self._waiting.append(entry)
            self._changed.notify()
        return entry.answer.result(timeout_seconds)

    def close(self) -> None:
        """Ends the thread; who waits gets an error."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(10)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._is_closed:
                    self._changed.wait()
                part, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
                if self._is_closed:
                    for entry in (*part, *self._waiting):
                        entry.answer.set_exception(TimeoutError("the service is stopping"))
                    return
            self._take(part)

    def _take(self, part: list[_Waiting]) -> None:
        if self._on_pass is not None:
            self._on_pass(len(part))
        try:
            found = self._batch.push([entry.session for entry in part], [entry.turn for entry in part])
        except Exception as error:
            # the thread is all streams': it outlives whatever one pass raises
            logger.exception("a pass of %d streams failed", len(part))
            for entry in part:
                entry.answer.set_exception(error)
            return
        for entry, answer in zip(part, found, strict=True):
            if isinstance(answer, KinescanError):
                entry.answer.set_exception(answer)
            else:
                entry.answer.set_result(answer)
