"""Numbers from scores and labels.

Plain torch: torchmetrics imports torchvision and transformers with itself, so that a torchvision which does not load
would take evaluation down with it. The tests compare every number with torchmetrics.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kinescan.errors import ShapeError

Scores = Float[Tensor, "n K"]
"""Probability of each class for each video; rows sum to 1."""
ClassIndices = Int[Tensor, " n"]
"""One class index a video."""
ConfusionMatrix = Int[Tensor, "K K"]
"""How many videos of the row's class were taken for the column's class."""

CALIBRATION_BINS = 15


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """How one class did.

    Attributes:
        label: its text.
        num_videos: how many videos of it were scored.
        num_right: how many of them were predicted as it.
        accuracy: num_right over num_videos, in [0, 1]; None without videos.
    """

    label: str
    num_videos: int
    num_right: int
    accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """One kind of mistake.

    Attributes:
        label: the true class.
        taken_for: the class predicted instead.
        num_videos: how often.
        ratio: num_videos over all videos of the true class, in (0, 1].
    """

    label: str
    taken_for: str
    num_videos: int
    ratio: float


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """The videos whose best class has a score in one range.

    Attributes:
        low: lower end of the range.
        high: its upper end.
        num_videos: how many there are.
        confidence: mean score of their best class; None without videos.
        accuracy: fraction of them that are right; None without videos.
    """

    low: float
    high: float
    num_videos: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """All numbers of one evaluation; ratios in [0, 1].

    Attributes:
        num_videos: how many videos were scored.
        top1: fraction of videos whose best class is right.
        top5: fraction of videos whose label is among the `top5_classes` best.
        top5_classes: 5, or the number of classes where there are fewer.
        mean_class_accuracy: mean of the classes' accuracies, over classes that have videos.
        calibration_error: expected calibration error, 15 bins.
        reliability: those bins, from the lowest scores to the highest.
        classes: one entry a class, in the order of the scores.
        confusions: the commonest mistakes, first the commonest.
        loss: see `log_loss`.
    """

    num_videos: int
    top1: float
    top5: float
    top5_classes: int
    mean_class_accuracy: float
    calibration_error: float
    reliability: tuple[ReliabilityBin, ...]
    classes: tuple[ClassScore, ...]
    confusions: tuple[Confusion, ...]
    loss: float


def compute_metrics(scores: Scores, targets: ClassIndices, labels: Sequence[str], *, confusions: int = 10) -> Metrics:
    """Every number for one set of videos.

    Args:
        scores: [n, K], probabilities.
        targets: [n] int64, the true classes.
        labels: the K classes' texts.
        confusions: how many kinds of mistakes to list.

    Raises:
        ShapeError: the sizes do not fit each other, or there is no video.

    Example:
        >>> scores = torch.tensor([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]])
        >>> metrics = compute_metrics(scores, torch.tensor([0, 1, 1]), ["left", "right"])
        >>> round(metrics.top1, 3), metrics.top5, metrics.top5_classes, metrics.confusions[0].taken_for
        (0.667, 1.0, 2, 'left')
    """
    _check(scores, targets)
    if len(labels) != scores.shape[1]:
        raise ShapeError(f"{len(labels)} labels were given for scores of {scores.shape[1]} classes. Give one a class.")
    matrix = confusion_matrix(scores.argmax(1), targets, num_classes=scores.shape[1])
    per_class = class_accuracies(matrix)
    return Metrics(
        num_videos=len(targets),
        top1=top_accuracy(scores, targets),
        top5=top_accuracy(scores, targets, top=5),
        top5_classes=min(5, scores.shape[1]),
        mean_class_accuracy=float(per_class.nanmean()),
        calibration_error=calibration_error(scores, targets),
        reliability=reliability(scores, targets),
        classes=tuple(
            ClassScore(
                label=label,
                num_videos=int(matrix[k].sum()),
                num_right=int(matrix[k, k]),
                accuracy=None if math.isnan(per_class[k]) else float(per_class[k]),
            )
            for k, label in enumerate(labels)
        ),
        confusions=most_confused(matrix, labels, limit=confusions),
        loss=log_loss(scores, targets),
    )


def log_loss(scores: Scores, targets: ClassIndices) -> float:
    """Cross-entropy of the true classes, in nats: the mean of -log of their probabilities; 0 is perfect.

    Of several views it is that of the averaged probabilities, without the label smoothing of the training.

    Raises:
        ShapeError: the sizes do not fit each other, or there is no video.

    Example:
        >>> round(log_loss(torch.tensor([[0.5, 0.5], [0.25, 0.75]]), torch.tensor([0, 1])), 4)
        0.4904
    """
    _check(scores, targets)
    own = scores.gather(1, targets[:, None]).double()
    return float(-own.clamp(min=torch.finfo(torch.float64).tiny).log().mean())


def top_accuracy(scores: Scores, targets: ClassIndices, *, top: int = 1) -> float:
    """The fraction of videos whose label is among the `top` best classes; among all classes where there are fewer.

    Equal scores are ranked in the order of the classes.

    Raises:
        ShapeError: the sizes do not fit each other, or there is no video.

    Example:
        >>> top_accuracy(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]]), torch.tensor([1, 2]), top=2)
        1.0
    """
    _check(scores, targets)
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :top]
    return float((best == targets[:, None]).any(1).double().mean())


def confusion_matrix(predictions: ClassIndices, targets: ClassIndices, *, num_classes: int) -> ConfusionMatrix:
    """[K, K] int64: how many videos of the row's class were taken for the column's class.

    Example:
        >>> confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), num_classes=2).tolist()
        [[1, 0], [1, 1]]
    """
    flat = targets * num_classes + predictions
    return torch.bincount(flat, minlength=num_classes**2).view(num_classes, num_classes)


def class_accuracies(matrix: ConfusionMatrix) -> Tensor:
    """[K] float64: the fraction of each class's videos that are right; NaN for a class without videos."""
    return matrix.diagonal().double() / matrix.sum(1)


