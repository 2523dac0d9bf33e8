"""Several runs of a study in parallel: each worker is a process that does one task after another."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from kinescan.runtime.escaping import escape_terminal
from kinescan.runtime.own_modules import import_own_module
from kinescan.runtime.signals import Interruption
from kinescan.runtime.urls import mask_urls
from kinescan.studies.tasks import Outcome, Schedule, Task, perform, title_of

logger = logging.getLogger(__name__)

LEAVE_SECONDS = 120.0
"""How long a worker that was asked to stop may take to leave its checkpoint."""


@dataclass
class _Worker:
    """A process, and what it does at the moment."""

    process: BaseProcess
    connection: Connection
    task: Task | None = None


def run_in_processes(
    schedule: Schedule,
    *,
    code: str,
    processes: int,
    told: Callable[[Task, Outcome | None], None],
    modules: Sequence[str] = (),
) -> Outcome:
    """Does all tasks of a schedule, several at a time; a worker that is killed fails its task alone.

    Args:
        schedule: what is to be done.
        code: that runs, for the records.
        processes: how many tasks run at a time, each by a process of its own, on its part of the cores.
        told: called with each task when it begins (None) and when it has ended.
        modules: names of modules that register models, for each process to import.

    Returns:
        "done" where all tasks ended, well or not; or why the others were stopped.

    Raises:
        KeyboardInterrupt: a signal came; the workers have left their checkpoints.
    """
    pool = _Pool(schedule, code, processes, told, modules)
    try:
        return pool.run()
    finally:
        pool.stop()


@dataclass
class _Pool:
    schedule: Schedule
    code: str
    num_processes: int
    told: Callable[[Task, Outcome | None], None]
    modules: Sequence[str]
    workers: list[_Worker] = field(default_factory=list)

    def run(self) -> Outcome:
        """Does all tasks; ends early where one ends in a way that ends all others, too."""
        self._feed()
        while busy := [worker for worker in self.workers if worker.task is not None]:
            ready = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in ready]:
                outcome = self._outcome(worker)
                task, worker.task = worker.task, None
                assert task is not None
                self.schedule.end(task, outcome)
                self.told(task, outcome)
                if outcome.state in ("stopped", "ending"):
                    return outcome
            self._feed()
        return Outcome()

    def stop(self) -> None:
        """Asks all workers to stop, and waits for the checkpoints of those that train."""
        for worker in self.workers:
            if worker.task is not None and worker.process.is_alive():
                worker.process.terminate()
            # one that has stopped its run asks for the next task: the end of the pipe is the answer
            worker.connection.close()
        for worker in self.workers:
            worker.process.join(LEAVE_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self.workers.clear()

    def _feed(self) -> None:
        """Gives idle workers tasks, as far as there are some whose preparation is done."""
        while self._has_room() and (task := self.schedule.next()) is not None:
            worker = next((worker for worker in self.workers if worker.task is None), None) or self._start()
            worker.task = task
            self.told(task, None)
            worker.connection.send(task)

    def _has_room(self) -> bool:
        busy = [worker for worker in self.workers if worker.task is not None]
        return len(busy) < self.num_processes

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        own, others = context.Pipe()
        settings = _Settings(
            code=self.code,
            threads=max(1, torch.get_num_threads() // self.num_processes),
            level=logging.getLogger("kinescan").level,
            path=tuple(sys.path),
            modules=tuple(self.modules),
        )
        worker = _Worker(context.Process(target=_work, args=(others, settings)), own)
        worker.process.start()
        # so that the pipe ends with the worker
        others.close()
        self.workers.append(worker)
        return worker

    def _outcome(self, worker: _Worker) -> Outcome:
        """How a worker's task ended; a worker that was killed counts as a failed task and is removed."""
        try:
            outcome: Outcome = worker.connection.recv()
            return outcome
        except (EOFError, ConnectionError):
            worker.process.join()
            self.workers.remove(worker)
            code = worker.process.exitcode or 0
            how = f"signal {-code} ({_signal_name(-code)})" if code < 0 else f"exit code {code}"
            return Outcome(
                state="failed",
                message=f"the process that ran it ended with {how}. Where memory is short, use fewer --processes.",
            )


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """Settings of a worker: `threads` of torch, the `level` of the log, the search `path` of modules."""

    code: str
    threads: int
    level: int
    path: tuple[str, ...]
    modules: tuple[str, ...]


class _Line(logging.Handler):
    """Lines of a worker on standard error, each with the run that it is about."""

    title = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = escape_terminal(mask_urls(f"[{self.title}] {self.format(record)}"))
        with suppress(OSError):
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


def _work(connection: Connection, settings: _Settings) -> None:
    """The life of a worker: tasks come through the pipe, and how they ended goes back."""
    if hasattr(os, "setsid"):
        # Ctrl-C on the terminal reaches the parent alone, which asks each worker once.
        os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Bars of several runs would overwrite each other.
    os.environ["TTY_COMPATIBLE"] = "0"
    torch.set_num_threads(settings.threads)
    line = _Line()
    package = logging.getLogger("kinescan")
    package.addHandler(line)
    package.setLevel(settings.level)
    sys.path[:] = settings.path
    try:
        for name in settings.modules:
            import_own_module(name)
        with Interruption() as stop:
            stop.immediate = True
            while True:
                task = connection.recv()
                line.title = title_of(task)
                connection.send(perform(task, code=settings.code))
    except (KeyboardInterrupt, EOFError, ConnectionError):
        # Asked to stop, or nothing is left to do. The system is told that all went well: what counts is on the disk.
        return


def _end_with_parent() -> None:
    """Asks this process to stop when its parent is gone, so that nobody trains for a study that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
