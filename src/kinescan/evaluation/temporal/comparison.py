"""Whether one model's answers with a time are better than another's on the same videos, or differ by chance."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kinescan.data.intervals import Interval
from kinescan.errors import ConfigError
from kinescan.evaluation.temporal.alarm_sweep import alarms_of
from kinescan.evaluation.temporal.alarms import score_alarms
from kinescan.evaluation.temporal.bootstrap import (
    Score,
    alarm_scores,
    detection_map_score,
    frame_map_score,
    resamples,
)
from kinescan.evaluation.temporal.detection import THUMOS_TIOUS
from kinescan.evaluation.temporal.intervals import Detection
from kinescan.evaluation.temporal.scores import SOON_SECONDS
from kinescan.evaluation.temporal.thresholds import watched_hours
from kinescan.events.predictions import FramePredictions
from kinescan.events.rules import EventRules
from kinescan.runtime.escaping import escape_markdown

RESAMPLES = 2000
CONFIDENCE = 0.95
FEWEST_VIDEOS = 6
"""With fewer, no sign test could tell a gap from chance at 95 %, and the bootstrap's intervals are too narrow."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one model said of labelled videos.

    Attributes:
        name: of the model or its report.
        truth: video id -> its true intervals.
        detections: video id -> intervals that were found, with scores.
        predictions: scores of the frames; none where only detections are known.
        rules: when scores are an event.
        grace_seconds: how long after its end an event may still be told (see `score_alarms`).
    """

    name: str
    truth: Mapping[str, tuple[Interval, ...]]
    detections: Mapping[str, tuple[Detection, ...]]
    predictions: tuple[FramePredictions, ...] = ()
    rules: EventRules | None = None
    grace_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Gap:
    """One score of two models; A minus B.

    Attributes:
        score: its name.
        unit: "%", "s" or "1/h".
        more_is_better: whether a larger score is a better one.
        a: of A.
        b: of B.
        low: lower end of the bootstrap interval of A minus B.
        high: its upper end.
    """

    score: str
    unit: str
    more_is_better: bool
    a: float
    b: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """A minus B."""
        return self.a - self.b

    @property
    def is_open(self) -> bool:
        """Whether the interval holds 0, or cannot be computed."""
        return not (self.low > 0 or self.high < 0)


@dataclass(frozen=True, kw_only=True)
class TemporalComparison:
    """Scores of two models on the same videos.

    Attributes:
        name_a: of model A.
        name_b: of model B.
        num_videos: videos that both scored.
        num_only_a: videos that only A scored; no number here counts them.
        num_only_b: videos that only B scored.
        gaps: one entry a score.
        confidence: how often such an interval would hold the difference, were other videos sampled.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        notes: what one has to know beside the numbers.
    """

    name_a: str
    name_b: str
    num_videos: int
    num_only_a: int
    num_only_b: int
    gaps: tuple[Gap, ...]
    confidence: float
    resamples: int
    seed: int
    notes: tuple[str, ...] = ()

    def is_noise(self, gap: Gap) -> bool:
        """Whether a gap may well be nothing but which videos were sampled."""
        return gap.is_open or self.num_videos < FEWEST_VIDEOS

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain values, with what it means in a sentence."""
        gaps = [{**asdict(gap), "difference": gap.difference, "likely_noise": self.is_noise(gap)} for gap in self.gaps]
        return {"task": "intervals", **asdict(self), "gaps": gaps, "verdict": self.verdict()}

    def verdict(self) -> str:
        """What the numbers mean, in a sentence or two."""
        if all(gap.a == gap.b or gap.a != gap.a for gap in self.gaps):
            return f"Both have the same scores on {self.num_videos} videos: no gap to explain."
        real = [gap for gap in self.gaps if not self.is_noise(gap)]
        if self.num_videos < FEWEST_VIDEOS:
            return (
                f"{self.num_videos} videos are too few to tell a gap from chance: at least {FEWEST_VIDEOS} are needed, "
                "and many more for a small one."
            )
        if not real:
            return (
                f"All gaps on {self.num_videos} videos are likely noise: another sample of as many videos could close "
                "them or reverse them."
            )
        parts = []
        for name, better in ((self.name_a, True), (self.name_b, False)):
            own = [gap.score for gap in real if (gap.difference > 0) == (gap.more_is_better == better)]
            if own:
                parts.append(f"{name} is better in {', '.join(own)}")
        return (
            f"Unlikely to be noise on {self.num_videos} videos: {'; '.join(parts)}. The other gaps are likely noise. "
            "Whether another seed of training would say the same, this does not tell."
        )

    def to_markdown(self) -> str:
        """The comparison as a page."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield f"# {escape_markdown(self.name_a)} (A) against {escape_markdown(self.name_b)} (B)\n"
        yield f"| | A | B | A - B | {100 * self.confidence:.0f} % interval |\n|---|---:|---:|---:|---:|"
        for gap in self.gaps:
            values = " | ".join(_shown(value, gap.unit) for value in (gap.a, gap.b))
            mark = "" if self.is_noise(gap) else "**"
            difference = f"{mark}{_shown(gap.difference, gap.unit, signed=True)}{mark}"
            interval = f"{_shown(gap.low, gap.unit, signed=True)} to {_shown(gap.high, gap.unit, signed=True)}"
            yield f"| {gap.score} | {values} | {difference} | {interval} |"
        yield "\nGaps of percentages are in points; those in bold are unlikely to be noise."
        yield f"\n{escape_markdown(self.verdict())}"
        if self.num_only_a or self.num_only_b:
            yield (
                f"\n**Only the {self.num_videos} videos that both scored are compared**; "
                f"{self.num_only_a} more were scored for A only, {self.num_only_b} for B only."
            )
        for note in self.notes:
            yield f"\n**Note.** {escape_markdown(note)}"
        yield f"\nPaired bootstrap over {self.num_videos} videos, {self.resamples} resamples, seed {self.seed}."


def compare_answers(
    a: Answers, b: Answers, *, count: int = RESAMPLES, seed: int = 0, notes: Sequence[str] = ()
) -> TemporalComparison:
    """Scores of A minus those of B on the videos that both scored, with bootstrap intervals.

    Videos are resampled with replacement, each with the answers of both models: what is hard for both then does not
    widen the interval. Where scores of frames are known of both, per-frame mAP, missed events, delay and false alarms
    per hour are compared, each model at its own thresholds; always mAP over tIoU. Alarms after an event's end are right
    as long as for both; where the two differ, they are false.

    Args:
        a: what A said.
        b: what B said.
        count: resamples of the bootstrap.
        seed: of the bootstrap.
        notes: what one has to know beside the numbers.

    Raises:
        ConfigError: no video is in both, or they disagree on what is true of one.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), sect. 13.3 (percentile interval).
    """
    if count < 1:
        raise ConfigError(f"count must be at least 1, got {count}.")
    shared = [video for video in a.truth if video in b.truth]
    if not shared:
        raise ConfigError(
            f"{a.name} and {b.name} have no video in common: the first ids are {next(iter(a.truth), None)!r} and "
            f"{next(iter(b.truth), None)!r}. Score both on the same data: kinescan eval RUN --data LABELS."
        )
    _refuse_other_truth(a, b, shared)
    counts = np.concatenate([np.ones((1, len(shared))), resamples(len(shared), count, seed)])
    grace_seconds = a.grace_seconds if a.grace_seconds == b.grace_seconds else 0.0
    scores_a, scores_b = (_scores(answers, shared, grace_seconds) for answers in (a, b))
    gaps = []
    for name, (unit, more_is_better) in _KINDS.items():
        if name in scores_a and name in scores_b:
            values_a, values_b = scores_a[name](counts), scores_b[name](counts)
            low, high = _interval(values_a[1:] - values_b[1:])
            gaps.append(
                Gap(
                    score=name,
                    unit=unit,
                    more_is_better=more_is_better,
                    a=float(values_a[0]),
                    b=float(values_b[0]),
                    low=low,
                    high=high,
                )
            )
    return TemporalComparison(
        name_a=a.name,
        name_b=b.name,
        num_videos=len(shared),
        num_only_a=len(a.truth) - len(shared),
        num_only_b=len(b.truth) - len(shared),
        gaps=tuple(gaps),
        confidence=CONFIDENCE,
        resamples=count,
        seed=seed,
        notes=tuple(notes),
    )


_SOON = f"told within {SOON_SECONDS:g} s"
_KINDS = {
    "per-frame mAP": ("%", True),
    "mAP, tIoU 0.3:0.1:0.7": ("%", True),
    "mAP, tIoU 0.5": ("%", True),
    _SOON: ("%", True),
    "missed events": ("%", False),
    "median delay": ("s", False),
    "false alarms per hour": ("1/h", False),
}
"""Scores by their names: unit, and whether more is better."""


def _scores(answers: Answers, videos: Sequence[str], grace_seconds: float) -> dict[str, Score]:
    truth = {video: answers.truth[video] for video in videos}
    found: dict[str, Score] = {
        "mAP, tIoU 0.3:0.1:0.7": detection_map_score(truth, answers.detections, THUMOS_TIOUS),
        "mAP, tIoU 0.5": detection_map_score(truth, answers.detections, (0.5,)),
    }
    by_id = {one.video_id: one for one in answers.predictions}
    if answers.rules is None or not all(video in by_id for video in videos):
        return found
    predictions = [by_id[video] for video in videos]
    found["per-frame mAP"] = frame_map_score(predictions, truth)
    alarms = [
        score_alarms(
            truth[one.video_id],
            alarms_of(one, answers.rules),
            hours=max(watched_hours([one]), 1e-9),
            grace_seconds=grace_seconds,
        )
        for one in predictions
    ]
    by_name = alarm_scores(alarms, SOON_SECONDS)
    found |= {
        _SOON: by_name["soon"],
        "missed events": by_name["missed"],
        "median delay": by_name["delay"],
        "false alarms per hour": by_name["false_alarms_per_hour"],
    }
    return found


def _interval(differences: Any) -> tuple[float, float]:
    known = differences[~np.isnan(differences)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _refuse_other_truth(a: Answers, b: Answers, videos: Sequence[str]) -> None:
    def facts(intervals: Sequence[Interval]) -> list[tuple[str, float, float]]:
        return sorted((one.label, round(one.start_seconds, 6), round(one.end_seconds, 6)) for one in intervals)

    others = [video for video in videos if facts(a.truth[video]) != facts(b.truth[video])]
    if others:
        raise ConfigError(
            f"{len(others)} of {len(videos)} common videos have other labels for {a.name} than for {b.name}, the first "
            f"is {others[0]!r}. These are other data under the same ids; score both on the same labels."
        )


def _shown(value: float, unit: str, *, signed: bool = False) -> str:
    if value != value:
        return "-"
    sign = "+" if signed else ""
    if unit == "%":
        # gaps of percentages are points, as the page says
        return f"{100 * value:{sign}.1f}" if signed else f"{100 * value:.1f} %"
    return f"{value:{sign}.2f} s" if unit == "s" else f"{value:{sign}.2f}"
