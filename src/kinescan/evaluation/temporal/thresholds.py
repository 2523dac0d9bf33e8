"""Thresholds and times of events, chosen on videos that neither trained nor test the model."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import median

import numpy as np
from numpy.typing import NDArray

from kinescan.data.intervals import Interval
from kinescan.errors import ConfigError
from kinescan.evaluation.temporal.alarm_sweep import AlarmSweep
from kinescan.evaluation.temporal.alarms import AlarmScores, score_alarms
from kinescan.evaluation.temporal.truth import refuse_unknown_labels
from kinescan.events.predictions import FramePredictions
from kinescan.events.rules import ClassRules, EventRules
from kinescan.shapes import BACKGROUND

_HIGH = (0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.9925, 0.995, 0.9975, 0.999)
ON = (0.05, *(round(0.1 * step, 1) for step in range(1, 10)), *_HIGH)
"""Thresholds that are tried, of every class."""
QUANTILES = (0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
"""Quantiles of a class's scores that are tried as thresholds, too, since scores of rare events can all be low."""
LEAST_SECONDS = (0.0, 0.2, 0.5)
MERGE_SECONDS = (0.5, 1.0, 2.0)
SMOOTH_SECONDS = (0.0, 0.15, 0.4)
"""Times of `EventRules` that are tried, in all combinations."""
SHARED_EVENTS = 2.0
"""How much the alarms of all classes together weigh in the choice of a class's threshold: as much as so many events."""
AS_GOOD = 0.01
"""Times whose mean F1 is at most so much lower are as good, and the ones with the shorter delays are taken."""


@dataclass(frozen=True, kw_only=True)
class ChosenRules:
    """Rules and what they reach on the videos that they were chosen on.

    Attributes:
        rules: thresholds and times.
        scores: alarms of these videos.
        f1: label -> F1 of its alarms, in [0, 1].
        silent: classes without a threshold at which at least half of their alarms on these videos are right.
        without_intervals: classes without a true interval here; their threshold is the median of the others'.
    """

    rules: EventRules
    scores: AlarmScores
    f1: Mapping[str, float]
    silent: tuple[str, ...]
    without_intervals: tuple[str, ...]


def choose_rules(
    predictions: Sequence[FramePredictions],
    truth: Mapping[str, Sequence[Interval]],
    *,
    most_false_alarms_per_hour: float | None = None,
    told_within_seconds: float = math.inf,
    grace_seconds: float = 0.0,
) -> ChosenRules:
    """The rules under which alarms tell best of the true events of some videos; give validation videos, not test ones.

    Thresholds are tried from 0.05 to 0.999 and at quantiles of the scores of a class. For each class it is one at which
    half or more of its alarms are right (matched to true intervals as `score_alarms` does); where there is none, one
    that tells of nothing here. Of these it is the one with the highest mean of two F1: of its own alarms, which weighs
    as many as it has events, and of all classes' alarms under that same threshold, which weighs two. So one or two
    events of a class do not choose alone. In a range of equally good thresholds it is the middle. The times are the
    same for all classes: of those with the best mean over classes (within 0.01), the ones with the shortest median
    delay.

    Args:
        predictions: of the videos, by one model.
        truth: video id -> its true intervals; a video in which nothing happens has none.
        most_false_alarms_per_hour: choose the thresholds that together tell of the most events of all classes (the mean
            recall over classes) at no more false alarms, instead of F1. A class that can use them gets more of them.
        told_within_seconds: beside it: only events that are told so soon after their onset count.
        grace_seconds: how long after its end an event may still be told (see `score_alarms`).

    Raises:
        ConfigError: there is no video or no interval, a video has no truth, or a label is unknown to the model.

    Example:
        >>> import numpy as np
        >>> scores = np.array([[0.9, 0.1]] * 5 + [[0.3, 0.7]] * 10 + [[0.6, 0.4]] * 5, dtype=np.float32)
        >>> found = choose_rules(
        ...     [FramePredictions(video_id="a", seconds=np.arange(20) / 10, scores=scores,
        ...                       classes=("background", "fall"), end_seconds=2.0)],
        ...     {"a": [Interval(video_id="a", label="fall", start_seconds=0.5, end_seconds=1.5)]},
        ... )
        >>> found.f1["fall"], found.rules.of("fall").on
        (1.0, 0.4)
    """
    intervals, classes, hours = _checked(predictions, truth)
    sweeps = [AlarmSweep(one) for one in predictions]
    shown = [label for label in classes if any(one.label == label for one in intervals)]
    most_false = None if most_false_alarms_per_hour is None else math.floor(most_false_alarms_per_hour * hours + 1e-9)
    tried_on = {label: _candidates(predictions, label) for label in shown}
    score = partial(_scored, sweeps, hours=hours, grace_seconds=grace_seconds)
    tried = [
        _with_times(
            score,
            intervals,
            tried_on,
            EventRules(least_seconds=least, merge_seconds=merge, smooth_seconds=smooth),
            most_false,
            told_within_seconds,
        )
        for least, merge, smooth in product(LEAST_SECONDS, MERGE_SECONDS, SMOOTH_SECONDS)
    ]
    best = max(value for value, _, _ in tried)
    _, _, rules = min((one for one in tried if one[0] >= best - AS_GOOD), key=lambda one: (one[1], -one[0]))
    alarms = [alarm for sweep in sweeps for alarm in sweep.alarms(rules)]
    f1 = {label: alarm_f1(score(intervals, label, rules)) for label in shown}
    return ChosenRules(
        rules=rules,
        scores=score_alarms(intervals, alarms, hours=hours, grace_seconds=grace_seconds),
        f1=f1,
        silent=tuple(label for label, value in f1.items() if not value),
        without_intervals=tuple(label for label in classes if label not in shown),
    )


