from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kinescan.data.intervals import Interval
from kinescan.errors import ConfigError
from kinescan.evaluation.temporal.intervals import Detection

TOLERANCES_SECONDS = tuple(float(seconds) for seconds in range(1, 11))
NUM_POINTS = 11


@dataclass(frozen=True, kw_only=True)
class StartScores:
    """Point-level AP of detected starts.

    Attributes:
        tolerances_seconds: how far a detection may be from the start, [n].
        average_precision: label -> AP at each tolerance, [n] in [0, 1].
    """

    tolerances_seconds: tuple[float, ...]
    average_precision: Mapping[str, tuple[float, ...]]

    @property
    def mean(self) -> tuple[float, ...]:
        """Point-level mAP at each tolerance, [n]; NaN without labels."""
        if not self.average_precision:
            return (float("nan"),) * len(self.tolerances_seconds)
        return tuple(np.mean(list(self.average_precision.values()), axis=0).tolist())


def start_map(
    truth: Sequence[Interval],
    detections: Sequence[Detection],
    *,
    labels: Sequence[str],
    tolerances_seconds: Sequence[float] = TOLERANCES_SECONDS,
    depth: float = 1.0,
) -> StartScores:
    """Point-level mAP of the starts of actions, equal to the evaluation of online detection of action start.

    In falling score, a detection is right when the nearest true start of its label in its video is at most the
    tolerance away, early or late, and not taken; else it is false. AP is the mean of the largest precision at a recall
    of at least 0, depth / 10, ..., depth.

    Args:
        truth: the true intervals; their starts count.
        detections: the model's; their starts count. Of equal scores, the one that stands first counts first.
        labels: the classes of the mean; one without a true start has AP 0.
        tolerances_seconds: each at least 0.
        depth: largest recall that counts, in (0, 1].

    Raises:
        ConfigError: depth or a tolerance is out of range.

    Source: Shou et al., ODAS (ECCV 2018); Gao et al., StartNet (ICCV 2019); utils.py of salesforce/woad-pytorch.

    Example:
        >>> truth = [Interval(video_id="a", label="fall", start_seconds=2.0, end_seconds=4.0)]
        >>> found = [Detection(video_id="a", label="fall", start_seconds=3.5, end_seconds=4.0, score=0.9)]
        >>> [round(value, 6) for value in start_map(truth, found, labels=["fall"], tolerances_seconds=(1, 2)).mean]
        [0.0, 1.0]
    """
    if not 0 < depth <= 1:
        raise ConfigError(f"depth must lie in (0, 1], got {depth}.")
    if not all(seconds >= 0 for seconds in tolerances_seconds):
        raise ConfigError(f"tolerances_seconds must be 0 or more, got {list(tolerances_seconds)}.")
    return StartScores(
        tolerances_seconds=tuple(tolerances_seconds),
        average_precision={
            label: tuple(_average_precision(truth, detections, label, seconds, depth) for seconds in tolerances_seconds)
            for label in labels
        },
    )


def _average_precision(
    truth: Sequence[Interval], detections: Sequence[Detection], label: str, tolerance: float, depth: float
) -> float:
    starts: dict[str, list[float]] = {}
    for interval in truth:
        if interval.label == label:
            starts.setdefault(interval.video_id, []).append(interval.start_seconds)
    num_true = sum(map(len, starts.values()))
    own = sorted((one for one in detections if one.label == label), key=lambda one: -one.score)
    if not num_true or not own:
        return 0.0
    taken: set[tuple[str, int]] = set()
    hits = []
    for detection in own:
        distances = [abs(start - detection.start_seconds) for start in starts.get(detection.video_id, [])]
        nearest = min(range(len(distances)), key=distances.__getitem__, default=-1)
        match = (detection.video_id, nearest)
        right = nearest >= 0 and distances[nearest] <= tolerance and match not in taken
        if right:
            taken.add(match)
        hits.append(float(right))
    found = np.cumsum(hits)
    recall, precision = found / num_true, found / np.arange(1, len(hits) + 1)
    points = np.arange(NUM_POINTS) * (depth / (NUM_POINTS - 1))
    reached = [precision[recall >= point] for point in points]
    return float(sum(part.max() / NUM_POINTS for part in reached if part.size))
