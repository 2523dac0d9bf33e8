"""Scores of many resamples of the same videos, each video as often as it was sampled.

Every function here gives a score for each row of `counts`, [R, V]: how often each of V videos is in R resamples.
A row of ones gives the score of all videos as they are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from kinescan.data.frame_labels import frame_truth
from kinescan.data.intervals import Interval
from kinescan.evaluation.temporal.alarms import AlarmScores
from kinescan.evaluation.temporal.detection import match_detections
from kinescan.evaluation.temporal.intervals import Detection, Floats
from kinescan.events.predictions import FramePredictions
from kinescan.shapes import BACKGROUND

Score = Callable[[Floats], Floats]
"""Counts [R, V] -> the score of each resample, [R]; NaN where there is nothing to score."""
MOST_LEVELS = 4096
"""Scores of frames are told apart by so many levels: with as many different ones or fewer, the result is exact."""
_ROWS = 64


def resamples(num_videos: int, count: int, seed: int) -> Floats:
    """How often each video is sampled, [count, num_videos]; each row sums to the number of videos."""
    numbers = np.random.default_rng(seed)
    return numbers.multinomial(num_videos, np.full(num_videos, 1 / num_videos), size=count).astype(np.float64)


def frame_map_score(predictions: Sequence[FramePredictions], truth: Mapping[str, Sequence[Interval]]) -> Score:
    """Per-frame mAP, as `frame_map` has it.

    Args:
        predictions: of V videos, in the order of the counts.
        truth: video id -> its intervals.
    """
    classes = predictions[0].classes
    marked = [frame_truth(truth[one.video_id], one.seconds, classes) for one in predictions]
    histograms = [
        _histograms([one.scores[:, column] for one in predictions], [of_video[:, column] for of_video in marked])
        for column, label in enumerate(classes)
        if label != BACKGROUND and any(of_video[:, column].any() for of_video in marked)
    ]

    def score(counts: Floats) -> Floats:
        return _mean_of([_weighted_ap(counts, positive, every) for positive, every in histograms], len(counts))

    return _in_parts(score)


def detection_map_score(
    truth: Mapping[str, Sequence[Interval]], detections: Mapping[str, Sequence[Detection]], tious: Sequence[float]
) -> Score:
    """Mean over thresholds of mAP over tIoU, as `detection_map` has it.

    Args:
        truth: of V videos, in the order of the counts.
        detections: video id -> what was found in it.
        tious: thresholds.
    """
    index_of = {video: index for index, video in enumerate(truth)}
    labels = list(dict.fromkeys(one.label for of_video in truth.values() for one in of_video))
    cases = []
    for label in labels:
        own = [one for of_video in truth.values() for one in of_video if one.label == label]
        found = [one for video in truth for one in detections.get(video, ()) if one.label == label]
        order, right = match_detections(own, found, tious)
        rows = np.array([index_of[found[index].video_id] for index in order], dtype=np.int64)
        cases.append((np.bincount([index_of[one.video_id] for one in own], minlength=len(truth)), rows, right))

    def score(counts: Floats) -> Floats:
        by_class = []
        for num_true, rows, right in cases:
            weights, total = counts[:, rows], counts @ num_true
            every = np.cumsum(weights, axis=1)
            levels = [_weighted_area(weights * level, every, total) for level in right]
            by_class.append(np.where(total > 0, np.mean(levels, axis=0), np.nan))
        return _mean_of(by_class, len(counts))

    return _in_parts(score)


def alarm_scores(alarms: Sequence[AlarmScores], soon_seconds: float) -> dict[str, Score]:
    """Missed events, events that were told soon, false alarms per hour, and the median delay.

    Args:
        alarms: of V videos, in the order of the counts.
        soon_seconds: what soon is.
    """
    num_true, missed, false, hours = (
        np.array([getattr(one, name) for one in alarms], dtype=np.float64)
        for name in ("num_true", "num_missed", "num_false", "hours")
    )
    soon = np.array([sum(delay <= soon_seconds for delay in one.delays_seconds) for one in alarms], dtype=np.float64)
    delays = np.array([delay for one in alarms for delay in one.delays_seconds])
    videos = np.array([index for index, one in enumerate(alarms) for _ in one.delays_seconds], dtype=np.int64)
    order = np.argsort(delays, kind="stable")
    delays, videos = delays[order], videos[order]

    def ratio(upper: Floats, lower: Floats) -> Score:
        return lambda counts: _divided(counts @ upper, counts @ lower)

    def median(counts: Floats) -> Floats:
        if not len(delays):
            return np.full(len(counts), np.nan)
        reached = np.cumsum(counts[:, videos], axis=1)
        last = reached[:, -1:] - 1
        low, high = ((reached > np.maximum(edge(last / 2), 0)).argmax(axis=1) for edge in (np.floor, np.ceil))
        return np.where(reached[:, -1] > 0, (delays[low] + delays[high]) / 2, np.nan)

    return {
        "missed": ratio(missed, num_true),
        "soon": ratio(soon, num_true),
        "false_alarms_per_hour": ratio(false, hours),
        "delay": _in_parts(median),
    }


def _histograms(scores: Sequence[NDArray[np.float32]], positive: Sequence[NDArray[np.bool_]]) -> tuple[Floats, Floats]:
    """Positive and all frames of each video at each level of the score, the highest first, [V, levels] each."""
    levels = np.unique(np.concatenate(scores))
    if len(levels) > MOST_LEVELS:
        # half of them spread over all frames, half over the positive ones, which decide
        every_score = np.concatenate(scores)
        parts = (every_score, every_score[np.concatenate(positive)])
        levels = np.unique(np.concatenate([_spread(np.sort(part), MOST_LEVELS // 2) for part in parts]))
    every = np.zeros((len(scores), len(levels)))
    hits = np.zeros_like(every)
    for row, (own, marked) in enumerate(zip(scores, positive, strict=True)):
        columns = np.searchsorted(levels, own, side="right") - 1
        every[row] = np.bincount(columns, minlength=len(levels))
        hits[row] = np.bincount(columns[marked], minlength=len(levels))
    return hits[:, ::-1], every[:, ::-1]


def _spread(ordered: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """So many of the values, evenly spaced by rank, with the lowest and the highest."""
    return ordered[np.linspace(0, len(ordered) - 1, count).astype(np.int64)]


def _weighted_ap(counts: Floats, positive: Floats, every: Floats) -> Floats:
    hits = counts @ positive
    found, ranks = np.cumsum(hits, axis=1), np.cumsum(counts @ every, axis=1)
    return _divided((hits * _divided(found, ranks, empty=0.0)).sum(axis=1), found[:, -1])


def _weighted_area(hits: Floats, every: Floats, total: Floats) -> Floats:
    """Area under precision over recall of each row; precision is made non-increasing from the right."""
    precision = _divided(np.cumsum(hits, axis=1), every, empty=0.0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return _divided((hits * envelope).sum(axis=1), total)


def _divided(upper: Floats, lower: Floats, *, empty: float = np.nan) -> Floats:
    return np.divide(upper, lower, out=np.full(np.shape(upper), empty), where=lower > 0)


def _mean_of(by_class: Sequence[Floats], num_rows: int) -> Floats:
    """Mean over the classes that a resample shows."""
    if not by_class:
        return np.full(num_rows, np.nan)
    values = np.stack(by_class)
    shown = ~np.isnan(values)
    return _divided(np.where(shown, values, 0.0).sum(axis=0), shown.sum(axis=0).astype(np.float64))


def _in_parts(score: Score) -> Score:
    """The same with bounded memory."""

    def parts(counts: Floats) -> Iterator[Floats]:
        for first in range(0, len(counts), _ROWS):
            yield score(counts[first : first + _ROWS])

    return lambda counts: np.concatenate(list(parts(counts)))
