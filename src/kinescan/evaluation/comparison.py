"""Whether one model is better than another on the same videos, or only luckier."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kinescan.errors import ConfigError
from kinescan.evaluation.predictions import VideoPrediction
from kinescan.runtime.escaping import escape_markdown
from kinescan.runtime.quantities import percent

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Top-1 of two models on the same videos, video by video; A minus B.

    Attributes:
        name_a: of model A.
        name_b: of model B.
        num_videos: videos that both scored.
        num_only_a: videos that only A scored; no number here counts them.
        num_only_b: videos that only B scored.
        top1_a: fraction of the common videos that A has right.
        top1_b: fraction that B has right.
        difference: top1_a - top1_b.
        low: lower end of the bootstrap interval of the difference.
        high: its upper end.
        confidence: how often such an interval would hold the difference, were other videos sampled.
        num_better: videos that A has right and B wrong.
        num_worse: videos that B has right and A wrong.
        sign_test_p: how often a gap at least as large would come by chance, were both equally good (two-sided).
        resamples: samples of the bootstrap.
        seed: of the bootstrap's samples.
        notes: what one has to know beside the numbers.
    """

    name_a: str
    name_b: str
    num_videos: int
    num_only_a: int
    num_only_b: int
    top1_a: float
    top1_b: float
    difference: float
    low: float
    high: float
    confidence: float
    num_better: int
    num_worse: int
    sign_test_p: float
    resamples: int
    seed: int
    notes: tuple[str, ...] = ()

    @property
    def likely_noise(self) -> bool:
        """Whether the gap may well be nothing but which videos were sampled.

        It is unless both say otherwise: the interval, and the sign test, which does not trust few videos.
        """
        return self.low <= 0 <= self.high or self.sign_test_p >= 1 - self.confidence

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain values, with what it means in a sentence."""
        return {**asdict(self), "likely_noise": self.likely_noise, "verdict": self.verdict()}

    def verdict(self) -> str:
        """What the numbers mean, in a sentence or two."""
        points, low, high = (100 * value for value in (self.difference, self.low, self.high))
        gap = f"{points:+.1f} points ({100 * self.confidence:.0f} % interval {low:+.1f} to {high:+.1f})"
        if self.num_better == self.num_worse == 0:
            return f"Both are right and wrong on the same {self.num_videos} videos: no gap to explain."
        if self.likely_noise:
            return (
                f"The gap of {gap} on {self.num_videos} videos is likely noise: another sample of as many videos "
                "could close it or turn it round."
            )
        better = self.name_a if self.difference > 0 else self.name_b
        return (
            f"The gap of {gap} on {self.num_videos} videos is unlikely to be noise: {better} is better on such videos. "
            "Whether another seed of training would say the same, this does not tell."
        )

    def to_markdown(self) -> str:
        """The comparison as a page."""
        rows = [
            f"# {escape_markdown(self.name_a)} (A) against {escape_markdown(self.name_b)} (B)\n",
            "| | |\n|---|---|",
            f"| top-1 of A | {percent(self.top1_a)} |",
            f"| top-1 of B | {percent(self.top1_b)} |",
            f"| A minus B | **{100 * self.difference:+.1f} points** |",
            f"| {100 * self.confidence:.0f} % interval | {100 * self.low:+.1f} to {100 * self.high:+.1f} points |",
            f"| videos | {self.num_videos} |",
            f"| right in A only, in B only | {self.num_better}, {self.num_worse} |",
            f"| sign test | p = {self.sign_test_p:.2g} |",
            f"\n{self.verdict()}",
        ]
        if self.num_only_a or self.num_only_b:
            rows.append(
                f"\n**Only the {self.num_videos} videos that both scored are compared**; "
                f"{self.num_only_a} more were scored for A only, {self.num_only_b} for B only."
            )
        rows += [f"\n**Note.** {escape_markdown(note)}" for note in self.notes]
        rows.append(f"\nPaired bootstrap over videos, {self.resamples} resamples, seed {self.seed}.")
        return "\n".join(rows) + "\n"


def compare(
    a: Sequence[VideoPrediction],
    b: Sequence[VideoPrediction],
    *,
    name_a: str,
    name_b: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Comparison:
    """Top-1 of A minus top-1 of B on the videos that both scored, with a bootstrap interval.

    Videos are resampled with replacement, each with the predictions of both models: what is hard for both then does not
    widen the interval.

    Args:
        a: what A said of its videos.
        b: what B said of its videos, in any order.
        name_a: how to name A.
        name_b: how to name B.
        resamples: samples of the bootstrap.
        seed: of the bootstrap's samples.
        notes: what one has to know beside the numbers.

    Raises:
        ConfigError: no video is in both, a video stands twice in one, or they disagree on a video's label.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), sect. 13.3 (percentile interval).
    Differs: the mean of a resample of -1, 0 and 1 depends on their counts only, which are multinomial: sampling the
        counts gives the same distribution and costs nothing.

    Example:
        >>> right = [VideoPrediction(video_id=str(i), label="x", prediction="x") for i in range(100)]
        >>> half = [VideoPrediction(video_id=str(i), label="x", prediction="xy"[i % 2]) for i in range(100)]
        >>> found = compare(right, half, name_a="A", name_b="B")
        >>> found.difference, found.num_better, found.likely_noise
        (0.5, 50, False)
    """
    if resamples < 1:
        raise ConfigError(f"resamples must be at least 1, got {resamples}.")
    own, other = _by_id(a, name_a), _by_id(b, name_b)
    shared = [video_id for video_id in own if video_id in other]
    if not shared:
        raise ConfigError(
            f"{name_a} and {name_b} have no video in common: the first ids are {next(iter(own), None)!r} and "
            f"{next(iter(other), None)!r}. Score both on the same data: kinescan eval RUN --data VIDEOS."
        )
    _refuse_other_labels([(own[video_id], other[video_id]) for video_id in shared], name_a, name_b)
    differences = np.array([int(own[video_id].right) - int(other[video_id].right) for video_id in shared])
    num_better, num_worse = int((differences > 0).sum()), int((differences < 0).sum())
    low, high = _interval(num_better, num_worse, len(shared), resamples=resamples, seed=seed)
    return Comparison(
        name_a=name_a,
        name_b=name_b,
        num_videos=len(shared),
        num_only_a=len(own) - len(shared),
        num_only_b=len(other) - len(shared),
        top1_a=sum(own[video_id].right for video_id in shared) / len(shared),
        top1_b=sum(other[video_id].right for video_id in shared) / len(shared),
        difference=float(differences.mean()),
        low=low,
        high=high,
        confidence=CONFIDENCE,
        num_better=num_better,
        num_worse=num_worse,
        sign_test_p=sign_test(num_better, num_worse),
        resamples=resamples,
        seed=seed,
        notes=tuple(notes),
    )


def sign_test(num_better: int, num_worse: int) -> float:
    """How often a gap at least as large would come by chance, were either outcome equally likely; two-sided, exact.

    Example:
        >>> sign_test(5, 0), sign_test(3, 3), sign_test(0, 0)
        (0.0625, 1.0, 1.0)
    """
    total, fewer = num_better + num_worse, min(num_better, num_worse)
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) - total * math.log(2)
        for k in range(fewer + 1)
    ]
    return min(1.0, round(2 * math.fsum(map(math.exp, logs)), 12))


def _interval(num_better: int, num_worse: int, num_videos: int, *, resamples: int, seed: int) -> tuple[float, float]:
    fractions = np.array([num_better, num_worse, num_videos - num_better - num_worse]) / num_videos
    counts = np.random.default_rng(seed).multinomial(num_videos, fractions, size=resamples)
    means = (counts[:, 0] - counts[:, 1]) / num_videos
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _by_id(predictions: Sequence[VideoPrediction], name: str) -> dict[str, VideoPrediction]:
    found: dict[str, VideoPrediction] = {}
    for prediction in predictions:
        if prediction.video_id in found:
            raise ConfigError(
                f"{name}: {prediction.video_id!r} is there twice, so it is unknown which of the two counts. Score "
                "the model again on data that lists each video once."
            )
        found[prediction.video_id] = prediction
    return found


def _refuse_other_labels(pairs: Sequence[tuple[VideoPrediction, VideoPrediction]], name_a: str, name_b: str) -> None:
    others = [pair for pair in pairs if pair[0].label != pair[1].label]
    if others:
        first, second = others[0]
        raise ConfigError(
            f"{len(others)} of {len(pairs)} shared videos have other labels: {first.video_id!r} is {first.label!r} for "
            f"{name_a} and {second.label!r} for {name_b}. These are other data under the same ids; score both on the "
            "same ones."
        )
