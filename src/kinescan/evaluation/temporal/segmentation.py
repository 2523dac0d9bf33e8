from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from kinescan.errors import ConfigError

OVERLAPS = (0.10, 0.25, 0.50)


@dataclass(frozen=True, kw_only=True)
class SegmentationScores:
    """How well every frame of whole videos was labelled; all in per cent.

    Attributes:
        accuracy: frames with the right label, background among them, pooled over videos; ruled by the largest class.
        edit: how well the order of segments was found, background left out; mean over videos, blind to timing.
        f1: overlap -> F1 of segments at this intersection over union; counts are summed over videos.
        edit_of_video: video id -> its edit score.
        counts_of_video: video id -> overlap -> right, false and missed segments.
    """

    accuracy: float
    edit: float
    f1: Mapping[float, float]
    edit_of_video: Mapping[str, float]
    counts_of_video: Mapping[str, Mapping[float, tuple[int, int, int]]]


def segmentation_scores(
    truth: Mapping[str, Sequence[str]],
    predictions: Mapping[str, Sequence[str]],
    *,
    background: Sequence[str] = ("background",),
    overlaps: Sequence[float] = OVERLAPS,
) -> SegmentationScores:
    """Frame accuracy, edit score and segmental F1, equal to the evaluation of MS-TCN.

    Segments are runs of equal labels. In the order of time each predicted segment looks at the true one of its label
    with the largest intersection over union (the first of equal ones): it is right when that reaches the threshold and
    the true segment is free, else false.

    Args:
        truth: video id -> the label of each frame.
        predictions: the same of the model; as many frames for each video.
        background: labels that make no segments.
        overlaps: thresholds of intersection over union.

    Raises:
        ConfigError: a video is missing or has another number of frames.

    Source: Lea et al., Temporal Convolutional Networks (CVPR 2017); Farha and Gall, MS-TCN (CVPR 2019), eval.py.
    Differs: predictions of another length than the truth are refused, where the published code compares as far as both
        go. The edit score of a video without segments on both sides is 100, where the published code divides 0 by 0.

    Example:
        >>> scores = segmentation_scores({"a": ["up"] * 4 + ["down"] * 4}, {"a": ["up"] * 6 + ["down"] * 2})
        >>> scores.accuracy, scores.edit, scores.f1[0.5]
        (75.0, 100.0, 100.0)
    """
    _check(truth, predictions)
    right_frames = sum(
        true == predicted for video in truth for true, predicted in zip(truth[video], predictions[video], strict=True)
    )
    num_frames = sum(map(len, truth.values()))
    edits, counts = {}, {}
    for video, labels in truth.items():
        true_segments = _segments(labels, background)
        found = _segments(predictions[video], background)
        edits[video] = _edit_score([label for label, _, _ in found], [label for label, _, _ in true_segments])
        counts[video] = {overlap: _count(found, true_segments, overlap) for overlap in overlaps}
    totals = {k: np.sum([of_video[k] for of_video in counts.values()], axis=0) for k in overlaps} if counts else {}
    return SegmentationScores(
        accuracy=100 * right_frames / num_frames if num_frames else float("nan"),
        edit=float(np.mean(list(edits.values()))) if edits else float("nan"),
        f1={overlap: _f1(*map(int, totals[overlap])) if counts else float("nan") for overlap in overlaps},
        edit_of_video=edits,
        counts_of_video=counts,
    )


Segment = tuple[str, int, int]
"""Label, first frame, and the frame behind the last one."""


def _segments(labels: Sequence[str], background: Sequence[str]) -> list[Segment]:
    segments, start = [], 0
    for label, run in groupby(labels):
        length = sum(1 for _ in run)
        if label not in background:
            segments.append((label, start, start + length))
        start += length
    return segments


def _count(found: list[Segment], truth: list[Segment], overlap: float) -> tuple[int, int, int]:
    """Right, false and missed segments."""
    taken = [False] * len(truth)
    right = 0
    for label, start, end in found:
        ratios = [
            (min(end, true_end) - max(start, true_start)) / (max(end, true_end) - min(start, true_start))
            if label == true_label
            else 0.0
            for true_label, true_start, true_end in truth
        ]
        best = max(range(len(ratios)), key=ratios.__getitem__, default=None)
        if best is not None and ratios[best] >= overlap and not taken[best] and truth[best][0] == label:
            taken[best] = True
            right += 1
    return right, len(found) - right, len(truth) - right


def _f1(right: int, false: int, missed: int) -> float:
    return 100 * 2 * right / (2 * right + false + missed) if right else 0.0


def _edit_score(found: list[str], truth: list[str]) -> float:
    """100 * (1 - Levenshtein distance / length of the longer sequence)."""
    longer = max(len(found), len(truth))
    if longer == 0:
        return 100.0
    row = list(range(len(truth) + 1))
    for count, label in enumerate(found, 1):
        diagonal, row[0] = row[0], count
        for index, true in enumerate(truth, 1):
            diagonal, row[index] = row[index], min(row[index] + 1, row[index - 1] + 1, diagonal + (label != true))
    return 100 * (1 - row[-1] / longer)


def _check(truth: Mapping[str, Sequence[str]], predictions: Mapping[str, Sequence[str]]) -> None:
    missing = [video for video in truth if video not in predictions]
    if missing:
        raise ConfigError(
            f"{len(missing)} videos have no prediction, the first is {missing[0]!r}. Predict all of them."
        )
    for video, labels in truth.items():
        if len(predictions[video]) != len(labels):
            raise ConfigError(
                f"{video}: {len(predictions[video])} predicted labels for {len(labels)} frames. Give one a frame."
            )
