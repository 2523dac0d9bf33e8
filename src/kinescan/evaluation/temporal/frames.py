from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kinescan.errors import ConfigError, NonFiniteError, ShapeError
from kinescan.evaluation.temporal.intervals import Floats


@dataclass(frozen=True, kw_only=True)
class FrameScores:
    """How well single frames were found, for each class with a positive frame.

    Attributes:
        average_precision: label -> AP in [0, 1]; chance is the ratio of positive frames.
        calibrated: label -> AP with calibrated precision in [0, 1]; chance is about 0.5.
        num_dropped: frames that were left out as ambiguous.
    """

    average_precision: Mapping[str, float]
    calibrated: Mapping[str, float]
    num_dropped: int

    @property
    def mean(self) -> float:
        """Per-frame mAP; NaN where no class has a positive frame."""
        return _mean(self.average_precision)

    @property
    def calibrated_mean(self) -> float:
        """Per-frame mcAP; NaN where no class has a positive frame."""
        return _mean(self.calibrated)


def frame_map(
    truth: ArrayLike,
    scores: ArrayLike,
    *,
    labels: Sequence[str],
    background: str | None = None,
    ambiguous: str | None = None,
) -> FrameScores:
    """Per-frame mAP and calibrated mAP, equal to the evaluation of online action detection.

    Args:
        truth: [N, K] of 0 and 1, the frames of all videos; several classes in a frame are allowed.
        scores: [N, K]; probabilities, since logits rank the frames of different videos differently.
        labels: [K], the names of the columns.
        background: the column that is in no mean; None: there is none.
        ambiguous: the column (of THUMOS'14) whose frames are left out for all classes; it is not a class itself.

    Raises:
        ShapeError: the arrays have other shapes.
        NonFiniteError: a score is NaN.
        ConfigError: a label is named twice, or background or ambiguous is not one of them.

    Source: De Geest et al., Online Action Detection (ECCV 2016); the published code of LSTR, TeSTra and MiniROAD.
    Differs: in the calibrated form equal scores count in the order of the frames, where the published code's order
        depends on the machine.

    Example:
        >>> truth = [[1, 0], [0, 1], [0, 1], [1, 0]]
        >>> found = frame_map(truth, [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]], labels=["none", "fall"],
        ...                   background="none")
        >>> round(found.mean, 4)
        0.8333
    """
    positive, values = np.asarray(truth).astype(bool), np.asarray(scores, dtype=np.float64)
    _check(positive, values, labels, background, ambiguous)
    kept = ~positive[:, labels.index(ambiguous)] if ambiguous is not None else np.ones(len(positive), dtype=bool)
    positive, values = positive[kept], values[kept]
    columns = {
        label: index
        for index, label in enumerate(labels)
        if label not in (background, ambiguous) and positive[:, index].any()
    }
    return FrameScores(
        average_precision={label: average_precision(positive[:, k], values[:, k]) for label, k in columns.items()},
        calibrated={label: calibrated_precision(positive[:, k], values[:, k]) for label, k in columns.items()},
        num_dropped=int((~kept).sum()),
    )


def average_precision(positive: NDArray[np.bool_], scores: Floats) -> float:
    """Sum of (R_n - R_n-1) * P_n over distinct scores, without interpolation; [N] and [N], one positive at least."""
    order = np.argsort(-scores, kind="stable")
    hits, ranked = np.cumsum(positive[order]), scores[order]
    last_of_equal = np.append(ranked[1:] != ranked[:-1], True)
    hits, ranks = hits[last_of_equal], np.flatnonzero(last_of_equal) + 1
    recall = np.concatenate([[0.0], hits / positive.sum()])
    return float(np.sum(np.diff(recall) * hits / ranks))


def calibrated_precision(positive: NDArray[np.bool_], scores: Floats) -> float:
    """Mean over positive frames of TP / (TP + FP / w), w negatives for each positive; [N] and [N], one positive."""
    ranked = positive[np.argsort(-scores, kind="stable")]
    hits = np.cumsum(ranked)
    num_positive = int(ranked.sum())
    num_negative = len(ranked) - num_positive
    if num_negative == 0:
        return 1.0
    # FP / w, w = negatives / positives
    false = np.cumsum(~ranked) * (num_positive / num_negative)
    calibrated = hits / np.maximum(hits + false, np.finfo(np.float64).tiny)
    return float(calibrated[ranked].mean())


def _mean(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values()))) if values else float("nan")


def _check(
    positive: NDArray[np.bool_], values: Floats, labels: Sequence[str], background: str | None, ambiguous: str | None
) -> None:
    if positive.ndim != 2 or positive.shape != values.shape or positive.shape[1] != len(labels):
        raise ShapeError(
            f"truth and scores must both be [N, {len(labels)}], one column for each label, got "
            f"{list(positive.shape)} and {list(values.shape)}."
        )
    if np.isnan(values).any():
        raise NonFiniteError(f"{int(np.isnan(values).any(axis=1).sum())} frames have a score that is NaN.")
    if len(set(labels)) != len(labels):
        raise ConfigError(f"labels must differ from each other, got {list(labels)}.")
    for name, label in (("background", background), ("ambiguous", ambiguous)):
        if label is not None and label not in labels:
            raise ConfigError(f"{name}={label!r} is not among the labels: {', '.join(labels)}.")
