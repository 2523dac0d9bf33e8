"""Predictions and truth that are made up, with known events."""

import numpy as np

from kinescan.data.intervals import Interval
from kinescan.events.predictions import FramePredictions

CLASSES = ("background", "fall", "run")
RATE = 10.0


def interval(start: float, end: float, label: str = "fall", video: str = "a.mp4") -> Interval:
    return Interval(video_id=video, label=label, start_seconds=start, end_seconds=end)


def predictions(
    *events: tuple[float, float, str, float], video: str = "a.mp4", length: float = 20.0, noise: float = 0.02
) -> FramePredictions:
    """Events are (start, end, label, score); all else is background."""
    seconds = np.arange(round(length * RATE)) / RATE
    scores = np.full((len(seconds), len(CLASSES)), noise)
    for start, end, label, score in events:
        there = (seconds >= start - 1e-9) & (seconds < end - 1e-9)
        scores[there, CLASSES.index(label)] = score
    scores[:, 0] = 0.0
    scores[:, 0] = np.maximum(0.0, 1 - scores.sum(1))
    return FramePredictions(
        video_id=video, seconds=seconds, scores=scores.astype(np.float32), classes=CLASSES, end_seconds=length
    )
