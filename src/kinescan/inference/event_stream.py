"""Events of a stream: each is sent to the sinks as it begins and as it ends, once, even if the program is killed."""

import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kinescan.data.video import Reconnect, is_live
from kinescan.errors import CheckpointError, ConfigError
from kinescan.events.detector import EventDetector, EventUpdate
from kinescan.events.rules import EventRules
from kinescan.events.sinks import Sink
from kinescan.events.teller import Teller
from kinescan.events.told import Told, told_from
from kinescan.inference.event_rules import model_rules
from kinescan.inference.feed import Feed, WhenBehind
from kinescan.inference.model_source import ModelSource
from kinescan.inference.stream import (
    StreamPrediction,
    StreamSession,
    checked_behind,
    left_time_of,
    predictions_of,
    pushed,
    session_from,
)
from kinescan.inference.stream_average import AverageKind
from kinescan.inference.stream_state import load_stream_events, save_stream_state
from kinescan.inference.turns import FrameSource, frames_of, turns_of
from kinescan.models.pks4_state import PKS4State
from kinescan.runtime.urls import mask_url

logger = logging.getLogger(__name__)

_STATE_SECONDS, _OPEN_STATE_SECONDS = 60.0, 1.0
"""How often the state is written, besides when something is told: in general, and while an event is open."""

Watch = Callable[[Tensor, float], None]


class _Snapshot(NamedTuple):
    """A stream at one moment: the model's state, when its last frame was taken, and the events."""

    state: PKS4State
    left_time: float | None
    events: dict[str, Any]


