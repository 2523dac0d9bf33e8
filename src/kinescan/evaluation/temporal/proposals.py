"""Intervals with a score, at every threshold at once: what mAP over tIoU ranks."""

from collections.abc import Iterator

import numpy as np

from kinescan.evaluation.temporal.intervals import Detection, Floats, temporal_iou
from kinescan.events.predictions import FramePredictions, runs_of
from kinescan.shapes import BACKGROUND

THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MOST_OVERLAP = 0.4
"""Of two proposals of a class with a larger tIoU, the one with the lower score goes."""
AROUND = 0.25
"""How much on each side of a proposal, as a fraction of its length, is what it should stand out from."""
MOST_PROPOSALS = 200
"""Of a video, those with the highest scores."""


def propose_intervals(predictions: FramePredictions) -> list[Detection]:
    """Detections of one video that need no chosen threshold, in falling score.

    For each class and each of 11 thresholds (0.02, 0.05, 0.1, 0.2, ... 0.9), every run of frames that reach it is a
    proposal. Its score is the mean inside minus the mean of a quarter of its length on either side: a part of an event
    scores lower than the whole. Where two of a class overlap with a tIoU above 0.4, the better one is kept; 200 a video
    at most.

    Args:
        predictions: of the video; background gives no proposals.

    Source: outer-inner-contrastive score of Shou et al., AutoLoc (ECCV 2018), taken for scores of single frames.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.9, 0.1]], dtype=np.float32)
        >>> found = propose_intervals(FramePredictions(video_id="a", seconds=np.arange(4.0), scores=scores,
        ...                                            classes=("background", "fall"), end_seconds=4.0))
        >>> found[0].label, found[0].start_seconds, found[0].end_seconds, round(found[0].score, 2)
        ('fall', 1.0, 3.0, 0.65)
    """
    found = [
        detection
        for column, label in enumerate(predictions.classes)
        if label != BACKGROUND
        for detection in _of_class(predictions, column, label)
    ]
    return sorted(found, key=lambda one: -one.score)[:MOST_PROPOSALS]


def _of_class(predictions: FramePredictions, column: int, label: str) -> Iterator[Detection]:
    scores = predictions.scores[:, column].astype(np.float64)
    edges = np.append(predictions.seconds, max(predictions.end_seconds, *predictions.seconds[-1:], 0.0))
    sums = np.concatenate([[0.0], np.cumsum(scores)])
    runs = np.concatenate([np.stack(runs_of(scores >= threshold), axis=1) for threshold in THRESHOLDS])
    first, behind = np.unique(runs, axis=0).T
    margins = np.maximum(1, np.rint(AROUND * (behind - first)).astype(np.int64))
    before, after = np.maximum(0, first - margins), np.minimum(len(scores), behind + margins)
    outside = (sums[first] - sums[before] + sums[after] - sums[behind]) / np.maximum(1, first - before + after - behind)
    contrast = (sums[behind] - sums[first]) / (behind - first) - outside
    kept_starts: Floats = np.empty(0)
    kept_ends: Floats = np.empty(0)
    for index in np.argsort(-contrast, kind="stable")[: 10 * MOST_PROPOSALS]:
        start, end = float(edges[first[index]]), float(edges[behind[index]])
        if contrast[index] <= 0:
            return
        if end <= start or (temporal_iou(start, end, kept_starts, kept_ends) > MOST_OVERLAP).any():
            continue
        kept_starts, kept_ends = np.append(kept_starts, start), np.append(kept_ends, end)
        yield Detection(
            video_id=predictions.video_id,
            label=label,
            start_seconds=start,
            end_seconds=end,
            score=float(contrast[index]),
        )
        if len(kept_starts) >= MOST_PROPOSALS:
            return