def alarm_f1(scores: AlarmScores) -> float:
    """2 right / (2 right + false + missed), in [0, 1]; 0 where there is neither a true interval nor an alarm."""
    return _f1(scores.num_true, scores.num_missed, scores.num_false)


def _f1(num_true: int, num_missed: int, num_false: int) -> float:
    right = num_true - num_missed
    return 2 * right / (2 * right + num_false + num_missed) if right else 0.0


def watched_hours(predictions: Iterable[FramePredictions]) -> float:
    """Hours of video from each first frame to the end, with and without events."""
    return sum(max(0.0, one.end_seconds - float(one.seconds[0])) for one in predictions if len(one.seconds)) / 3600


def _checked(
    predictions: Sequence[FramePredictions], truth: Mapping[str, Sequence[Interval]]
) -> tuple[list[Interval], list[str], float]:
    absent = [one.video_id for one in predictions if one.video_id not in truth]
    if absent:
        raise ConfigError(f"{len(absent)} videos have no truth, the first is {absent[0]!r}. Thresholds need labels.")
    intervals = [interval for one in predictions for interval in truth[one.video_id]]
    hours = watched_hours(predictions)
    if not intervals or not hours > 0:
        raise ConfigError(
            f"thresholds need at least one event: {len(intervals)} intervals in {len(predictions)} videos were given. "
            "Choose them on videos in which something happens."
        )
    classes = [label for label in predictions[0].classes if label != BACKGROUND]
    refuse_unknown_labels(intervals, classes)
    return intervals, classes, hours


def _candidates(predictions: Sequence[FramePredictions], label: str) -> list[float]:
    """Thresholds to try for a class, ascending."""
    scores = np.concatenate([one.scores[:, one.classes.index(label)] for one in predictions]).astype(np.float64)
    own = [float(f"{value:.3g}") for value in np.quantile(scores, QUANTILES)]
    return sorted({value for value in (*ON, *own) if 0 < value <= 1})


def _with_times(
    score: Callable[[Sequence[Interval], str, EventRules], AlarmScores],
    intervals: Sequence[Interval],
    tried_on: Mapping[str, Sequence[float]],
    times: EventRules,
    most_false: int | None,
    told_within_seconds: float,
) -> tuple[float, float, EventRules]:
    """The mean of what the classes reach, their median delay, and the rules."""
    tried = {label: _tried(score, intervals, label, on, times) for label, on in tried_on.items()}
    if most_false is None:
        together = _together(tried)
        found = {
            label: _best([(on, one, _worth(on, one, together)) for on, one in ones]) for label, ones in tried.items()
        }
    else:
        found = _best_together(tried, most_false, told_within_seconds)
    delays = [delay for _, scores, _ in found.values() for delay in scores.delays_seconds]
    rules = EventRules(
        on=median(on for on, _, _ in found.values()),
        least_seconds=times.least_seconds,
        merge_seconds=times.merge_seconds,
        smooth_seconds=times.smooth_seconds,
        classes={label: ClassRules(on=on) for label, (on, _, _) in found.items()},
    )
    mean = sum(value for _, _, value in found.values()) / len(found)
    return mean, median(delays) if delays else float("inf"), rules


def _tried(
    score: Callable[[Sequence[Interval], str, EventRules], AlarmScores],
    intervals: Sequence[Interval],
    label: str,
    tried_on: Sequence[float],
    times: EventRules,
) -> list[tuple[float, AlarmScores]]:
    """What the alarms of a class reach at each threshold."""
    own = [interval for interval in intervals if interval.label == label]
    found = []
    for on in tried_on:
        rules = EventRules(
            on=on,
            least_seconds=times.least_seconds,
            merge_seconds=times.merge_seconds,
            smooth_seconds=times.smooth_seconds,
        )
        found.append((on, score(own, label, rules)))
    return found