class EventStream:
    """Gives the predictions of a session to a detector, and sends the events that it finds to sinks.

    Args:
        session: of the stream; with the state that `path` holds.
        rules: thresholds and times.
        sinks: who is told.
        source: the stream's name, shown without secrets.
        is_live: whether it is a live source, whose time continues after a restart by the system clock.
        path: where the state is kept; None keeps none.
        name: what records call the stream; by default `source` without secrets.

    Attributes:
        resume_seconds: up to where a file was seen before a restart; None to begin with the first frame.
        is_away: the video source has broken off; set by the thread that reads it.

    Raises:
        ConfigError: the rules name a class that is not there.
        CheckpointError: the file's events are those of other classes, or damaged.
    """

    def __init__(
        self,
        session: StreamSession,
        rules: EventRules,
        sinks: Sequence[Sink],
        *,
        source: str,
        is_live: bool,
        path: Path | None = None,
        name: str | None = None,
    ) -> None:
        self._session = session
        self._detector = EventDetector(session.model.class_names, rules)
        self._source, self._is_live, self._path = name or mask_url(source), is_live, path
        self._identity = None if is_live else _identity_of(source)
        self._sequence = 0
        self._offset_seconds: float | None = 0.0
        self._start_times: dict[str, str] = {}
        self._last: dict[str, float] | None = None
        self.resume_seconds: float | None = None
        self.is_away = False
        self._last_frame_time = time.monotonic()
        pending = self._restore(path)
        self._weights = session.model.weights_fingerprint() if path is not None else None
        self._saved = time.monotonic()
        self._teller = Teller(sinks, save=None if path is None else self._save, pending=pending)

    def push(self, prediction: StreamPrediction) -> list[Told]:
        """Takes the prediction after a frame; gives the records that are sent.

        Raises:
            ConfigError: the frame came without a time.
            BrokenPipeError: nobody listens to standard output any more.
        """
        if prediction.seconds is None:
            raise ConfigError(
                "events need the time of every frame. Give frames as pairs (frame, seconds), or a file or live source."
            )
        seconds = self.clock(prediction.seconds)
        scores = self._session.model.probabilities(prediction.logits)
        told = self._told(self._detector.push(seconds, scores.double().numpy()))
        self._last = {"seconds": seconds, "source_seconds": prediction.seconds, "time": time.time()}
        self._last_frame_time = time.monotonic()
        waited = time.monotonic() - self._saved
        is_due = waited > (_OPEN_STATE_SECONDS if self._detector.open_events else _STATE_SECONDS)
        if told or is_due:
            self._saved = time.monotonic()
            self._teller.tell(told, self._snapshot() if self._path is not None else None)
        return told

    def look(self) -> list[Told]:
        """Ends the open events where the video source has been away for longer than a gap, and sends their records.

        It is called whenever no frame waits, so that nobody has to wait for the video source to come back.
        """
        if not self.is_away or self._last is None:
            return []
        silent_seconds = time.monotonic() - self._last_frame_time
        told = self._told(self._detector.pass_silence(self._last["seconds"] + silent_seconds))
        if told:
            self._saved = time.monotonic()
            self._teller.tell(told, self._snapshot() if self._path is not None else None)
        return told

    def finish(self) -> list[Told]:
        """Ends the open events at the end of the video source, and sends their records."""
        end = None if self._last is None else self._last["seconds"] + self._detector.frame_seconds
        told = self._told(self._detector.finish(end))
        self._last = None
        self._teller.tell(told, self._snapshot() if self._path is not None else None)
        return told

    def close(self) -> None:
        """Waits a little for slow sinks, and writes the state.

        Raises:
            CheckpointError: the state cannot be written.
        """
        num_open = len(self._detector.open_events)
        if num_open:
            logger.info(
                "%s: %d event(s) continue; a restart with the same state tells when they end (%s)",
                *(self._source, num_open, self._path),
            )
        self._teller.close(self._snapshot() if self._path is not None else None)

    def clock(self, seconds: float) -> float:
        """The time of events for a time of the video source, which may begin anew with a restart."""
        if self._offset_seconds is None:
            assert self._last is not None, "it is None only where a state told when the stream was left"
            self._offset_seconds = self._last["seconds"] + max(0.0, time.time() - self._last["time"]) - seconds
        return seconds + self._offset_seconds

    def _told(self, updates: Sequence[EventUpdate]) -> list[Told]:
        told = []
        for update in updates:
            self._sequence += 1
            times = self._times(update) if self._is_live else {}
            told.append(Told(update=update, source=self._source, sequence=self._sequence, **times))
        return told

    def _times(self, update: EventUpdate) -> dict[str, str | None]:
        event, now = update.event, time.time()
        begun = self._start_times.get(event.id) or _iso(now - (update.told_at_seconds - event.start_seconds))
        if update.kind == "start":
            self._start_times[event.id] = begun
        else:
            self._start_times.pop(event.id, None)
        ended = None
        if event.end_seconds is not None:
            seconds, moment = update.told_at_seconds, now
            if self._last is not None and event.end_seconds <= self._last["seconds"] + self._detector.frame_seconds:
                # the frame before this one is nearer: a break, or a clock that ran back, may lie between
                seconds, moment = self._last["seconds"], self._last["time"]
            ended = _iso(min(now, moment + event.end_seconds - seconds))
        return {"start_time": begun, "end_time": ended, "told_at_time": _iso(now)}

    def _snapshot(self) -> "_Snapshot":
        events = {
            "detector": self._detector.state(),
            "sequence": self._sequence,
            "start_times": dict(self._start_times),
            "source": self._identity,
            "last": self._last,
        }
        return _Snapshot(self._session.state, self._session.last_time, events)

    def _save(self, snapshot: "_Snapshot", pending: Sequence[Told]) -> None:
        assert self._path is not None, "saved only where there is a file"
        state, left_time, events = snapshot
        events = {**events, "pending": [told.to_plain() for told in pending]}
        save_stream_state(state, self._path, weights=self._weights, events=events, left_time=left_time)

    def _restore(self, path: Path | None) -> list[Told]:
        """Continues from the file; gives the records that some sink may not have yet."""
        kept = load_stream_events(path) if path is not None and path.exists() else None
        if kept is None:
            return []
        try:
            self._detector.restore(kept["detector"])
            self._sequence = int(kept["sequence"])
            self._start_times = {str(name): str(value) for name, value in kept["start_times"].items()}
            last = kept["last"]
            self._last = last and {name: float(last[name]) for name in ("seconds", "source_seconds", "time")}
            pending = [told_from(record) for record in kept["pending"]]
            source = kept["source"]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CheckpointError(
                f"{path}: the events in it are damaged ({type(error).__name__}: {error}). Start anew without it."
            ) from None
        if self._last is not None and self._is_live:
            self._offset_seconds = None
        elif self._last is not None and self._identity is not None and source == self._identity:
            self.resume_seconds = self._last["source_seconds"]
            logger.info("%s: continues behind %.3f s, up to which it was seen", self._source, self.resume_seconds)
        return pending


