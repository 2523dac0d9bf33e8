"""Events from scores of frames, as they come."""

import hashlib
import math
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kinescan.data.intervals import Interval
from kinescan.errors import CheckpointError, ShapeError
from kinescan.events.predictions import FramePredictions
from kinescan.events.rules import EventRules, LabelRules
from kinescan.shapes import BACKGROUND

SLACK_SECONDS = 1e-6
"""Times of frames are sums of rounded numbers: five frames of 0.04 s have lasted 0.2 s."""
_NUM_DISTANCES = 15
"""Between frames, of which the median is the usual one."""
_GAP_RATIO = 4.0
"""A frame that comes later than this many usual distances, and than `EventRules.gap_seconds`, is behind a gap."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened, [start, end) in seconds of the video source's clock.

    Attributes:
        id: names the event alone; the same when its start and when its end are told, also after a restart.
        label: what happened.
        start_seconds: time of the first frame that shows it.
        end_seconds: time of the first frame that does not show it any more; None while it continues.
        peak_score: the highest score so far, after smoothing.
        mean_score: mean over its frames so far, after smoothing, merged pauses included.
    """

    id: str
    label: str
    start_seconds: float
    end_seconds: float | None
    peak_score: float
    mean_score: float

    def interval(self, video_id: str) -> Interval:
        """The event as an interval of a video.

        Raises:
            ShapeError: it continues.
        """
        if self.end_seconds is None:
            raise ShapeError(f"event {self.id} ({self.label}) continues; it has no end yet.")
        return Interval(
            video_id=video_id, label=self.label, start_seconds=self.start_seconds, end_seconds=self.end_seconds
        )


@dataclass(frozen=True, kw_only=True)
class EventUpdate:
    """What is told of an event.

    Attributes:
        kind: whether it is the event's start or its end.
        event: as it is known at that moment.
        told_at_seconds: the moment of the alarm: time of the last frame that was used, or when silence was noticed.
    """

    kind: Literal["start", "end"]
    event: Event
    told_at_seconds: float


@dataclass(kw_only=True)
class _OpenEvent:
    """An event that may still continue: its class is there, or was until less than `merge_seconds` ago.

    A pause is counted apart: it belongs to the event only if the class comes back in time. `EventDetector.state` writes
    these fields.

    Attributes:
        start: time of its first frame, in seconds.
        peak: the highest score so far.
        total: sum of the scores of its `num_frames` frames.
        num_frames: frames so far, those of a pause that may still be the end left out.
        id: of the event; empty until its start is told.
        ended: time of the first frame of the pause, in seconds; None while the class is there.
        pause_total: sum of the scores in the pause.
        pause_frames: frames of the pause.
    """

    start: float
    peak: float
    total: float
    num_frames: int
    id: str = ""
    ended: float | None = None
    pause_total: float = 0.0
    pause_frames: int = 0

    def add(self, score: float) -> None:
        """Counts a frame: of the event where the class is there, else of the pause."""
        if self.ended is not None:
            self.pause_total, self.pause_frames = self.pause_total + score, self.pause_frames + 1
            return
        self.total, self.num_frames, self.peak = self.total + score, self.num_frames + 1, max(self.peak, score)

    def resume(self) -> None:
        """Ends the pause, which becomes a part of the event."""
        self.total, self.num_frames = self.total + self.pause_total, self.num_frames + self.pause_frames
        self.ended, self.pause_total, self.pause_frames = None, 0.0, 0


@dataclass(kw_only=True)
class _Clock:
    """Times of the frames so far.

    Attributes:
        last: time of the newest frame, in seconds; None before the first.
        distances: from frame to frame, in seconds, the newest ones.
    """

    last: float | None = None
    distances: deque[float] = field(default_factory=lambda: deque(maxlen=_NUM_DISTANCES))


