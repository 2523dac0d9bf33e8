"""Every number of a model that answers for each frame, from its predictions and the truth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kinescan.data.frame_labels import frame_truth
from kinescan.data.intervals import Interval
from kinescan.errors import ConfigError
from kinescan.evaluation.temporal.alarm_sweep import AlarmSweep, shifted, started
from kinescan.evaluation.temporal.alarms import Alarm, AlarmScores, score_alarms
from kinescan.evaluation.temporal.detection import ACTIVITYNET_TIOUS, THUMOS_TIOUS, DetectionScores, detection_map
from kinescan.evaluation.temporal.frames import FrameScores, frame_map
from kinescan.evaluation.temporal.intervals import Detection
from kinescan.evaluation.temporal.proposals import propose_intervals
from kinescan.evaluation.temporal.segmentation import SegmentationScores, segmentation_scores
from kinescan.evaluation.temporal.thresholds import watched_hours
from kinescan.evaluation.temporal.truth import frame_labels, overlap, refuse_outside, refuse_unknown_labels
from kinescan.events.decoding import DecodingRules, decode_frames
from kinescan.events.detector import Event, EventUpdate, detect_updates
from kinescan.events.predictions import FramePredictions
from kinescan.events.rules import EventRules
from kinescan.settings import renamed
from kinescan.shapes import BACKGROUND

TIOUS = {"0.5:0.05:0.95": ACTIVITYNET_TIOUS, "0.3:0.1:0.7": THUMOS_TIOUS}
"""Thresholds of temporal intersection over union (tIoU) over which mAP is averaged, by the name in reports."""
F1_OVERLAP = 0.5
"""Intersection over union of the segmental F1 that tables of several runs show."""
SOON_SECONDS = 0.5
"""An alarm so soon after the onset is counted by itself."""
_STEPS = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SHIFTS = (*(-step for step in reversed(_STEPS)), 0.0, *_STEPS)
"""Of the thresholds' logits, along the curve."""
NEAR_CHANCE = 1.1
"""A class is reported as near chance where its average precision is at most this many times that of chance."""
CHANCE_CALIBRATED = 0.5
"""Calibrated AP of scores that say nothing, whatever the class's fraction."""


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """Alarms at one strictness of the thresholds.

    Attributes:
        shift: of the logits of all thresholds; 0 are those of the rules.
        alarms: what they reach.
    """

    shift: float
    alarms: AlarmScores


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """How one video was answered.

    Attributes:
        video_id: which video.
        end_seconds: its length.
        intervals: what is true.
        events: what was told, at the rules.
        detections: intervals with scores that need no rules.
        told: when each of them was told.
        alarms: how well that fits the truth.
        frame_accuracy: fraction of frames with the right label, in [0, 1]; None where frames have no single label.
    """

    video_id: str
    end_seconds: float
    intervals: tuple[Interval, ...]
    events: tuple[Event, ...]
    detections: tuple[Detection, ...]
    told: tuple[Alarm, ...]
    alarms: AlarmScores
    frame_accuracy: float | None

    @property
    def num_mistakes(self) -> int:
        """Missed events and false alarms."""
        return self.alarms.num_missed + self.alarms.num_false


@dataclass(frozen=True, kw_only=True)
class DecodedScores:
    """The numbers that need no moment of an alarm, of frames that were decided with those before and after them.

    Attributes:
        rules: what was assumed of time.
        frames: per-frame mAP and calibrated mAP.
        detection: name of the thresholds -> mAP over tIoU.
        segmentation: accuracy, edit and F1; None where frames have several labels.
        detections: video id -> intervals with scores that need no rules.
    """

    rules: DecodingRules
    frames: FrameScores
    detection: Mapping[str, DetectionScores]
    segmentation: SegmentationScores | None
    detections: Mapping[str, tuple[Detection, ...]]


