"""Runs a study: all that is not done yet, with the results written after each run."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kinescan.config import flat_settings, parse_overrides
from kinescan.errors import ConfigError, KinescanError, TrainingInterrupted
from kinescan.evaluation.report import CHOSEN_ON_THESE
from kinescan.runs.make_data import make
from kinescan.runs.run_videos import was_chosen
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.folder_lock import locked
from kinescan.runtime.launch import world_size
from kinescan.runtime.output_folder import prepare_output
from kinescan.runtime.own_modules import import_own_module
from kinescan.runtime.run_folder import RunFolder
from kinescan.studies.job import RunRecord, read_record
from kinescan.studies.others import notes_of_others, of_any_code
from kinescan.studies.plan import StudyPlan, is_made, made_folder, plan_study, written_out
from kinescan.studies.result import StudyResult
from kinescan.studies.result_files import save_result
from kinescan.studies.study import STUDY_FILE, DataEntry, Preparation, Study, dump_study, load_study
from kinescan.studies.tasks import Outcome, Schedule, Task, left, perform, schedule, title_of
from kinescan.studies.workers import run_in_processes

logger = logging.getLogger(__name__)

_MOST_PROCESSES = 1024
FOLDS = "data.folds"
FEW_CLIPS = 500
"""So many clips of one's own are too few to learn motion from nothing."""


def run_study(
    study: Study | str | Path,
    *,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    processes: int = 1,
    any_code: bool = False,
    modules: Sequence[str] = (),
    code: str | None = None,
) -> StudyResult:
    """Runs all that is not done yet of a study, and writes what came out.

    The folder holds study.toml (what was asked for), study.json, study.md, study.csv, study.tex, runs.csv, curves.png,
    and runs/ with a run for each row, data set and seed. Called again it continues: what is done is not run again, and
    a run that was broken off continues from its checkpoint.

    Args:
        study: the study, its TOML file, or the folder of one that was begun.
        output: folder of everything; by default runs/NAME, or the folder that was named.
        overrides: "dotted.key=value" each, for every run; they go before all other settings.
        processes: how many runs train at a time, each in a process of its own with its part of the cores; 1 trains in
            this process.
        any_code: results of the same settings and videos count, though another commit made them, and runs that it began
            continue; without it they are kept apart and run again.
        modules: that register models of your own, for each process to import.
        code: what the results are told apart by, besides settings and data; by default the commit.

    Raises:
        ConfigError: a row cannot be built, two are alike, data is missing, or the folder is in use or cannot be
            written.
        TrainingInterrupted: a signal came; the same call continues.
        KinescanError: runs are not done, or one met what ends the others, too, such as a full disk.
    """
    if world_size() > 1:
        raise ConfigError("a study is started without torchrun. Use --processes for several runs at a time.")
    if not 1 <= processes <= _MOST_PROCESSES:
        raise ConfigError(f"processes must be 1 to {_MOST_PROCESSES}, got {processes}.")
    of_folder = isinstance(study, str | Path) and Path(study).is_dir()
    if isinstance(study, str | Path):
        output = output or (study if of_folder else None)
        study = load_study(study)
    study = written_out(with_overrides(study, overrides))
    modules = [*modules, *([] if of_folder else own_modules(study))]
    for name in dict.fromkeys(modules):
        import_own_module(name)
    plan = plan_study(study, output, code=code)
    prepare_output(plan.output)
    with locked(plan.output):
        write_text(plan.output / STUDY_FILE, dump_study(plan.study))
        if _make_data(plan):
            plan = plan_study(study, output, code=code)
        if any_code:
            plan = of_any_code(plan)
        for hint in hints(plan):
            logger.info("study: %s", hint)
        return _Run(plan, schedule(plan), processes, tuple(modules)).all()


def with_overrides(study: Study, overrides: Sequence[str]) -> Study:
    """The study with settings of every run that go before those of its rows.

    Raises:
        ConfigError: one is not "key=value".
    """
    if not overrides:
        return study
    given = flat_settings(parse_overrides(overrides))
    if FOLDS in given and any(entry.folds for entry in study.data):
        folds = given.pop(FOLDS)
        data = tuple(replace(entry, folds=folds) if entry.folds else entry for entry in study.data)
        study = replace(study, data=data)
    rows = tuple(replace(row, settings=flat_settings(row.settings) | given) for row in study.rows)
    return replace(study, rows=rows)


def own_modules(study: Study) -> list[str]:
    """Modules of the user's own that the recipes and settings of a study name."""
    tables = [study.recipe, *(row.recipe for row in study.rows), *(entry.recipe for entry in study.preparations)]
    told = [flat_settings(table) for table in tables if isinstance(table, dict)]
    told += [flat_settings(row.settings) for row in study.rows] + [flat_settings(study.settings)]
    return list(dict.fromkeys(str(values["model.module"]) for values in told if values.get("model.module")))


def read_study(folder: str | Path, *, any_code: bool = False, code: str | None = None) -> StudyResult:
    """What a study has found so far, from its folder; nothing is run or written.

    Raises:
        ConfigError: the folder holds no study, or its data is not there any more.
    """
    plan = plan_study(load_study(folder), folder, code=code)
    return result_of(of_any_code(plan) if any_code else plan, {})