class EventDetector:
    """Tells the start and the end of events from the scores of one stream's frames; see `EventRules` for how.

    The work per frame does not grow with the length of the stream, and no frame is waited for: what is told at a frame
    depends on that frame and earlier ones alone.

    Args:
        classes: names, in the order of the scores. "background" is never an event.
        rules: thresholds and times.
        stream_id: begins every event's id; by default random, so that ids of two streams, or of a stream that was
            begun anew, never meet.

    Raises:
        ConfigError: the rules name a class that is not there.

    Example:
        >>> detector = EventDetector(["background", "fall"], EventRules(merge_seconds=0.2), stream_id="camera")
        >>> for frame, score in enumerate([0.1, 0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1]):
        ...     for update in detector.push(frame / 10, [1 - score, score]):
        ...         print(update.kind, update.event.id, update.event.start_seconds, update.told_at_seconds)
        start camera-1 0.1 0.3
        end camera-1 0.1 0.7
    """

    def __init__(
        self, classes: Sequence[str], rules: EventRules | None = None, *, stream_id: str | None = None
    ) -> None:
        self.classes = tuple(classes)
        self.rules = EventRules() if rules is None else rules
        self.rules.check_classes(self.classes)
        self.stream_id = secrets.token_hex(4) if stream_id is None else stream_id
        self._labels: tuple[LabelRules, ...] = tuple(self.rules.of(name) for name in self.classes)
        self._on = np.array([label.on for label in self._labels])
        if self.classes[:1] == (BACKGROUND,):
            self._on[0] = math.inf
        self._clear()
        self._num_told = 0

    def _clear(self) -> None:
        self._clock = _Clock()
        self._smoothed: NDArray[np.float64] | None = None
        self._open: dict[int, _OpenEvent] = {}

    @property
    def open_events(self) -> tuple[Event, ...]:
        """Those whose start was told and whose end was not."""
        return tuple(self._event(index, event, end=None) for index, event in sorted(self._open.items()) if event.id)

    @property
    def frame_seconds(self) -> float:
        """The usual distance of frames: the median of the last ones; 0 before the second frame."""
        return median(self._clock.distances) if self._clock.distances else 0.0

    def push(self, seconds: float, scores: ArrayLike) -> list[EventUpdate]:
        """Takes the scores of the next frame; gives what is to be told now.

        Args:
            seconds: the frame's time. One that lies before the last frame's, or behind a gap (see
                `EventRules.gap_seconds`), ends every event at the last frame.
            scores: [K], probabilities.

        Raises:
            ShapeError: there is not one finite score for every class, or the time is not finite.
        """
        given = np.asarray(scores, dtype=np.float64)
        if given.shape != (len(self.classes),) or not (np.isfinite(given).all() and math.isfinite(seconds)):
            raise ShapeError(
                f"a frame needs a finite time and {len(self.classes)} finite scores, one for each class, got "
                f"{seconds} s and scores of shape {list(given.shape)}."
            )
        updates = self._pass_time(seconds)
        current = self._smooth(seconds, given)
        self._clock.last = seconds
        for index in sorted(set(np.flatnonzero(current >= self._on).tolist()) | self._open.keys()):
            updates += self._advance(index, seconds, float(current[index]))
        return updates

    def pass_silence(self, seconds: float) -> list[EventUpdate]:
        """Takes that no frame has come up to a time: behind a gap, every event ends at the last frame.

        Args:
            seconds: now, by the clock of the frames.

        Returns:
            What is to be told now, as `push` would tell it at the next frame; nothing before a gap.
        """
        last = self._clock.last
        return self._end_all(last, told_at=seconds) if last is not None and self._is_gap(seconds - last) else []

    def finish(self, seconds: float | None = None) -> list[EventUpdate]:
        """Ends every event where the video source ends; the next frame begins anew.

        Args:
            seconds: when the last frame's answer ends; by default at that frame's time. Later than a gap allows, or
                earlier, it is taken as the default.

        Returns:
            What is to be told now: the ends, and the starts of events that have lasted long enough only now.
        """
        last = self._clock.last
        if last is None:
            return []
        end = last if seconds is None or seconds < last or self._is_gap(seconds - last) else seconds
        return self._end_all(end, told_at=end)

    def state(self) -> dict[str, Any]:
        """All that is needed to continue later, as JSON-like values; see `restore`."""
        return {
            "classes": list(self.classes),
            "stream_id": self.stream_id,
            "num_told": self._num_told,
            "last_seconds": self._clock.last,
            "distances": list(self._clock.distances),
            "smoothed": None if self._smoothed is None else self._smoothed.tolist(),
            "runs": {str(index): asdict(event) for index, event in self._open.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state` gave, with the same ids; rules may have changed, classes must not.

        Raises:
            CheckpointError: it is the state of other classes, or damaged.
        """
        try:
            if list(state["classes"]) != list(self.classes):
                raise CheckpointError(
                    "the state of the events is that of other classes. Give that of a stream of this model, or start "
                    "anew without it."
                )
            clock = _Clock(last=_number(state["last_seconds"]))
            clock.distances.extend(_finite(value) for value in state["distances"])
            smoothed = state["smoothed"]
            values = None if smoothed is None else np.array(smoothed, dtype=np.float64)
            if values is not None and (values.shape != (len(self.classes),) or not np.isfinite(values).all()):
                raise ValueError("smoothed must be one finite number for each class")
            runs = {int(index): _restored(**values) for index, values in state["runs"].items()}
            if not all(0 <= index < len(self.classes) for index in runs):
                raise ValueError("the class index of an event is out of range")
            num_told, stream_id = int(state["num_told"]), str(state["stream_id"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CheckpointError(
                f"the state of the events is damaged ({type(error).__name__}: {error}). Start anew without it."
            ) from None
        self._clock, self._smoothed, self._open = clock, values, runs
        self._num_told, self.stream_id = num_told, stream_id

    def _is_gap(self, distance: float) -> bool:
        return distance > max(self.rules.gap_seconds, _GAP_RATIO * self.frame_seconds) + SLACK_SECONDS

    def _pass_time(self, seconds: float) -> list[EventUpdate]:
        """Takes the time of the next frame: ends all events before a gap, or where the clock ran back."""
        last = self._clock.last
        if last is None:
            return []
        distance = seconds - last
        is_gap = distance < 0 or self._is_gap(distance)
        updates = self._end_all(last, told_at=seconds) if is_gap else []
        if distance > 0:
            # also those of gaps: where frames are always that far apart, the distance is usual and not a gap
            self._clock.distances.append(distance)
        return updates

    def _end_all(self, end: float, *, told_at: float) -> list[EventUpdate]:
        """Ends every event, those in a pause at its beginning; smoothing starts anew, the usual distance is kept."""
        updates = []
        for index, event in sorted(self._open.items()):
            if event.ended is None:
                event.ended = end
                updates += self._start(index, event, end, told_at=told_at)
            updates += self._close(index, event, told_at)
        distances = self._clock.distances
        self._clear()
        self._clock.distances = distances
        return updates

    def _smooth(self, seconds: float, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """[K], the exponential moving average of the scores; its time constant is `EventRules.smooth_seconds`."""
        if not self.rules.smooth_seconds:
            return scores
        if self._smoothed is None or self._clock.last is None:
            self._smoothed = scores
        else:
            weight = -math.expm1(-(seconds - self._clock.last) / self.rules.smooth_seconds)
            self._smoothed = self._smoothed + weight * (scores - self._smoothed)
        return self._smoothed

    def _advance(self, index: int, seconds: float, score: float) -> list[EventUpdate]:
        """Takes one class's score of a frame: opens, pauses, resumes or closes its event."""
        label, event = self._labels[index], self._open.get(index)
        updates: list[EventUpdate] = []
        if (
            event is not None
            and event.ended is not None
            and seconds - event.ended >= label.merge_seconds - SLACK_SECONDS
        ):
            updates += self._close(index, event, seconds)
            event = None
        if event is None:
            if score < label.on or not math.isfinite(self._on[index]):
                return updates
            event = self._open[index] = _OpenEvent(start=seconds, peak=score, total=0.0, num_frames=0)
        if event.ended is None and score < label.off:
            event.ended = seconds
            updates += self._start(index, event, seconds, told_at=seconds)
            if label.merge_seconds <= SLACK_SECONDS:
                return updates + self._close(index, event, seconds)
        elif event.ended is not None and score >= label.on:
            event.resume()
        event.add(score)
        if event.ended is not None:
            return updates
        return updates + self._start(index, event, seconds, told_at=seconds)

    def _start(self, index: int, event: _OpenEvent, until: float, *, told_at: float) -> list[EventUpdate]:
        """The start, where it has not been told and the event has lasted long enough."""
        if event.id or until - event.start < self._labels[index].least_seconds - SLACK_SECONDS:
            return []
        self._num_told += 1
        event.id = f"{self.stream_id}-{self._num_told}"
        return [EventUpdate(kind="start", event=self._event(index, event, end=None), told_at_seconds=told_at)]

    def _close(self, index: int, event: _OpenEvent, told_at: float) -> list[EventUpdate]:
        """Forgets the event; gives its end, where its start was told."""
        del self._open[index]
        if not event.id:
            return []
        return [EventUpdate(kind="end", event=self._event(index, event, end=event.ended), told_at_seconds=told_at)]

    def _event(self, index: int, event: _OpenEvent, *, end: float | None) -> Event:
        return Event(
            id=event.id,
            label=self.classes[index],
            start_seconds=event.start,
            end_seconds=end,
            peak_score=event.peak,
            mean_score=event.total / max(1, event.num_frames),
        )


def stream_id_of(video_id: str) -> str:
    """What the ids of a file's events begin with: the same in every call."""
    return hashlib.sha256(video_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def detect_updates(predictions: FramePredictions, rules: EventRules | None = None) -> list[EventUpdate]:
    """What a stream of these frames would have told, in that order; ids are the same in every call.

    Args:
        predictions: of one video.
        rules: thresholds and times.

    Raises:
        ConfigError: the rules name a class that is not there.
    """
    stream_id = stream_id_of(predictions.video_id)
    detector = EventDetector(predictions.classes, rules, stream_id=stream_id)
    updates = []
    for seconds, scores in zip(predictions.seconds.tolist(), predictions.scores, strict=True):
        updates += detector.push(seconds, scores)
    return updates + detector.finish(predictions.end_seconds)


def detect_events(predictions: FramePredictions, rules: EventRules | None = None) -> list[Event]:
    """The events of a whole video, in the order of their starts: the same as a stream of its frames tells.

    Args:
        predictions: of one video.
        rules: thresholds and times.

    Raises:
        ConfigError: the rules name a class that is not there.

    Example:
        >>> predictions = FramePredictions(
        ...     video_id="a",
        ...     seconds=np.arange(6) / 10,
        ...     scores=np.array([[0.9, 0.1]] * 2 + [[0.2, 0.8]] * 4, dtype=np.float32),
        ...     classes=("background", "fall"),
        ...     end_seconds=0.6,
        ... )
        >>> [(event.label, event.start_seconds, event.end_seconds) for event in detect_events(predictions)]
        [('fall', 0.2, 0.6)]
    """
    ended = [update.event for update in detect_updates(predictions, rules) if update.kind == "end"]
    return sorted(ended, key=lambda event: (event.start_seconds, event.label))


def _number(value: Any) -> float | None:
    return None if value is None else _finite(value)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("a number is not finite")
    return number


def _restored(
    *,
    start: Any,
    peak: Any,
    total: Any,
    num_frames: Any,
    id: Any = "",
    ended: Any = None,
    pause_total: Any = 0.0,
    pause_frames: Any = 0,
) -> _OpenEvent:
    return _OpenEvent(
        start=_finite(start),
        peak=_finite(peak),
        total=_finite(total),
        num_frames=int(num_frames),
        id=str(id),
        ended=_number(ended),
        pause_total=_finite(pause_total),
        pause_frames=int(pause_frames),
    )
