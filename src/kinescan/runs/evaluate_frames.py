"""`kinescan eval` of a model that answers for each frame."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from kinescan.config import DataConfig, RunConfig, parse_overrides
from kinescan.data.datasets import Unreadable
from kinescan.data.interval_layouts import find_interval_layout, interval_held_out_name
from kinescan.data.interval_listing import read_intervals
from kinescan.data.intervals import IntervalTable, IntervalVideo
from kinescan.data.provenance import RunVideos, read_run_videos
from kinescan.errors import ConfigError
from kinescan.evaluation.report import CHOSEN_ON_THESE
from kinescan.evaluation.temporal.report import TemporalReport
from kinescan.evaluation.temporal.thresholds import ChosenRules, choose_rules
from kinescan.events.decoding import DecodingRules
from kinescan.events.rules import EventRules, load_rules, rules_of_content
from kinescan.models.classifier import VideoClassifier
from kinescan.runs.finished import Finished
from kinescan.runs.frame_evaluation import (
    DEFAULT_RULES,
    AnsweredVideos,
    answer_videos,
    choose_for,
    events_of,
    report_frames,
    rules_notes,
    save_chosen,
)
from kinescan.runs.run_videos import located, seen_notes, was_chosen
from kinescan.runtime.distributed import Processes
from kinescan.runtime.precision import Precision, computing_in
from kinescan.runtime.run_folder import RULES_FILE
from kinescan.settings import build_settings

logger = logging.getLogger(__name__)

CHOSEN_ON_DATA = (
    "The thresholds were chosen on these same videos, so the scores of events here (missed, delay, false alarms) are "
    "too good. Score other videos before you compare or publish it."
)


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """What `--set` takes.

    Attributes:
        thresholds: "saved" takes those beside the model; "choose" chooses them anew and saves them there: on the run's
            validation videos (without such, on training videos), for a model without a run on the videos of `--data`.
        false_alarms_per_hour: choose the thresholds that tell of the most events at no more false alarms; 0: best F1.
        told_within_seconds: beside it: only events that are told so soon after their onset count; 0: all that are told.
        grace_seconds: how long after its end an event may still be told, for short ones; None: as in the run's recipe.
        decoding: what is assumed of time where whole videos are decoded; see `DecodingRules`.
        subset: of truth in ActivityNet's format that results are scored on; empty: the one that is held out.
        data: root, reader, split, overlaps, allow_short and limits of the videos of `--data`.
    """

    thresholds: Literal["saved", "choose"] = "saved"
    false_alarms_per_hour: float = 0.0
    told_within_seconds: float = 0.0
    grace_seconds: float | None = None
    decoding: DecodingRules = field(default_factory=DecodingRules)
    subset: str = ""
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.false_alarms_per_hour < float("inf"):
            raise ConfigError(f"false_alarms_per_hour must be 0 or more, got {self.false_alarms_per_hour}.")
        if self.false_alarms_per_hour and self.thresholds != "choose":
            raise ConfigError(
                "false_alarms_per_hour is for thresholds that are chosen anew: add --set thresholds=choose."
            )
        if not 0 <= self.told_within_seconds < float("inf"):
            raise ConfigError(f"told_within_seconds must be 0 or more, got {self.told_within_seconds}.")
        if self.told_within_seconds and not self.false_alarms_per_hour:
            raise ConfigError(
                "told_within_seconds goes with a number of false alarms: add --set false_alarms_per_hour=2, say."
            )
        if not 0 <= (self.grace_seconds or 0.0) < float("inf"):
            raise ConfigError(f"grace_seconds must be 0 or more, got {self.grace_seconds}.")
        if self.data.train or self.data.test:
            raise ConfigError("videos to evaluate on are named with --data, not with data.train or data.test.")


def read_test_intervals(
    data: str | Path, given: DataConfig, *, overlaps: bool, classes: Sequence[str] | None = None
) -> IntervalTable:
    """The test part of labels with a start and an end, all of which make sense; problems with them are logged.

    Args:
        data: the list, folder or file.
        given: root, reader, split, limits and allow_short.
        overlaps: intervals of one video may overlap.
        classes: as for `read_intervals`.

    Raises:
        ConfigError: a row makes no sense (all are listed in the log), a class is unknown, or nothing can be read.
    """
    table = read_intervals(
        data,
        root=given.root or None,
        classes=classes,
        reader=given.reader,
        part="test",
        split=given.split,
        overlaps=overlaps,
        limits=given.limits,
        allow_short=given.allow_short,
    )
    for note in table.notes:
        logger.warning("%s: %s", data, note)
    table.require_sound(data)
    return table


def eval_settings(overrides: Sequence[str]) -> EvalSettings:
    """The settings of `kinescan eval`.

    Args:
        overrides: "key=value" each.

    Raises:
        ConfigError: an unknown setting, or a value that makes no sense.
    """
    return build_settings(EvalSettings, parse_overrides(overrides))


@dataclass(frozen=True, kw_only=True)
class FrameJob:
    """A model that answers for each frame, and what it is scored on.

    Attributes:
        model: on its device.
        folder: where it was found.
        run: which it belongs to; None for other models.
        recipe: of the run.
        data: as the user named it; None for what the run held out.
        settings: of `--set`.
        processes: that share the videos.
        precision: that the model computes in; empty for an exported one.
    """

    model: VideoClassifier
    folder: str
    run: Path | None
    recipe: RunConfig | None
    data: str | Path | None
    settings: EvalSettings
    processes: Processes
    precision: Precision | Literal[""] = ""

    def report(self, finished: Finished) -> TemporalReport:
        """Answers for every frame of the videos, and the scores of that.

        Args:
            finished: is told of each video.

        Raises:
            ConfigError: no data is known, labels are wrong or unknown to the model, or thresholds are of another model.
            VideoError: none of the videos could be read.
        """
        videos, origin, missing = self._videos()
        rules, rules_from, notes = self._saved_rules()
        chosen: ChosenRules | None = None
        with computing_in(self.precision or "float32", self.model.device):
            if self.settings.thresholds == "choose" and self.run is not None:
                chosen, rules_from = self._choose()
            answered = self._answered(videos, finished)
        if self.settings.thresholds == "choose" and self.run is None:
            chosen, rules_from = self._choose_on(answered)
            notes = (CHOSEN_ON_DATA,)
        if chosen is not None:
            rules, notes = chosen.rules, (*notes, *rules_notes(chosen))
            if self.processes.is_main:
                save_chosen(chosen, self.model, self.folder)
                logger.info("thresholds: %s", Path(self.folder) / RULES_FILE)
        return report_frames(
            self.model,
            replace(answered, unreadable=(*answered.unreadable, *missing)),
            rules,
            data=origin,
            rules_from=rules_from,
            seed=None if self.recipe is None else self.recipe.seed,
            precision=self.precision,
            notes=(*self._notes(videos), *notes),
            grace_seconds=self._grace_seconds,
            decoding=self.settings.decoding,
        )

    def _answered(self, videos: Sequence[IntervalVideo], finished: Finished) -> AnsweredVideos:
        return answer_videos(
            self.model,
            videos,
            processes=self.processes,
            limits=self._data.limits,
            allow_short=self._data.allow_short,
            on_answered=finished.add_frames,
        )

    @property
    def _data(self) -> DataConfig:
        """Settings of the videos: those given, or for what the run held out, the run's."""
        return self.settings.data if self.data is not None or self.recipe is None else self.recipe.data

    @property
    def _grace_seconds(self) -> float:
        if self.settings.grace_seconds is not None:
            return self.settings.grace_seconds
        return 0.0 if self.recipe is None else self.recipe.evaluation.grace_seconds

    def _recorded(self) -> RunVideos | None:
        return None if self.run is None else read_run_videos(self.run)

    def _videos(self) -> tuple[list[IntervalVideo], str, tuple[Unreadable, ...]]:
        """The videos, what they are called, and those that are listed and not there."""
        if self.data is not None:
            return self._named_videos(self.data)
        recorded = self._recorded()
        if self.run is None or recorded is None:
            raise ConfigError(
                "no data to evaluate on. Name labels with a start and an end, such as a csv of path,start,end,label: "
                "--data LABELS; in Python data=LABELS."
            )
        found = located(self.run, self.recipe, recorded.held_out, "held out")
        return [video.interval_video(path) for video, path in found], recorded.origin, ()

    def _named_videos(self, data: str | Path) -> tuple[list[IntervalVideo], str, tuple[Unreadable, ...]]:
        given = self.settings.data
        root = given.root or None
        if find_interval_layout(data, given.reader, root) is None:
            raise ConfigError(
                f"{self.model.name} answers for each frame, and {data} holds no labels with a start and an end. Name "
                "a csv of path,start,end,label, or another layout of docs/data.md."
            )
        overlaps = given.overlaps or self.model.overlapping or (self.recipe is not None and self.recipe.data.overlaps)
        table = read_test_intervals(data, given, overlaps=overlaps, classes=events_of(self.model))
        missing = tuple(Unreadable(name, "it is listed, and not there.", -1, gone=True) for name in table.missing)
        name = interval_held_out_name(data, given.reader, root)
        return table.videos, str(data) if name is None else f"the {name} part of {data}", missing

    def _saved_rules(self) -> tuple[EventRules, str, tuple[str, ...]]:
        beside, saved = Path(self.folder) / RULES_FILE, self.model.saved_rules
        if self.settings.thresholds == "choose" or not (beside.is_file() or saved):
            note = "No thresholds were chosen for this model: choose them with --set thresholds=choose."
            return EventRules(), DEFAULT_RULES, () if self.settings.thresholds == "choose" else (note,)
        classes, weights = self.model.class_names, self.model.weights_fingerprint()
        if beside.is_file():
            rules = load_rules(beside, classes=classes, weights=weights)
        else:
            # a model of the hub has its files in a folder of the hub's
            rules = rules_of_content(saved or {}, where=RULES_FILE, classes=classes, weights=weights)
        return rules, f"those saved with the model ({beside})", ()

    def _choose(self) -> tuple[ChosenRules, str]:
        recorded, run = self._recorded(), self.run
        if recorded is None or run is None:
            raise ConfigError(
                f"{self.run} does not say which videos it was trained on. Name validation videos: --data."
            )
        validation, training = (
            [video.interval_video(path) for video, path in located(run, self.recipe, part, what)]
            for part, what in (
                (recorded.validation, "chose its best checkpoint on"),
                (() if recorded.validation else recorded.train, "was trained on"),
            )
        )
        data = DataConfig() if self.recipe is None else self.recipe.data
        return choose_for(
            self.model,
            validation,
            training,
            processes=self.processes,
            limits=data.limits,
            allow_short=data.allow_short,
            most_false_alarms_per_hour=self.settings.false_alarms_per_hour or None,
            told_within_seconds=self.settings.told_within_seconds or math.inf,
            grace_seconds=self._grace_seconds,
        )

    def _choose_on(self, answered: AnsweredVideos) -> tuple[ChosenRules, str]:
        from_these = "chosen on these same videos, of a model that is not part of a run"
        most = self.settings.false_alarms_per_hour or None
        chosen = choose_rules(
            answered.predictions,
            answered.truth,
            most_false_alarms_per_hour=most,
            told_within_seconds=self.settings.told_within_seconds or math.inf,
            grace_seconds=self._grace_seconds,
        )
        return chosen, from_these

    def _notes(self, videos: Sequence[IntervalVideo]) -> Iterator[str]:
        """What the run has seen of the videos that it is scored on."""
        if self.run is None:
            return
        chosen_best = was_chosen(Path(self.folder), self.run)
        recorded = self._recorded()
        if self.data is not None:
            yield from seen_notes(self.run, self.recipe, videos, chosen_best=chosen_best)
        elif chosen_best and not (recorded and recorded.validation):
            yield CHOSEN_ON_THESE