@renamed(frame_shares="frame_fractions", largest_share="largest_fraction")
@dataclass(frozen=True, kw_only=True)
class TemporalScores:
    """All numbers of one evaluation.

    Attributes:
        classes: the model's, without background.
        rules: thresholds and times of the events.
        frames: per-frame mAP and calibrated mAP.
        frame_fractions: label -> fraction of frames that show it: the AP of scores that say nothing.
        detection: name of the thresholds -> mAP over tIoU.
        segmentation: accuracy, edit and F1; None where frames have several labels.
        no_segmentation: why there is none.
        largest_fraction: of the commonest label of frames, background among them: the accuracy of a constant answer.
        decoded: the same of frames that were decided with all others of their video.
        alarms: delay, missed events and false alarms of all classes.
        alarms_of: label -> the same of one class.
        curve: the same for all classes over the strictness of the thresholds.
        videos: the worst first.
        num_short: intervals that hold no frame that the model saw.
        grace_seconds: how long after its end an event may still be told.
    """

    classes: tuple[str, ...]
    rules: EventRules
    frames: FrameScores
    frame_fractions: Mapping[str, float]
    detection: Mapping[str, DetectionScores]
    segmentation: SegmentationScores | None
    no_segmentation: str
    largest_fraction: float
    decoded: DecodedScores
    alarms: AlarmScores
    alarms_of: Mapping[str, AlarmScores]
    curve: tuple[OperatingPoint, ...]
    videos: tuple[VideoResult, ...]
    num_short: int
    grace_seconds: float = 0.0

    @property
    def chance_map(self) -> float:
        """Per-frame mAP of scores that say nothing: mean fraction of frames of the classes in it; NaN without any."""
        fractions = [self.frame_fractions[label] for label in self.frames.average_precision]
        return float(np.mean(fractions)) if fractions else float("nan")

    @property
    def summary(self) -> dict[str, float | None]:
        """The numbers that tables of several runs show, by name; None where there is none."""
        decoded = self.decoded.segmentation
        return {
            "frame_map": self.frames.mean,
            "calibrated_frame_map": self.frames.calibrated_mean,
            "decoded_f1_at_50": None if decoded is None else decoded.f1[F1_OVERLAP] / 100,
            "missed_ratio": self.alarms.missed_ratio,
            "false_alarms_per_hour": self.alarms.false_alarms_per_hour,
            "median_delay_seconds": self.alarms.delay_seconds(0.5),
        }

    @property
    def lost(self) -> tuple[str, ...]:
        """Classes whose frames are found no better than by chance: AP or calibrated AP at most 1.1 times as high."""
        return tuple(
            label
            for label, found in self.frames.average_precision.items()
            if found <= NEAR_CHANCE * self.frame_fractions[label]
            or self.frames.calibrated[label] <= NEAR_CHANCE * CHANCE_CALIBRATED
        )


