"""One run of a study: trained, or continued, and what came out written into its folder."""

import errno
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from kinescan.config import RunConfig
from kinescan.errors import ConfigError, NonFiniteError
from kinescan.evaluation.report import Report
from kinescan.evaluation.temporal.report import TemporalReport
from kinescan.profiling.cost import training_flops
from kinescan.profiling.environment import describe_environment
from kinescan.runs.stills import train_on_stills
from kinescan.runs.train import TrainResult, train
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import read_json_object
from kinescan.runtime.folder_lock import is_locked
from kinescan.runtime.run_folder import RunFolder
from kinescan.runtime.safetensors_internals import refused_by_system
from kinescan.studies.curves import read_curves
from kinescan.studies.plan import Job, PreparedJob
from kinescan.training.callbacks import Callback, End, Epoch, Step

logger = logging.getLogger(__name__)

RESULT_FILE = "study_run.json"
"""In a run's folder, when the run is done."""
BEGUN_FILE = "study_begun.json"
"""In a run's folder, from its begin: what it is of."""
TIME_FILE = "study_time.json"
"""In a run's folder: the time spent so far."""
DONE, NON_FINITE = "done", "non_finite"
WRITE_EVERY_SECONDS = 10.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Numbers of the system's errors after which every other run would fail, too."""
PATIENCE_SECONDS = 60.0
"""How long a run's folder may be in use by a process that is ending."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What one run of a study gave.

    Attributes:
        row: its name.
        data: its name; empty where the study names none.
        seed: of the run.
        status: "done", or "non_finite" where loss or gradients became NaN or infinite.
        message: of the error, where it did.
        scores: of the final report, by name.
        folder: of the run.
        key: of all that the result depends on, but for the code.
        code: that it was made with.
        data_digest: of the videos and their division.
        num_training: videos that were trained on.
        seconds: wall time of all sessions, evaluations included.
        cpu_seconds: processor time of the same, with that of processes that read videos.
        train_seconds: wall time of the epochs alone, each counted once.
        sessions: how often the run was started or continued; what was done twice after a kill counts in the times.
        epochs: that were trained.
        best_epoch: the one whose checkpoint was scored, from 1; None for the last.
        steps: of the optimizer.
        num_parameters: of the model; None where it is not known.
        num_trained: of them, those that are trained.
        macs: of one view, with attention's products; None where it is not known.
        training_flops: three forward passes a clip, two operations a MAC, frozen parts counted as if they were trained;
            None where it is not known.
        environment: hardware and versions.
        notes: of the final report.
    """

    row: str
    data: str
    seed: int
    status: str
    message: str = ""
    scores: Mapping[str, float]
    folder: str
    key: str
    code: str
    data_digest: str
    num_training: int
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    train_seconds: float = 0.0
    sessions: int = 1
    epochs: int = 0
    best_epoch: int | None = None
    steps: int = 0
    num_parameters: int | None = None
    num_trained: int | None = None
    macs: int | None = None
    training_flops: float | None = None
    environment: Mapping[str, Any]
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {"scores": dict(self.scores), "notes": list(self.notes)}


def read_record(folder: Path) -> RunRecord | None:
    """What a run of a study gave; None where it is not done.

    Raises:
        ConfigError: the record is damaged.
    """
    file = folder / RESULT_FILE
    if not file.exists():
        return None
    content = read_json_object(file)
    try:
        record = RunRecord(**{**content, "folder": str(folder)})
        if not all(isinstance(value, int | float) for value in record.scores.values()):
            raise TypeError
        return record
    except (TypeError, AttributeError):
        raise ConfigError(
            f"{file} is not the record of a run of a study. Delete it: the run's report is then read again."
        ) from None


def run_job(job: Job, *, code: str) -> RunRecord:
    """Trains, or continues, one run and writes its record.

    Args:
        job: what to run.
        code: that runs, for the record.

    Raises:
        KinescanError: as `train` raises it, but for non-finite losses, which are the run's result.
    """
    before = read_record(job.folder)
    if before is not None:
        return before
    _wait_until_free(job.folder)
    _begin(job, code)
    clock = _Clock(job.folder)
    try:
        outcome: TrainResult | NonFiniteError = train(
            _prepared_config(job),
            output=job.folder,
            resume=RunFolder(job.folder).checkpoints.is_dir(),
            callbacks=[clock],
        )
    except NonFiniteError as error:
        outcome = error
    finally:
        clock.write()
    record = _record(job, outcome, clock, code=code)
    write_text(job.folder / RESULT_FILE, to_json(record.to_json(), indent=1) + "\n")
    return record


def _begin(job: Job | PreparedJob, code: str) -> None:
    """Writes down what the folder is of, so that a later call knows it again."""
    file = job.folder / BEGUN_FILE
    if not file.exists():
        write_text(file, to_json({"key": job.key, "code": code}) + "\n")


def begun(folder: Path) -> dict[str, Any]:
    """Key and code of a run that was begun; empty where none was, or where the file is damaged."""
    try:
        return read_json_object(folder / BEGUN_FILE)
    except ConfigError:
        return {}


