"""What is true of each frame, from labels with a start and an end."""

from collections.abc import Iterable, Sequence

import numpy as np

from kinescan.data.intervals import Interval
from kinescan.errors import ConfigError
from kinescan.evaluation.temporal.intervals import Floats
from kinescan.settings import closest


def frame_labels(intervals: Iterable[Interval], seconds: Floats, *, background: str) -> list[str]:
    """The one label of each frame, [T]; where several intervals hold a frame, that of the one that begins last.

    Example:
        >>> fall = Interval(video_id="a", label="fall", start_seconds=0.5, end_seconds=1.5)
        >>> frame_labels([fall], np.array([0.0, 0.5, 1.0, 1.5]), background="none")
        ['none', 'fall', 'fall', 'none']
    """
    labels = [background] * len(seconds)
    for interval in sorted(intervals, key=lambda one: one.start_seconds):
        first, end = np.searchsorted(seconds, (interval.start_seconds, interval.end_seconds), side="left").tolist()
        labels[first:end] = [interval.label] * max(0, end - first)
    return labels


def overlap(intervals: Iterable[Interval]) -> tuple[Interval, Interval] | None:
    """Two intervals of one video with other labels that share time; None where there are none."""
    latest: dict[str, Interval] = {}
    for interval in sorted(intervals, key=lambda one: (one.video_id, one.start_seconds, one.end_seconds)):
        for other in latest.values():
            same = other.video_id == interval.video_id and other.label != interval.label
            if same and interval.start_seconds < min(other.end_seconds, interval.end_seconds):
                return other, interval
        before = latest.get(interval.label)
        if before is None or before.video_id != interval.video_id or before.end_seconds < interval.end_seconds:
            latest[interval.label] = interval
    return None


def refuse_unknown_labels(intervals: Iterable[Interval], classes: Sequence[str]) -> None:
    """Truth is scored only for a model that knows its classes.

    Raises:
        ConfigError: a label is not one of the model's classes.
    """
    unknown = list(dict.fromkeys(interval.label for interval in intervals if interval.label not in classes))
    if unknown:
        raise ConfigError(
            f"{len(unknown)} labels of the data are unknown to the model, the first is {unknown[0]!r}. "
            f"{closest(unknown[0], classes)} Evaluate on data with the model's classes, or train on these."
        )


def refuse_outside(intervals: Iterable[Interval], ends_seconds: dict[str, float], *, tolerance: float = 1.0) -> None:
    """Truth lies inside of its videos; ends up to a second late, as published labels have them, are let pass.

    Args:
        intervals: of any videos.
        ends_seconds: video id -> when the video ends; intervals of other videos are not looked at.
        tolerance: how many seconds after the video's end an interval may end.

    Raises:
        ConfigError: an interval starts before 0, at or after the end of its video, or ends long after it.
    """
    outside = [
        interval
        for interval in intervals
        if (end := ends_seconds.get(interval.video_id)) is not None
        and (interval.start_seconds < 0 or interval.start_seconds >= end or interval.end_seconds > end + tolerance)
    ]
    if outside:
        first = outside[0]
        raise ConfigError(
            f"{len(outside)} intervals lie outside of their videos, such as {first.label!r} from "
            f"{first.start_seconds:g} to {first.end_seconds:g} s in {first.video_id}, which is "
            f"{ends_seconds[first.video_id]:g} s long. Give times in seconds of the video; are these numbers "
            "of frames?"
        )