def score_frames(
    predictions: Sequence[FramePredictions],
    truth: Mapping[str, Sequence[Interval]],
    rules: EventRules,
    *,
    grace_seconds: float = 0.0,
    decoding: DecodingRules | None = None,
) -> TemporalScores:
    """Scores a model that answers for each frame.

    Args:
        predictions: of the videos, by one model; at least one.
        truth: video id -> its true intervals; a video in which nothing happens has none.
        rules: when scores are an event; chosen on other videos (`choose_rules`).
        grace_seconds: how long after its end an event may still be told (see `score_alarms`).
        decoding: times of `decode_frames`, for the numbers of decoded frames.

    Raises:
        ConfigError: there is no video, one has no truth, a label is unknown to the model, an interval lies outside of
            its video, or the rules name an unknown class.

    Example:
        >>> scores = np.array([[0.9, 0.1]] * 5 + [[0.2, 0.8]] * 10 + [[0.8, 0.2]] * 5, dtype=np.float32)
        >>> found = score_frames(
        ...     [FramePredictions(video_id="a", seconds=np.arange(20) / 10, scores=scores,
        ...                       classes=("background", "fall"), end_seconds=2.0)],
        ...     {"a": [Interval(video_id="a", label="fall", start_seconds=0.5, end_seconds=1.5)]},
        ...     EventRules(least_seconds=0.2),
        ... )
        >>> found.frames.mean, found.segmentation.f1[0.5], found.alarms.delays_seconds
        (1.0, 100.0, (0.19999999999999996,))
    """
    _check(predictions, truth)
    classes = predictions[0].classes
    own = [list(truth[one.video_id]) for one in predictions]
    intervals = [interval for part in own for interval in part]
    told = [label for label in classes if label != BACKGROUND]
    marked = np.concatenate(
        [frame_truth(part, one.seconds, classes) for part, one in zip(own, predictions, strict=True)]
    )
    frames = _frame_scores(predictions, marked)
    segmentation, reason, largest = _segmentation(predictions, own)
    updates = {one.video_id: detect_updates(one, rules) for one in predictions}
    alarms = [alarm for video, told_of in updates.items() for alarm in started(video, told_of)]
    hours = watched_hours(predictions)
    if not hours > 0:
        raise ConfigError("the videos that were scored have no length, so nothing happens an hour. Check the files.")
    detections = {one.video_id: propose_intervals(one) for one in predictions}
    pooled = [detection for found in detections.values() for detection in found]
    sweeps = [AlarmSweep(one) for one in predictions]
    scored = partial(score_alarms, grace_seconds=grace_seconds)
    return TemporalScores(
        classes=tuple(told),
        rules=rules,
        frames=frames,
        frame_fractions={label: float(marked[:, classes.index(label)].mean()) for label in told},
        detection={name: detection_map(intervals, pooled, tious=tious) for name, tious in TIOUS.items()},
        segmentation=segmentation,
        no_segmentation=reason,
        largest_fraction=largest,
        decoded=_decoded(predictions, own, marked, decoding or DecodingRules()),
        alarms=scored(intervals, alarms, hours=hours),
        alarms_of={label: _of_class(intervals, alarms, label, hours, scored) for label in told},
        curve=_curve(sweeps, intervals, rules, classes, hours, scored),
        videos=_videos(predictions, own, updates, detections, segmentation is not None, scored),
        num_short=sum(
            not frame_truth([interval], one.seconds, [interval.label]).any()
            for part, one in zip(own, predictions, strict=True)
            for interval in part
        ),
        grace_seconds=grace_seconds,
    )


def _check(predictions: Sequence[FramePredictions], truth: Mapping[str, Sequence[Interval]]) -> None:
    if not predictions:
        raise ConfigError("there is no video to score. Give predictions of at least one.")
    ids = [one.video_id for one in predictions]
    if len(set(ids)) < len(ids):
        raise ConfigError("a video is in the predictions twice. Give one prediction a video.")
    absent = [video for video in ids if video not in truth]
    if absent:
        raise ConfigError(
            f"{len(absent)} of {len(ids)} videos have no truth, the first is {absent[0]!r}. Label them; for a video in "
            "which nothing happens, an empty list."
        )
    if any(one.classes != predictions[0].classes for one in predictions):
        raise ConfigError("the predictions are of other classes. Score all videos with one model.")
    intervals = [interval for video in ids for interval in truth[video]]
    refuse_unknown_labels(intervals, [label for label in predictions[0].classes if label != BACKGROUND])
    refuse_outside(intervals, {one.video_id: one.end_seconds for one in predictions})


def _frame_scores(predictions: Sequence[FramePredictions], marked: NDArray[np.bool_]) -> FrameScores:
    """Per-frame mAP; `marked` is the truth of all frames, [N, K]."""
    return frame_map(
        marked,
        np.concatenate([one.scores for one in predictions]),
        labels=predictions[0].classes,
        background=BACKGROUND if predictions[0].has_background else None,
    )


def _decoded(
    predictions: Sequence[FramePredictions],
    truth: Sequence[Sequence[Interval]],
    marked: NDArray[np.bool_],
    rules: DecodingRules,
) -> DecodedScores:
    decoded = [decode_frames(one, rules) for one in predictions]
    intervals = [interval for part in truth for interval in part]
    detections = {one.video_id: tuple(propose_intervals(one)) for one in decoded}
    pooled = [detection for found in detections.values() for detection in found]
    return DecodedScores(
        rules=rules,
        frames=_frame_scores(decoded, marked),
        detection={name: detection_map(intervals, pooled, tious=tious) for name, tious in TIOUS.items()},
        segmentation=_segmentation(decoded, truth)[0],
        detections=detections,
    )