def stream_events(
    model: ModelSource,
    source: FrameSource,
    *,
    rules: EventRules | None = None,
    sinks: Sequence[Sink] = (),
    watch: Watch | None = None,
    every: int | None = None,
    device: str | torch.device | None = None,
    state: str | Path | None = None,
    allow_short: bool = False,
    average: AverageKind | None = None,
    average_seconds: float | None = None,
    when_behind: WhenBehind = "wait",
    reconnect: Reconnect | None = None,
) -> Generator[Told, None, None]:
    """What happens in a stream, as it begins and as it ends.

    Args:
        model: a causal PKS4, as for `stream`. One that answers for frames has a background; of one that answers for
            clips, the scores are those of what its average remembers, and some class is nearly always an event.
        source: as for `stream`; frames need their times.
        rules: thresholds and times; None are those that are saved with the model, or the defaults (see `model_rules`).
        sinks: who else is told, each by a thread of its own, so that none holds the stream.
        watch: is given every frame of the video source with its time by the clock of the events, before the model.
        every: feed each `every`-th frame by count; None takes frames by their times, as `stream` does.
        device: where to compute.
        state: file to continue from where it is there. It is written before an event is told, so that after a kill the
            same event has the same id; every second while an event is open, every minute, and at the end. A file
            continues behind the last frame that was seen, a live source by the system clock.
        allow_short: take what can be decoded of a cut or damaged file.
        average: of a clip classifier's scores; see `StreamSession`.
        average_seconds: see `StreamSession`.
        when_behind: as for `stream`; `watch` is called by the thread that reads, then.
        reconnect: as for `stream`.

    Returns:
        An iterator of records; closing it ends the stream. Events that are open end with the video source; where the
        stream is broken off, they stay open in `state`, and end at the last frame without one.

    Raises:
        ConfigError: as for `stream`; the rules name a class that is not there, or frames come without times.
        CheckpointError: as for `stream`.
        VideoError: the video source cannot be read, or breaks off (while iterating).
        NonFiniteError: the model gives NaN or infinity (while iterating).

    Example:
        >>> from kinescan.models.zoo import create_model
        >>> model = create_model("pks4_vit_ti16", labels=["left", "right"], causal=True)
        >>> frames = [(torch.zeros(3, 48, 64, dtype=torch.uint8), t / 10) for t in range(4)]
        >>> told = list(stream_events(model, frames, rules=EventRules(on=0.1)))
        >>> [(record.update.kind, record.update.event.start_seconds) for record in told]
        [('start', 0.0), ('start', 0.0), ('end', 0.0), ('end', 0.0)]
    """
    path = None if state is None else Path(state)
    session = session_from(model, path, device=device, average=average, average_seconds=average_seconds)
    events = EventStream(
        *(session, model_rules(session.model) if rules is None else rules, sinks),
        source=str(source) if isinstance(source, str | Path) else "frames",
        is_live=isinstance(source, str | Path) and is_live(source),
        path=path,
    )
    watched = frames_of(source, session.model, allow_short, reconnect, partial(setattr, events, "is_away"))
    if watch is not None:
        watched = watched_frames(watched, watch, events)
    if isinstance(source, str | Path) and is_live(source):
        when_behind = checked_behind(when_behind, source)
        live = _predictions_or_silence(session, source, watched, every, when_behind=when_behind)
        return _told(live, events, path is not None)
    after_seconds = events.resume_seconds
    recorded = predictions_of(session, source, watched, every, after_seconds=after_seconds, when_behind=when_behind)
    return _told(recorded, events, path is not None)


def _predictions_or_silence(
    session: StreamSession,
    source: str | Path,
    frames: Iterable[Tensor | tuple[Tensor, float]],
    every: int | None,
    *,
    when_behind: WhenBehind,
) -> Generator[StreamPrediction | None, None, None]:
    """The prediction after each frame of a live source, and None whenever no frame has come for a moment.

    The video source is read by a thread of its own, so that a camera that is away does not block the caller.
    """
    name = mask_url(source)
    turns = partial(turns_of, session.model, frames, every, name, left_time=left_time_of(session, source))
    session.warm_up()
    with closing(Feed(turns, name=name, when_behind=when_behind)) as feed:
        for fed in feed.frames_or_silence():
            prediction = None if fed is None else pushed(session, fed.turn)
            if prediction is not None and fed is not None and when_behind == "newest":
                prediction = replace(prediction, behind_seconds=fed.behind_seconds, num_dropped=fed.num_dropped)
            yield prediction


def _told(
    predictions: Generator[StreamPrediction, None, None] | Generator[StreamPrediction | None, None, None],
    events: EventStream,
    is_kept: bool,
) -> Generator[Told, None, None]:
    has_ended = False
    try:
        with closing(predictions):
            for prediction in predictions:
                yield from events.look() if prediction is None else events.push(prediction)
        has_ended = True
        yield from events.finish()
    finally:
        try:
            if not has_ended and not is_kept:
                events.finish()
        finally:
            events.close()


def watched_frames(
    frames: Iterable[Tensor | tuple[Tensor, float]], watch: Watch, events: EventStream
) -> Iterator[Tensor | tuple[Tensor, float]]:
    """The same frames, each of them shown to `watch` with its time by the clock of the events."""
    for entry in frames:
        if isinstance(entry, tuple):
            pixels, seconds = entry
            if events.resume_seconds is None or seconds > events.resume_seconds:
                watch(pixels, events.clock(seconds))
        yield entry


def _identity_of(source: str) -> dict[str, Any] | None:
    """What tells a file from others: path, size in bytes and time of the last change in nanoseconds."""
    try:
        found = os.stat(source)
    except OSError:
        return None
    return {"path": os.path.abspath(source), "size": found.st_size, "modified": found.st_mtime_ns}


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
