"""A model that answers for each frame, on labelled videos: answers, thresholds, report."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kinescan.data.datasets import Unreadable, stable_seed
from kinescan.data.intervals import Interval, IntervalVideo
from kinescan.data.storage import is_gone
from kinescan.data.video import Limits
from kinescan.errors import ConfigError, KinescanError, VideoError
from kinescan.evaluation.temporal.report import TemporalReport, make_temporal_report
from kinescan.evaluation.temporal.scores import score_frames
from kinescan.evaluation.temporal.thresholds import ChosenRules, choose_rules, watched_hours
from kinescan.events.decoding import DecodingRules
from kinescan.events.predictions import FramePredictions
from kinescan.events.rules import EventRules, save_rules
from kinescan.inference.exported import ExportedModel
from kinescan.inference.frame_predictor import predict_frames, rate_of
from kinescan.models.classifier import VideoClassifier
from kinescan.profiling.cost import count_cost
from kinescan.runtime.addresses import shown_path
from kinescan.runtime.distributed import Processes
from kinescan.runtime.precision import Precision
from kinescan.shapes import BACKGROUND

logger = logging.getLogger(__name__)

DEFAULT_RULES = "the usual ones, chosen on nothing"
HOURS_TO_CHOOSE_ON, MOST_HOURS = 0.5, 2.0
"""Of training videos, where there are none for validation: at least, if there are so many, and at most."""
EVENTS_TO_CHOOSE_ON = 30
"""Of each class, where there are so many."""
OnAnswered = Callable[[FramePredictions, int, int], None]


@dataclass(frozen=True)
class AnsweredVideos:
    """Answers for every frame of videos, and the truth.

    Attributes:
        predictions: of each video that could be read, in the order of the data.
        videos: the same videos with their labels.
        unreadable: the others; `item_index` is the position among all.
        seconds: how long it took.
    """

    predictions: tuple[FramePredictions, ...]
    videos: tuple[IntervalVideo, ...]
    unreadable: tuple[Unreadable, ...] = ()
    seconds: float = 0.0

    @property
    def truth(self) -> dict[str, tuple[Interval, ...]]:
        """Video id -> its true intervals."""
        return {video.video_id: video.intervals for video in self.videos}

    def __add__(self, other: "AnsweredVideos") -> "AnsweredVideos":
        return AnsweredVideos(
            self.predictions + other.predictions,
            self.videos + other.videos,
            self.unreadable + other.unreadable,
            self.seconds + other.seconds,
        )


def answer_videos(
    model: VideoClassifier,
    videos: Sequence[IntervalVideo],
    *,
    processes: Processes | None = None,
    limits: Limits | None = None,
    allow_short: bool = False,
    on_answered: OnAnswered | None = None,
) -> AnsweredVideos:
    """Answers for every frame of each video once; files that cannot be read are listed and left out.

    Of several processes, all call this with the same videos: each answers for its part, and all get the whole.

    Args:
        model: answers for each frame.
        videos: with their labels.
        processes: that share the videos.
        limits: what one file may take.
        allow_short: of cut videos, what is there counts.
        on_answered: called with each prediction as it is made, how many of this process's videos are done, and how many
            there are.

    Raises:
        KinescanError: one that is not the fault of a single file; of several processes, all raise it.
    """
    processes, started = processes or Processes(), time.perf_counter()
    own = range(processes.index, len(videos), processes.count)
    found: list[tuple[int, FramePredictions | Unreadable]] = []
    problem: KinescanError | None = None
    try:
        for done, index in enumerate(own, start=1):
            answer = _answer(model, videos[index], index, limits, allow_short)
            found.append((index, answer))
            if on_answered is not None and isinstance(answer, FramePredictions):
                on_answered(answer, done, len(own))
    except KinescanError as error:
        # The others wait for this process: it has to tell them.
        problem = error
    parts = processes.gather((found, problem))
    for _, raised in parts:
        if raised is not None:
            raise raised
    answers = sorted((entry for part, _ in parts for entry in part), key=lambda entry: entry[0])
    unreadable = tuple(answer for _, answer in answers if isinstance(answer, Unreadable))
    return AnsweredVideos(
        predictions=tuple(answer for _, answer in answers if isinstance(answer, FramePredictions)),
        videos=tuple(videos[index] for index, answer in answers if isinstance(answer, FramePredictions)),
        unreadable=unreadable,
        seconds=time.perf_counter() - started,
    )


def _answer(
    model: VideoClassifier, video: IntervalVideo, index: int, limits: Limits | None, allow_short: bool
) -> FramePredictions | Unreadable:
    try:
        return predict_frames(model, video.path, video_id=video.video_id, limits=limits, allow_short=allow_short)
    except VideoError as error:
        logger.warning("not scored, cannot be read: %s: %s", video.path, error.reason)
        return Unreadable(shown_path(video.path), error.reason, index, gone=is_gone(video.path))


def choose_for(
    model: VideoClassifier,
    validation: Sequence[IntervalVideo],
    training: Sequence[IntervalVideo],
    *,
    processes: Processes | None = None,
    limits: Limits | None = None,
    allow_short: bool = False,
    most_false_alarms_per_hour: float | None = None,
    told_within_seconds: float = math.inf,
    grace_seconds: float = 0.0,
    on_answered: OnAnswered | None = None,
) -> tuple[ChosenRules, str]:
    """Thresholds for a model, chosen on the validation videos of its run; where it has none, on training videos.

    Of training videos, half an hour, and up to two hours until each class was shown 30 times, in an order that depends
    on their ids alone.

    Returns:
        The rules, and what they were chosen on, in words.

    Raises:
        ConfigError: nothing happens in these videos.
        VideoError: none of them can be read.
    """

    def answered(videos: Sequence[IntervalVideo]) -> AnsweredVideos:
        return answer_videos(
            model, videos, processes=processes, limits=limits, allow_short=allow_short, on_answered=on_answered
        )

    if validation:
        found, what = answered(validation), "validation"
    else:
        found, what = AnsweredVideos((), ()), "training"
        count = 1 if processes is None else processes.count
        ordered = sorted(training, key=lambda video: stable_seed(0, video.video_id))
        for first in range(0, len(ordered), count):
            found += answered(ordered[first : first + count])
            if _is_enough(found, ordered):
                break
    if not found.predictions:
        first_lost = found.unreadable[0] if found.unreadable else None
        if first_lost is None:
            raise ConfigError("thresholds need videos to be chosen on: the run records none. Name some with --data.")
        raise VideoError(first_lost.path, f"{first_lost.reason} No {what} video could be read to choose thresholds on.")
    chosen = choose_rules(
        found.predictions,
        found.truth,
        most_false_alarms_per_hour=most_false_alarms_per_hour or None,
        told_within_seconds=told_within_seconds,
        grace_seconds=grace_seconds,
    )
    hours = watched_hours(found.predictions)
    said = f"chosen on {len(found.videos)} {what} videos ({60 * hours:.0f} min, {chosen.scores.num_true} events)"
    if not validation:
        said += "; the run has no validation videos (data.validation_ratio)"
    return chosen, said


def _is_enough(found: AnsweredVideos, all_videos: Sequence[IntervalVideo]) -> bool:
    counts: dict[str, int] = {}
    for video in found.videos:
        for interval in video.intervals:
            counts[interval.label] = counts.get(interval.label, 0) + 1
    wanted: dict[str, int] = {}
    for video in all_videos:
        for interval in video.intervals:
            wanted[interval.label] = wanted.get(interval.label, 0) + 1
    shown = all(counts.get(label, 0) >= min(EVENTS_TO_CHOOSE_ON, number) for label, number in wanted.items())
    hours = watched_hours(found.predictions)
    return hours >= MOST_HOURS or (shown and hours >= HOURS_TO_CHOOSE_ON)


def rules_notes(chosen: ChosenRules) -> Iterator[str]:
    """What one has to know of thresholds."""
    if chosen.silent:
        yield (
            f"No threshold makes half of the alarms right for {_names(chosen.silent)} on the videos that thresholds "
            "were chosen on: theirs are so high that they are told of rarely or never. Of short events, an alarm may "
            "come when they are over, which counts as false: evaluation.grace_seconds says for how long it is right."
        )
    if chosen.without_intervals:
        yield (
            f"{_names(chosen.without_intervals)}: not in the videos that thresholds were chosen on, so that the "
            "threshold is the median of the other classes'."
        )


def save_chosen(chosen: ChosenRules, model: VideoClassifier, folder: str | Path) -> None:
    """Writes rules beside a model as its events.json.

    Raises:
        ConfigError: the folder cannot be written.
    """
    save_rules(Path(folder), chosen.rules, classes=model.class_names, weights=model.weights_fingerprint())


def report_frames(
    model: VideoClassifier,
    answered: AnsweredVideos,
    rules: EventRules,
    *,
    data: str,
    rules_from: str,
    seed: int | None = None,
    precision: Precision | Literal[""] = "",
    notes: Sequence[str] = (),
    grace_seconds: float = 0.0,
    decoding: DecodingRules | None = None,
) -> TemporalReport:
    """The report of answers that were just made.

    Args:
        model: the one whose answers they are.
        answered: its answers, with the truth of each video.
        rules: that events are made of the answers by.
        data: what the videos are called in the report.
        rules_from: where the rules come from, for the report.
        seed: of the run, for the report.
        precision: that the model ran in, for the report.
        notes: sentences for the report.
        grace_seconds: how long after its end an event may still be told.
        decoding: times, for the numbers of decoded frames.

    Raises:
        VideoError: none of the videos could be read.
        ConfigError: the truth does not fit the model or the videos.
    """
    if not answered.predictions:
        first = answered.unreadable[0]
        raise VideoError(first.path, f"{first.reason} None of the {len(answered.unreadable)} videos could be read.")
    num_empty = sum(not video.intervals for video in answered.videos)
    told = f"Nothing happens in {num_empty} of the {len(answered.videos)} videos, as their labels say."
    empty = (told,) if num_empty else ()
    return make_temporal_report(
        score_frames(answered.predictions, answered.truth, rules, grace_seconds=grace_seconds, decoding=decoding),
        answered.predictions,
        model=model.name,
        data=data,
        rules_from=rules_from,
        paths={video.video_id: shown_path(video.path) for video in answered.videos},
        unreadable=answered.unreadable,
        seed=seed,
        precision=precision,
        notes=(*notes, *empty, *looks_ahead(model)),
        # What an exported file computes cannot be counted.
        cost=None if isinstance(model, ExportedModel) else count_cost(model),
        seconds=answered.seconds,
    )


def looks_ahead(model: VideoClassifier) -> Iterator[str]:
    """What one has to know of the delays of a model whose answer for a frame depends on later ones."""
    config = model.config
    mixes = getattr(config, "has_module", True) or getattr(config, "class_token_route", "none") != "none"
    if getattr(config, "causal", False) or not mixes:
        return
    rate = rate_of(model)
    after = f"up to {(model.preprocessing.num_frames - 1) / rate:.2g} s" if rate else "frames"
    yield (
        f"The model is not causal: its answer for a frame depends on what comes {after} later. The delays here do not "
        "count that: while a recording runs, it would tell by as much later."
    )


def events_of(model: VideoClassifier) -> tuple[str, ...]:
    """The model's classes that can be events: all but background."""
    return tuple(label for label in model.class_names if label != BACKGROUND)


def _names(labels: Sequence[str]) -> str:
    return ", ".join(labels[:10]) + (f", and {len(labels) - 10} more" if len(labels) > 10 else "")