def _of_class(
    intervals: Sequence[Interval],
    alarms: Sequence[Alarm],
    label: str,
    hours: float,
    scored: Callable[..., AlarmScores],
) -> AlarmScores:
    return scored(
        [one for one in intervals if one.label == label], [one for one in alarms if one.label == label], hours=hours
    )


def _curve(
    sweeps: Sequence[AlarmSweep],
    intervals: Sequence[Interval],
    rules: EventRules,
    classes: Sequence[str],
    hours: float,
    scored: Callable[..., AlarmScores],
) -> tuple[OperatingPoint, ...]:
    """From the strictest to the loosest thresholds that are of use: below them, alarms run into each other."""
    points = []
    for shift in sorted(SHIFTS, reverse=True):
        moved = shifted(rules, classes, shift) if shift else rules
        alarms = [alarm for sweep in sweeps for alarm in sweep.alarms(moved)]
        points.append(OperatingPoint(shift=shift, alarms=scored(intervals, alarms, hours=hours)))
    fewest = min(point.alarms.num_missed for point in points)
    loosest = next(point.shift for point in points if point.alarms.num_missed == fewest)
    return tuple(point for point in points if point.shift >= min(loosest, 0.0))


def _segmentation(
    predictions: Sequence[FramePredictions], truth: Sequence[Sequence[Interval]]
) -> tuple[SegmentationScores | None, str, float]:
    """The scores, or why there are none; and the fraction of the commonest true label."""
    if not predictions[0].has_background:
        return None, "the model's classes may overlap, and these scores need one label a frame", float("nan")
    both = overlap([interval for part in truth for interval in part])
    if both is not None:
        return None, f"{both[0].label!r} and {both[1].label!r} overlap in {both[0].video_id}", float("nan")
    true = {
        one.video_id: frame_labels(part, one.seconds, background=BACKGROUND)
        for one, part in zip(predictions, truth, strict=True)
    }
    found = {one.video_id: [one.classes[k] for k in one.scores.argmax(1).tolist()] for one in predictions}
    if not any(true.values()):
        return None, "no video has a frame", float("nan")
    pooled = np.array([label for labels in true.values() for label in labels])
    largest = float(np.unique(pooled, return_counts=True)[1].max() / len(pooled))
    return segmentation_scores(true, found, background=(BACKGROUND,)), "", largest


def _videos(
    predictions: Sequence[FramePredictions],
    truth: Sequence[Sequence[Interval]],
    updates: Mapping[str, Sequence[EventUpdate]],
    detections: Mapping[str, Sequence[Detection]],
    has_labels: bool,
    scored: Callable[..., AlarmScores],
) -> tuple[VideoResult, ...]:
    results = []
    for one, intervals in zip(predictions, truth, strict=True):
        told = started(one.video_id, updates[one.video_id])
        results.append(
            VideoResult(
                video_id=one.video_id,
                end_seconds=one.end_seconds,
                intervals=tuple(intervals),
                events=tuple(update.event for update in updates[one.video_id] if update.kind == "end"),
                detections=tuple(detections[one.video_id]),
                told=tuple(told),
                alarms=scored(intervals, told, hours=max(watched_hours([one]), 1e-9)),
                frame_accuracy=_accuracy(one, intervals) if has_labels else None,
            )
        )
    return tuple(sorted(results, key=lambda one: (-one.num_mistakes, one.frame_accuracy or 0.0, one.video_id)))


def _accuracy(one: FramePredictions, intervals: Sequence[Interval]) -> float:
    true = frame_labels(intervals, one.seconds, background=BACKGROUND)
    found = [one.classes[k] for k in one.scores.argmax(1).tolist()]
    return sum(a == b for a, b in zip(true, found, strict=True)) / len(true) if true else 1.0
