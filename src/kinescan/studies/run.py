"""Runs a study: what is not done yet, one run after another, with the results written after each."""

import errno
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tomli_w

from kinescan.config import flat_settings, parse_overrides
from kinescan.errors import ConfigError, KinescanError, TrainingInterrupted
from kinescan.runs.make_data import make
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import to_json
from kinescan.runtime.folder_lock import locked
from kinescan.runtime.launch import world_size
from kinescan.runtime.output_folder import prepare_output
from kinescan.settings import to_plain
from kinescan.studies.job import RunRecord, prepare, read_record, run_job
from kinescan.studies.plan import Job, StudyPlan, is_made, made_folder, plan_study
from kinescan.studies.result import StudyResult
from kinescan.studies.study import STUDY_FILE, Study, load_study

logger = logging.getLogger(__name__)

RESULT_FILE, PAGE_FILE = "study.json", "study.md"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""What the system says where no other run could be written either."""


def run_study(
    study: Study | str | Path,
    *,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    code: str | None = None,
) -> StudyResult:
    """Runs all that is not done yet of a study, and writes what came out.

    The folder holds study.toml (what was asked for), study.json, study.md, and runs/ with a run for each row, data set
    and seed. Called again it continues: what is done is not run again, and a run that was broken off continues from its
    checkpoint.

    Args:
        study: the study, its TOML file, or the folder of one that was begun.
        output: folder of everything; by default runs/NAME, or the folder that was named.
        overrides: "dotted.key=value" each, for every run; they go before all other settings.
        code: what the results are told apart by, besides settings and data; by default the commit.

    Raises:
        ConfigError: a row cannot be built, two are alike, data is missing, or the folder is in use or cannot be
            written.
        TrainingInterrupted: a signal came; the same call continues.
        KinescanError: a run met what ends the others, too, such as a full disk.
    """
    if world_size() > 1:
        raise ConfigError("a study is work for one process. Start it without torchrun.")
    if isinstance(study, str | Path):
        folder = Path(study)
        output = output or (folder if folder.is_dir() else None)
        study = load_study(study)
    study = with_overrides(study, overrides)
    plan = plan_study(study, output, code=code)
    folder = prepare_output(plan.output)
    with locked(folder):
        write_text(folder / STUDY_FILE, dump_study(plan.study))
        if _make_data(plan):
            plan = plan_study(study, output, code=code)
        return _Runner(plan).run()


def with_overrides(study: Study, overrides: Sequence[str]) -> Study:
    """The study with settings of every run that go before those of its rows.

    Raises:
        ConfigError: one is not "key=value".
    """
    if not overrides:
        return study
    given = flat_settings(parse_overrides(overrides))
    rows = tuple(replace(row, settings=flat_settings(row.settings) | given) for row in study.rows)
    return replace(study, rows=rows)


def dump_study(study: Study) -> str:
    """The study as TOML; `load_study` reads it back to the same.

    Raises:
        ConfigError: a setting has a value that TOML cannot hold.
    """
    try:
        return tomli_w.dumps(to_plain(study))
    except TypeError as error:
        raise ConfigError(f"the study cannot be written as TOML ({error}). Leave settings out that are None.") from None


def read_study(folder: str | Path, *, code: str | None = None) -> StudyResult:
    """What a study has found so far, from its folder; nothing is run or written.

    Raises:
        ConfigError: the folder holds no study, or its data is not there any more.
    """
    plan = plan_study(load_study(folder), folder, code=code)
    return _Runner(plan).result()


def _make_data(plan: StudyPlan) -> bool:
    """Makes what makes itself and is not there; says whether anything was made."""
    made = False
    for entry in plan.study.data:
        if entry.make and not is_made(folder := made_folder(plan.output, entry)):
            logger.info("study: making the data %r", entry.name)
            values = {key: value for key, value in entry.make.items() if key != "kind"}
            # what is there was left by a call that was broken off
            make(entry.make["kind"], folder, **values, overwrite=True)
            made = True
    return made


@dataclass
class _Runner:
    """What a study does with its runs, one after another."""

    plan: StudyPlan
    failed: dict[str, str] = field(default_factory=dict)

    def run(self) -> StudyResult:
        """All that is not done; the results are written after each."""
        self._write()
        left = [job for job in self.plan.jobs if read_record(job.folder) is None]
        if len(left) < len(self.plan.jobs):
            logger.info("study: %d of %d runs are done", len(self.plan.jobs) - len(left), len(self.plan.jobs))
        for number, job in enumerate(left, len(self.plan.jobs) - len(left) + 1):
            logger.info("study: run %d of %d: %s", number, len(self.plan.jobs), job.title)
            self._run(job)
        result = self.result()
        if self.failed:
            first = next(iter(self.failed))
            raise KinescanError(
                f"{len(self.failed)} of {len(self.plan.jobs)} runs are not done, such as {first}: {self.failed[first]} "
                "The others are. The same command tries them again."
            )
        return result

    def _run(self, job: Job) -> None:
        try:
            if job.preparation is not None:
                prepare(job.preparation)
            run_job(job, code=self.plan.code)
        except TrainingInterrupted as error:
            self._write()
            done = len(self._records())
            raise TrainingInterrupted(
                f"{job.title}: {error} {done} of {len(self.plan.jobs)} runs of the study are done; the same command "
                "continues it."
            ) from error
        except KinescanError as error:
            if is_of_disk(error):
                raise
            logger.warning("study: %s is not done: %s", job.title, error)
            self.failed[job.title] = str(error)
        self._write()

    def _records(self) -> list[RunRecord]:
        return [record for job in self.plan.jobs if (record := read_record(job.folder)) is not None]

    def result(self) -> StudyResult:
        """What there is so far."""
        return StudyResult(
            study=self.plan.study,
            output=self.plan.output,
            code=self.plan.code,
            runs=tuple(self._records()),
            num_planned=len(self.plan.jobs),
            failed=dict(self.failed),
        )

    def _write(self) -> None:
        result = self.result()
        write_text(self.plan.output / RESULT_FILE, to_json(result.to_json(), indent=1) + "\n")
        write_text(self.plan.output / PAGE_FILE, result.to_markdown())


def is_of_disk(error: BaseException) -> bool:
    """Whether the system refuses to write, so that every other run would fail, too."""
    return any(isinstance(cause, OSError) and cause.errno in FULL for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