def _together(tried: Mapping[str, Sequence[tuple[float, AlarmScores]]]) -> list[float]:
    """F1 of the alarms of all classes under one threshold, at each of `ON`."""
    found = []
    for on in ON:
        every = [scores for ones in tried.values() for value, scores in ones if value == on]
        found.append(
            _f1(*(sum(getattr(one, name) for one in every) for name in ("num_true", "num_missed", "num_false")))
        )
    return found


def _worth(on: float, scores: AlarmScores, together: Sequence[float]) -> float:
    """What a threshold of a class is worth, in [0, 1]; less than 0 where more than half of the alarms are false.

    Args:
        on: the threshold.
        scores: of the class's alarms.
        together: see `_together`.
    """
    right = scores.num_true - scores.num_missed
    if right < scores.num_false or not right:
        return float(min(right - scores.num_false, 0))
    # scores below all of ON are those of frames without events, but for a class whose scores are all low
    shared = float(np.interp(on, ON, together, left=0.0))
    return (scores.num_true * alarm_f1(scores) + SHARED_EVENTS * shared) / (scores.num_true + SHARED_EVENTS)


def _best(tried: Sequence[tuple[float, AlarmScores, float]]) -> tuple[float, AlarmScores, float]:
    """The threshold of the highest value; in a range of equally good ones, the middle."""
    best = max(value for _, _, value in tried)
    return tried[_middle([value == best for _, _, value in tried])]


def _best_together(
    tried: Mapping[str, Sequence[tuple[float, AlarmScores]]], most_false: int, told_within_seconds: float
) -> dict[str, tuple[float, AlarmScores, float]]:
    """Of each class, the threshold such that they tell of the most events at `most_false` false alarms in all.

    Where even the strictest have more, the strictest.
    """
    brings = {label: _told_at((scores for _, scores in ones), told_within_seconds) for label, ones in tried.items()}
    fewest = {label: min(told) for label, told in brings.items()}
    over = sum(fewest.values()) - most_false
    chosen = fewest if over > 0 else _shared(brings, most_false)

    def value(label: str, scores: AlarmScores) -> float:
        if scores.num_false != chosen[label]:
            return -math.inf
        return -float(over) if over > 0 else scores.told_within(told_within_seconds)

    return {label: _best([(on, scores, value(label, scores)) for on, scores in ones]) for label, ones in tried.items()}


def _told_at(every: Iterable[AlarmScores], told_within_seconds: float) -> dict[int, float]:
    """Number of false alarms -> the largest fraction of events that is told at it, soon enough."""
    best: dict[int, float] = {}
    for scores in every:
        best[scores.num_false] = max(best.get(scores.num_false, 0.0), scores.told_within(told_within_seconds))
    return best


def _shared(options: Mapping[str, Mapping[int, float]], most: int) -> dict[str, int]:
    """How many of at most `most` false alarms each class gets, so that the sum of what they bring is largest.

    Args:
        options: class -> number of false alarms -> what it brings; the smallest numbers fit together.
        most: of all.
    """
    reached = np.zeros(most + 1)  # the largest sum with the classes so far, at no more than so many
    spent: list[NDArray[np.int64]] = []
    for brings in options.values():
        best, used = np.full(most + 1, -np.inf), np.zeros(most + 1, dtype=np.int64)
        for count, value in sorted(brings.items()):
            if count <= most:
                total = reached[: most + 1 - count] + value
                better = total > best[count:]
                best[count:][better], used[count:][better] = total[better], count
        reached = best
        spent.append(used)
    left, shared = most, {}
    for label, used in zip(reversed(list(options)), reversed(spent), strict=True):
        shared[label] = int(used[left])
        left -= shared[label]
    return shared


def _scored(
    sweeps: Sequence[AlarmSweep],
    intervals: Sequence[Interval],
    label: str,
    rules: EventRules,
    *,
    hours: float,
    grace_seconds: float,
) -> AlarmScores:
    alarms = [alarm for sweep in sweeps for alarm in sweep.alarms(rules, [label])]
    own = [interval for interval in intervals if interval.label == label]
    return score_alarms(own, alarms, hours=hours, grace_seconds=grace_seconds)


def _middle(good: Sequence[bool]) -> int:
    """The middle of the longest run of good values; of equally long ones, the first."""
    longest, start = (0, 0), None
    for index, one in enumerate([*good, False]):
        if one and start is None:
            start = index
        elif not one and start is not None:
            longest, start = max(longest, (index - start, -start)), None
    return -longest[1] + (longest[0] - 1) // 2