def prepare(job: PreparedJob, *, code: str) -> Path:
    """Trains the weights of a preparation, or continues; those that are there are taken.

    Returns:
        The folder of the weights.

    Raises:
        KinescanError: as `train` raises it.
    """
    done = job.folder / RESULT_FILE
    if not is_prepared(job):
        _wait_until_free(job.folder)
        _begin(job, code)
        clock = _Clock(job.folder)
        resume = RunFolder(job.folder).checkpoints.is_dir()
        try:
            if job.kind == "stills":
                train_on_stills(job.config, job.folder, job.stills_per_epoch, resume=resume, callbacks=[clock])
            else:
                train(_prepared_config(job), output=job.folder, resume=resume, callbacks=[clock])
        finally:
            clock.write()
        content = {"name": job.name, "seed": job.seed, "key": job.key, **clock.spent()}
        write_text(done, to_json(content, indent=1) + "\n")
    return weights_of(job)


def is_prepared(job: PreparedJob) -> bool:
    """Whether the weights of a preparation are there."""
    return (job.folder / RESULT_FILE).exists()


def weights_of(job: PreparedJob) -> Path:
    """Where the weights of a preparation lie when it is done."""
    folder = RunFolder(job.folder)
    return folder.best if folder.best.is_dir() else folder.last


def _prepared_config(job: Job | PreparedJob) -> RunConfig:
    if job.preparation is None:
        return job.config
    model = replace(job.config.model, weights=str(weights_of(job.preparation)))
    return replace(job.config, model=model)


def _record(job: Job, outcome: TrainResult | NonFiniteError, clock: "_Clock", *, code: str) -> RunRecord:
    curves = read_curves(job.folder)
    known: dict[str, Any] = {}
    if isinstance(outcome, TrainResult):
        cost = outcome.report.cost
        known = {"best_epoch": outcome.best_epoch, "steps": outcome.fit.steps}
        known["notes"] = list(outcome.report.notes)
        if cost is not None:
            macs = cost.macs.with_attention
            known |= {"num_parameters": cost.num_parameters, "num_trained": cost.num_trained, "macs": macs}
        if cost is not None and isinstance(outcome.report, Report):
            num_clips = job.num_training * job.config.data.passes(job.num_training)
            known["training_flops"] = training_flops(macs, num_clips=num_clips, num_epochs=len(curves.epochs))
    return RunRecord(
        row=job.row,
        data=job.data,
        seed=job.seed,
        status=DONE if isinstance(outcome, TrainResult) else NON_FINITE,
        message="" if isinstance(outcome, TrainResult) else str(outcome),
        scores=scores_of(outcome.report) if isinstance(outcome, TrainResult) else {},
        folder=str(job.folder),
        key=job.key,
        code=code,
        data_digest=job.data_digest,
        num_training=job.num_training,
        epochs=len(curves.epochs),
        train_seconds=round(curves.seconds, 3),
        environment=asdict(describe_environment()),
        **clock.spent(),
        **known,
    )


def scores_of(report: Report | TemporalReport) -> dict[str, float]:
    """The scores of a report that a table may show; those that could not be computed are left out."""
    if isinstance(report, Report):
        metrics = report.evaluation.metrics
        found: dict[str, float | None] = {
            "top1": metrics.top1,
            "top5": metrics.top5,
            "mean_class_accuracy": metrics.mean_class_accuracy,
            "calibration_error": metrics.calibration_error,
            "loss": metrics.loss,
        }
    else:
        found = report.scores.summary
    return {name: float(value) for name, value in found.items() if value is not None and value - value == 0}


class _Clock(Callback):
    """The time that a run takes, over all sessions; written often, so that a kill loses seconds.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._now = folder, now
        self._started, self._cpu_started = now(), _cpu_seconds()
        self._written = self._started
        self._before = {"seconds": 0.0, "cpu_seconds": 0.0, "sessions": 0}
        try:
            found = read_json_object(folder / TIME_FILE)
            self._before = {key: type(value)(found[key]) for key, value in self._before.items()}
        except (ConfigError, KeyError, TypeError, ValueError):
            # A run that begins, or whose record of time was damaged: what is known is this session.
            pass

    def spent(self) -> dict[str, Any]:
        """Wall and processor seconds of all sessions, and how many there were."""
        return {
            "seconds": round(self._before["seconds"] + self._now() - self._started, 3),
            "cpu_seconds": round(self._before["cpu_seconds"] + _cpu_seconds() - self._cpu_started, 3),
            "sessions": int(self._before["sessions"]) + 1,
        }

    def on_step(self, step: Step) -> None:
        """Writes the time now and then."""
        if self._now() - self._written > WRITE_EVERY_SECONDS:
            self.write()

    def on_epoch(self, epoch: Epoch) -> None:
        """Writes the time."""
        self.write()

    def on_end(self, end: End) -> None:
        """Writes the time."""
        self.write()

    def write(self) -> None:
        """Writes the time; where the disk is full, what matters more will say so."""
        self._written = self._now()
        if self._folder.is_dir():
            try:
                write_text(self._folder / TIME_FILE, to_json(self.spent()) + "\n")
            except ConfigError as error:
                logger.warning("%s", error)


def is_of_disk(error: BaseException | None) -> bool:
    """Whether the system refuses to write, so that every other run would fail, too."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if refused_by_system(error, _FULL):
            return True
        error = error.__cause__
    return False


def _cpu_seconds() -> float:
    """Processor time of this process and of those that it started and that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _wait_until_free(folder: Path) -> None:
    """A run that was interrupted may take a while to end."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    if is_locked(folder):
        logger.info("%s is in use by a process that may be ending; waiting up to %.0f s", folder, PATIENCE_SECONDS)
    while is_locked(folder) and time.monotonic() < deadline:
        time.sleep(0.5)
