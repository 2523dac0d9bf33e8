from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kinescan.data.intervals import Interval
from kinescan.errors import ConfigError
from kinescan.evaluation.temporal.intervals import Detection, Floats, temporal_iou

ACTIVITYNET_TIOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""0.5:0.05:0.95, as ActivityNet's evaluation has them."""
THUMOS_TIOUS = tuple(np.linspace(0.3, 0.7, 5).tolist())
"""0.3:0.1:0.7, as published for THUMOS'14."""


@dataclass(frozen=True, kw_only=True)
class DetectionScores:
    """Average precision of detected intervals.

    Attributes:
        tious: thresholds of temporal intersection over union, [n].
        average_precision: label -> AP at each threshold, [n] in [0, 1]; the labels are those of the truth.
        ignored_labels: labels that were detected and are in no true interval; they are in no mean.
    """

    tious: tuple[float, ...]
    average_precision: Mapping[str, tuple[float, ...]]
    ignored_labels: tuple[str, ...]

    @property
    def mean(self) -> tuple[float, ...]:
        """MAP at each threshold, [n]; NaN where there is no true interval."""
        if not self.average_precision:
            return (float("nan"),) * len(self.tious)
        return tuple(np.mean(list(self.average_precision.values()), axis=0).tolist())

    @property
    def average_map(self) -> float:
        """The mean of mAP over the thresholds; NaN where there is no true interval."""
        return float(np.mean(self.mean))


def detection_map(
    truth: Sequence[Interval], detections: Sequence[Detection], *, tious: Sequence[float] = ACTIVITYNET_TIOUS
) -> DetectionScores:
    """MAP over temporal intersection over union (tIoU), equal to the evaluation of ActivityNet.

    For each label, detections of all videos in falling score. Each takes, in its own video, the free true interval of
    its label with the largest tIoU that reaches the threshold; else it is false: repeated detections, and those in
    videos without the label or unknown to the truth. AP is the area under the precision, made non-increasing from the
    right (as in VOC from 2010 on). The mean is over the labels of the truth; a label without detections has AP 0.

    Args:
        truth: the true intervals.
        detections: the model's; of equal scores, the one that stands first counts first.
        tious: thresholds in (0, 1].

    Raises:
        ConfigError: no threshold, or one outside of (0, 1].

    Source: Caba Heilbron et al., ActivityNet (CVPR 2015); Evaluation/eval_detection.py of activitynet/ActivityNet.
    Differs: equal scores are taken in their order, where the published code's order depends on the machine; a label
        that is never true is ignored and named, where the published code raises.

    Example:
        >>> truth = [Interval(video_id="a", label="fall", start_seconds=2.0, end_seconds=4.0)]
        >>> found = [Detection(video_id="a", label="fall", start_seconds=2.0, end_seconds=5.0, score=0.9)]
        >>> detection_map(truth, found, tious=(0.5, 0.7)).mean
        (1.0, 0.0)
    """
    if not tious or not all(0 < tiou <= 1 for tiou in tious):
        raise ConfigError(f"tious must be numbers in (0, 1], got {list(tious)}.")
    labels = list(dict.fromkeys(interval.label for interval in truth))
    detected = list(dict.fromkeys(detection.label for detection in detections))
    return DetectionScores(
        tious=tuple(tious),
        average_precision={
            label: _average_precision(
                [interval for interval in truth if interval.label == label],
                [detection for detection in detections if detection.label == label],
                np.asarray(tious),
            )
            for label in labels
        },
        ignored_labels=tuple(label for label in detected if label not in set(labels)),
    )


def _average_precision(truth: list[Interval], detections: list[Detection], tious: Floats) -> tuple[float, ...]:
    """Of one label, at each threshold."""
    if not detections:
        return (0.0,) * len(tious)
    _, right = match_detections(truth, detections, tious.tolist())
    return tuple(_area(np.cumsum(hits), len(truth)) for hits in right)


def match_detections(
    truth: Sequence[Interval], detections: Sequence[Detection], tious: Sequence[float]
) -> tuple[list[int], Floats]:
    """Which detections of one label are right, as `detection_map` matches them.

    Args:
        truth: true intervals of the label.
        detections: of the label.
        tious: n thresholds.

    Returns:
        Indices of the detections in order of falling score; for these, [n, detections], 1 where right at a threshold.
    """
    by_video: dict[str, list[Interval]] = {}
    for interval in truth:
        by_video.setdefault(interval.video_id, []).append(interval)
    starts = {video: np.array([i.start_seconds for i in own], dtype=np.float64) for video, own in by_video.items()}
    ends = {video: np.array([i.end_seconds for i in own], dtype=np.float64) for video, own in by_video.items()}
    free = {video: np.ones((len(tious), len(own)), dtype=bool) for video, own in by_video.items()}
    right = np.zeros((len(tious), len(detections)))
    order = sorted(range(len(detections)), key=lambda index: -detections[index].score)
    for rank, index in enumerate(order):
        detection = detections[index]
        video = detection.video_id
        if video not in by_video:
            continue
        overlaps = temporal_iou(detection.start_seconds, detection.end_seconds, starts[video], ends[video])
        best_first = overlaps.argsort(kind="stable")[::-1]
        for level, tiou in enumerate(tious):
            for candidate in best_first:
                if overlaps[candidate] < tiou:
                    break
                if free[video][level, candidate]:
                    free[video][level, candidate] = False
                    right[level, rank] = 1.0
                    break
    return order, right


def _area(hits: Floats, num_true: int) -> float:
    """Area under precision over recall; precision is made non-increasing from the right."""
    recall = np.concatenate([[0.0], hits / num_true])
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope))
