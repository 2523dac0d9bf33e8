"""The tasks of a study, each done once: preparations first, then the runs that start from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kinescan.errors import KinescanError, TrainingInterrupted
from kinescan.studies.job import is_of_disk, is_prepared, prepare, read_record, run_job
from kinescan.studies.plan import Job, PreparedJob, StudyPlan

Task = Job | PreparedJob


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a task ended.

    Attributes:
        state: "done"; "failed", while others may continue; "stopped" by a signal; or "ending", by
            something that ends all other tasks, too, such as a full disk.
        message: of the error; empty where there was none.
    """

    state: Literal["done", "failed", "stopped", "ending"] = "done"
    message: str = ""


def title_of(task: Task) -> str:
    """What a task is called in log lines."""
    return task.title if isinstance(task, Job) else f"{task.name} / seed {task.seed}"


def perform(task: Task, *, code: str) -> Outcome:
    """Does a task, or continues it, and gives how it ended. A task that is done already costs nothing."""
    try:
        if isinstance(task, Job):
            run_job(task, code=code)
        else:
            prepare(task, code=code)
    except TrainingInterrupted as error:
        return Outcome(state="stopped", message=str(error))
    except KinescanError as error:
        return Outcome(state="ending" if is_of_disk(error) else "failed", message=str(error))
    return Outcome()


@dataclass
class Schedule:
    """Which task comes next.

    Attributes:
        waiting: tasks that were not begun, in their order.
        running: those that were begun.
        failed: title of a run -> why it is not done.
    """

    waiting: list[Task]
    running: list[Task] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def next(self) -> Task | None:
        """The first task whose preparation is done; None where there is none at the moment."""
        for task in self.waiting:
            if task.preparation is None or is_prepared(task.preparation):
                self.waiting.remove(task)
                self.running.append(task)
                return task
        return None

    def end(self, task: Task, outcome: Outcome) -> None:
        """Removes a task that ended; where it failed, the runs that need it fail, too."""
        self.running.remove(task)
        if outcome.state != "done":
            self._fail(task, outcome.message)

    def _fail(self, task: Task, message: str) -> None:
        self.failed[title_of(task)] = message
        for other in [other for other in self.waiting if other.preparation == task]:
            self.waiting.remove(other)
            self._fail(other, f"its preparation {title_of(task)} is not done")


def schedule(plan: StudyPlan) -> Schedule:
    """All that is not done yet."""
    return Schedule(list(_tasks(plan)))


def _tasks(plan: StudyPlan) -> Iterator[Task]:
    seen: list[PreparedJob] = []
    for job in left(plan):
        for preparation in () if job.preparation is None else job.preparation.chain():
            if preparation not in seen:
                seen.append(preparation)
                if not is_prepared(preparation):
                    yield preparation
        yield job


def left(plan: StudyPlan) -> Sequence[Job]:
    """The runs that are not done yet."""
    return [job for job in plan.jobs if read_record(job.folder) is None]