def most_confused(matrix: ConfusionMatrix, labels: Sequence[str], *, limit: int = 10) -> tuple[Confusion, ...]:
    """The commonest mistakes, first the commonest; at most `limit`, none with a count of zero."""
    mistakes = matrix.clone().fill_diagonal_(0)
    order = mistakes.flatten().argsort(descending=True, stable=True)[:limit].tolist()
    cells = [divmod(flat, len(labels)) for flat in order]
    return tuple(
        Confusion(
            label=labels[row],
            taken_for=labels[column],
            num_videos=int(mistakes[row, column]),
            ratio=int(mistakes[row, column]) / int(matrix[row].sum()),
        )
        for row, column in cells
        if mistakes[row, column] > 0
    )


def calibration_error(scores: Scores, targets: ClassIndices, *, bins: int = CALIBRATION_BINS) -> float:
    """How far confidence and accuracy lie apart, in [0, 1]; 0 is perfectly calibrated.

    Videos are put into equal bins by the score of their best class; the result is the mean over videos of the distance
    between a bin's mean score and its accuracy.

    Raises:
        ShapeError: the sizes do not fit each other, or there is no video.

    Source: On Calibration of Modern Neural Networks (arXiv 1706.04599), eq. 3.
    """
    found = reliability(scores, targets, bins=bins)
    return sum(
        entry.num_videos / len(targets) * abs(entry.confidence - entry.accuracy)
        for entry in found
        if entry.confidence is not None and entry.accuracy is not None
    )


def reliability(scores: Scores, targets: ClassIndices, *, bins: int = CALIBRATION_BINS) -> tuple[ReliabilityBin, ...]:
    """How often videos are right whose best class has a score in a range: the score itself where a model is calibrated.

    Args:
        scores: [n, K], probabilities.
        targets: [n] int64, the true classes.
        bins: equal ranges of [0, 1]; a score on a border belongs to the higher one.

    Raises:
        ShapeError: the sizes do not fit each other, or there is no video.

    Example:
        >>> scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> for entry in reliability(scores, torch.tensor([0, 1, 1]), bins=4):
        ...     print(entry.low, entry.num_videos, entry.accuracy)
        0.0 0 None
        0.25 0 None
        0.5 1 1.0
        0.75 2 0.5
    """
    _check(scores, targets)
    confidence, predictions = scores.double().max(1)
    right = (predictions == targets).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    bin_of = (torch.bucketize(confidence.clamp(0, 1), edges, right=True) - 1).clamp(max=bins - 1)
    counts = torch.bincount(bin_of, minlength=bins).tolist()
    sums = torch.zeros(2, bins, dtype=torch.float64).index_add_(1, bin_of, torch.stack([confidence, right])).tolist()
    return tuple(
        ReliabilityBin(
            low=low,
            high=high,
            num_videos=count,
            confidence=confident / count if count else None,
            accuracy=correct / count if count else None,
        )
        for low, high, count, confident, correct in zip(
            edges[:-1].tolist(), edges[1:].tolist(), counts, *sums, strict=True
        )
    )


def pair_accuracy(scores: Scores, targets: ClassIndices, pairs: Sequence[tuple[int, int]]) -> float:
    """The fraction of videos that are right when only their own pair is to be told apart.

    With pairs of an action and its reverse in time, a model that does not use the order of frames stays at one half,
    however well it tells the pairs from each other.

    Args:
        scores: [n, K].
        targets: [n] int64, the true classes.
        pairs: class indices; a class may be in one pair only. Videos of other classes are left out.

    Returns:
        A ratio in [0, 1]; equal scores count one half.

    Raises:
        ShapeError: the sizes do not fit each other, no video belongs to a pair, or a class is in two pairs.

    Example:
        >>> scores = torch.tensor([[0.1, 0.2, 0.7], [0.4, 0.3, 0.3]])
        >>> pair_accuracy(scores, torch.tensor([1, 0]), [(0, 1)])
        1.0
    """
    _check(scores, targets)
    partner = {a: b for first, second in pairs for a, b in ((first, second), (second, first))}
    if len(partner) != 2 * len(pairs) or not all(0 <= index < scores.shape[1] for index in partner):
        raise ShapeError(f"pairs must name different classes of the {scores.shape[1]}, each once, got {list(pairs)}.")
    inside = [row for row, target in enumerate(targets.tolist()) if target in partner]
    if not inside:
        raise ShapeError(f"none of the {len(targets)} videos belongs to a class of the pairs {list(pairs)}.")
    own = scores[inside, targets[inside]]
    other = scores[inside, [partner[target] for target in targets[inside].tolist()]]
    return float(((own > other).double() + 0.5 * (own == other).double()).mean())


def _check(scores: Tensor, targets: Tensor) -> None:
    if scores.ndim != 2 or targets.ndim != 1 or len(scores) != len(targets):
        raise ShapeError(
            f"scores must be [n, K] and targets [n], got {list(scores.shape)} and {list(targets.shape)}. "
            "Give one row of scores and one class index a video."
        )
    if len(scores) == 0:
        raise ShapeError("no video to score: scores have no rows.")
