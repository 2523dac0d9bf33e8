"""Alarms at many settings of the thresholds, without going through the frames one by one for each."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kinescan.evaluation.temporal.alarms import Alarm
from kinescan.evaluation.temporal.intervals import Floats
from kinescan.events.detector import SLACK_SECONDS, EventUpdate, detect_updates
from kinescan.events.predictions import FramePredictions
from kinescan.events.rules import ClassRules, EventRules, LabelRules
from kinescan.shapes import BACKGROUND


def alarms_of(predictions: FramePredictions, rules: EventRules) -> list[Alarm]:
    """What a stream of a video's frames would have told, an alarm for each start of an event, in the order of time.

    Args:
        predictions: of the video.
        rules: thresholds and times.

    Example:
        >>> scores = np.array([[0.9, 0.1]] * 2 + [[0.2, 0.8]] * 4, dtype=np.float32)
        >>> predictions = FramePredictions(video_id="a", seconds=np.arange(6) / 10, scores=scores,
        ...                                classes=("background", "fall"), end_seconds=0.6)
        >>> [(alarm.label, alarm.seconds) for alarm in alarms_of(predictions, EventRules(least_seconds=0.2))]
        [('fall', 0.4)]
    """
    return started(predictions.video_id, detect_updates(predictions, rules))


def started(video_id: str, updates: Iterable[EventUpdate]) -> list[Alarm]:
    """An alarm for each start of an event among what a detector tells of a video."""
    return [
        Alarm(video_id=video_id, label=update.event.label, seconds=update.told_at_seconds)
        for update in updates
        if update.kind == "start"
    ]


class AlarmSweep:
    """The alarms of one video at many settings: equal to `alarms_of`, in a fraction of its time.

    Args:
        predictions: of the video.
    """

    def __init__(self, predictions: FramePredictions) -> None:
        self._predictions = predictions
        self._smoothed: dict[float, Floats] = {0.0: predictions.scores.astype(np.float64)}
        self._runs: dict[tuple[int, float, float, float], tuple[list[int], list[float], list[float]]] = {}

    @cached_property
    def _widest(self) -> float:
        edges = np.append(self._predictions.seconds, max(self._predictions.end_seconds, *self._last))
        return float(np.diff(edges).max(initial=0.0))

    @property
    def _last(self) -> list[float]:
        return self._predictions.seconds[-1:].tolist() or [0.0]

    def alarms(self, rules: EventRules, labels: Sequence[str] | None = None) -> list[Alarm]:
        """One alarm for each start of an event.

        Args:
            rules: thresholds and times.
            labels: classes to look at; by default all but background.
        """
        classes = self._predictions.classes
        wanted = [label for label in (classes if labels is None else labels) if label != BACKGROUND]
        if self._widest > rules.gap_seconds:
            # pauses in the video: the detector has rules of its own for them
            return [alarm for alarm in alarms_of(self._predictions, rules) if alarm.label in wanted]
        return [
            Alarm(video_id=self._predictions.video_id, label=label, seconds=seconds)
            for label in wanted
            for seconds in self._told(classes.index(label), rules.of(label), rules.smooth_seconds)
        ]

    def _told(self, column: int, rules: LabelRules, smooth_seconds: float) -> list[float]:
        """When a class was told of."""
        seconds = self._predictions.seconds
        told: list[float] = []
        begun, ended, done = 0.0, -math.inf, False
        for position, start, last in zip(*self._runs_of(column, rules.on, rules.off, smooth_seconds), strict=True):
            # a run continues the one before it where the pause is shorter than merge_seconds
            if not start - ended < rules.merge_seconds - SLACK_SECONDS:
                begun, done = start, False
            ended, due = last, begun + rules.least_seconds - SLACK_SECONDS
            if done or last < due:
                continue
            frame = position + int(np.searchsorted(seconds[position:], due, side="left")) if due > start else position
            told.append(min(float(seconds[frame]), last) if frame < len(seconds) else last)
            done = True
        return told

    def _runs_of(
        self, column: int, on: float, off: float, smooth_seconds: float
    ) -> tuple[list[int], list[float], list[float]]:
        """First frame, start and end of each run of a class."""
        key = (column, on, off, smooth_seconds)
        if key not in self._runs:
            seconds = self._predictions.seconds
            edges = np.append(seconds, max(self._predictions.end_seconds, *self._last))
            first, behind = _hysteresis(self._scores(smooth_seconds)[:, column], on, off)
            self._runs[key] = first.tolist(), edges[first].tolist(), edges[behind].tolist()
        return self._runs[key]

    def _scores(self, smooth_seconds: float) -> Floats:
        if smooth_seconds not in self._smoothed:
            raw = self._smoothed[0.0]
            smoothed = raw.copy()
            weights = -np.expm1(-np.diff(self._predictions.seconds) / smooth_seconds)
            for frame, weight in enumerate(weights.tolist(), start=1):
                smoothed[frame] = smoothed[frame - 1] + weight * (raw[frame] - smoothed[frame - 1])
            self._smoothed[smooth_seconds] = smoothed
        return self._smoothed[smooth_seconds]


def shifted(rules: EventRules, classes: Sequence[str], shift: float) -> EventRules:
    """The rules with all thresholds moved by as much in their logits: 0 leaves them, above 0 is stricter.

    Example:
        >>> round(shifted(EventRules(on=0.5), ["fall"], 1.0).of("fall").on, 3)
        0.731
    """
    return replace(
        rules,
        classes={
            **rules.classes,
            **{
                label: replace(
                    rules.classes[label] if label in rules.classes else ClassRules(),
                    on=_moved(rules.of(label).on, shift),
                    off=_moved(rules.of(label).off, shift),
                )
                for label in classes
                if label != BACKGROUND
            },
        },
    )


def _moved(threshold: float, shift: float) -> float:
    inside = min(max(threshold, 1e-6), 1 - 1e-6)
    return 1 / (1 + math.exp(-(math.log(inside / (1 - inside)) + shift)))


def _hysteresis(scores: Floats, on: float, off: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Runs that begin at a score of at least `on` and end before one below `off`: first frames, and those behind."""
    events = np.where(scores >= on, 1, np.where(scores < off, -1, 0))
    last_event = np.maximum.accumulate(np.where(events != 0, np.arange(len(scores)), -1))
    there = (last_event >= 0) & (events[np.maximum(last_event, 0)] == 1)
    steps = np.diff(np.concatenate([[0], there.astype(np.int8), [0]]))
    return np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