def result_of(plan: StudyPlan, failed: dict[str, str]) -> StudyResult:
    """What the folder of a study holds so far."""
    return StudyResult(
        study=plan.study,
        output=plan.output,
        code=plan.code,
        runs=tuple(_records(plan)),
        num_planned=len(plan.jobs),
        failed=dict(failed),
        notes=tuple(notes_of_others(plan)),
    )


def hints(plan: StudyPlan) -> Iterator[str]:
    """What one should know before the runs: rows that learn from few clips of one's own, and from nothing before."""
    made = {entry.name for entry in plan.study.data if entry.make}
    few = [
        job.num_training
        for job in plan.jobs
        if 0 < job.num_training < FEW_CLIPS
        and job.preparation is None
        and not job.config.model.weights
        and job.data not in made
        and job.config.task != "intervals"
    ]
    # of one that sees what changed, a few clips are enough; the others are what it is compared with
    if few and not any(job.config.model.options.get("changes_only") for job in plan.jobs):
        yield (
            f"{len(few)} of {len(plan.jobs)} runs start from new weights and have {min(few)} clips or a few more to "
            "train on. Where motion alone tells classes apart, that leaves a model that sees whole pictures at chance: "
            "the model of kinescan study own_motion_cpu sees what changed (docs/studies.md)."
        )


def _records(plan: StudyPlan) -> list[RunRecord]:
    found = ((job, read_record(job.folder)) for job in plan.jobs)
    # a run that studies share may have been done under the names of another one
    return [
        replace(record, row=job.row, data=job.data, notes=_true_notes(record, job.folder))
        for job, record in found
        if record is not None
    ]


def _true_notes(record: RunRecord, folder: Path) -> tuple[str, ...]:
    """The notes of a run; earlier versions said of a single evaluation, too, that it had chosen the checkpoint."""
    chosen = CHOSEN_ON_THESE not in record.notes or was_chosen(RunFolder(folder).best, folder)
    return tuple(note for note in record.notes if chosen or note != CHOSEN_ON_THESE)


def _make_data(plan: StudyPlan) -> bool:
    """Makes synthetic data that is not there yet; says whether anything was made."""
    made = False
    used = {preparation.name for preparation in plan.preparations}
    makers: list[DataEntry | Preparation] = [
        *plan.study.data,
        *(found for found in plan.study.preparations if found.name in used),
    ]
    for entry in makers:
        if entry.make and not is_made(folder := made_folder(plan.store, entry)):
            values = {key: value for key, value in entry.make.items() if key != "kind"}
            prepare_output(folder.parent)
            with locked(folder.parent):
                if not is_made(folder):
                    logger.info("study: making the data %r", entry.name)
                    # what is there was left by a call that was broken off
                    make(entry.make["kind"], folder, **values, overwrite=True)
            made = True
    return made


@dataclass
class _Run:
    """What is done in one call, and how it ends."""

    plan: StudyPlan
    schedule: Schedule
    processes: int
    modules: tuple[str, ...]

    def all(self) -> StudyResult:
        """All that is not done; the results are written after each run."""
        self._write()
        total, num_left = len(self.plan.jobs), len(left(self.plan))
        if num_left < total:
            logger.info("study: %d of %d runs are done", total - num_left, total)
        try:
            outcome = self._here() if self.processes == 1 else self._beside()
        except KeyboardInterrupt:
            outcome = Outcome(state="stopped", message="stopped by a signal.")
        result = self._write()
        counted = f"{len(result.runs)} of {total} runs of the study are done"
        if outcome.state == "stopped":
            raise TrainingInterrupted(f"{outcome.message} {counted}; the same command continues it.")
        if outcome.state == "ending":
            raise KinescanError(f"{outcome.message} {counted}; the same command continues it when that is mended.")
        if self.schedule.failed:
            first, reason = next(iter(self.schedule.failed.items()))
            raise KinescanError(f"{counted}. {first} is not: {reason} The same command tries it again.")
        return result

    def _here(self) -> Outcome:
        """One task after another, in this process."""
        while (task := self.schedule.next()) is not None:
            self._told(task, None)
            outcome = perform(task, code=self.plan.code)
            self.schedule.end(task, outcome)
            self._told(task, outcome)
            if outcome.state in ("stopped", "ending"):
                return outcome
        return Outcome()

    def _beside(self) -> Outcome:
        """Several tasks at a time, in processes of their own."""
        return run_in_processes(
            self.schedule,
            code=self.plan.code,
            processes=min(self.processes, max(1, len(self.schedule.waiting))),
            told=self._told,
            modules=self.modules,
        )

    def _told(self, task: Task, outcome: Outcome | None) -> None:
        if outcome is None:
            left = len(self.schedule.waiting)
            logger.info("study: %s (%d more to do)", title_of(task), left)
            return
        if outcome.state == "failed":
            logger.warning("study: %s is not done: %s", title_of(task), outcome.message)
        self._write()

    def _write(self) -> StudyResult:
        result = result_of(self.plan, self.schedule.failed)
        save_result(result)
        return result
