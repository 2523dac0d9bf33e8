import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from accelerate import Accelerator

from kinescan.errors import CheckpointError
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import read_bytes
from kinescan.runtime.run_folder import RunFolder
from kinescan.training.callbacks import Callback, End, Epoch, Evaluation, Start, Step
from kinescan.training.progress import listed, memory_gib

logger = logging.getLogger(__name__)

_ADVICE = "Free space or put its folder back, then continue with --resume."

_MAX_BYTES = 2**30
"""Bytes of a log.jsonl that is read to continue from."""


class Journal:
    """The run's log.jsonl: one JSON object a line, each with its `kind` and `step`; written through at once.

    Where somebody removes or shortens the file meanwhile, it is written anew.

    Args:
        path: the file.
        keep_lines: lines of an existing file that belong to the run so far; those after them are dropped.

    Raises:
        CheckpointError: the file cannot be written.
    """

    def __init__(self, path: Path, *, keep_lines: int = 0) -> None:
        self._path = path
        self._lines = _lines(path)[:keep_lines]
        if len(self._lines) < keep_lines:
            logger.warning(
                "%s holds %d lines; the run had written %d, and those that are missing are lost",
                *(path, len(self._lines), keep_lines),
            )
        self._file: TextIO | None = None
        self._size = 0
        self._open()

    @property
    def num_lines(self) -> int:
        """Lines in the file."""
        return len(self._lines)

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Adds one line.

        Raises:
            CheckpointError: the disk is full, or the file cannot be written any more.
        """
        line = json.dumps({"kind": kind, **values})
        self._keep_file()
        with _reported(self._path):
            assert self._file is not None
            self._file.write(line + "\n")
            self._file.flush()
        self._lines.append(line)

    def sync(self) -> None:
        """Makes sure that every line is on the disk.

        Raises:
            CheckpointError: it cannot be written any more.
        """
        self._keep_file()
        with _reported(self._path):
            assert self._file is not None
            os.fsync(self._file.fileno())

    def _keep_file(self) -> None:
        """Writes the file anew where somebody removed, replaced or shortened it."""
        assert self._file is not None
        try:
            now, own = os.stat(self._path), os.fstat(self._file.fileno())
            if os.path.samestat(now, own) and now.st_size >= self._size:
                self._size = now.st_size
                return
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _error(self._path, error) from error
        logger.warning("%s was removed or changed by someone else; it is written anew", self._path)
        self.close()
        self._open()

    def _open(self) -> None:
        """Writes the lines so far and opens the file behind them."""
        with _reported(self._path):
            # A folder that somebody took away is not made anew.
            os.stat(self._path.parent)
        write_text(self._path, "".join(line + "\n" for line in self._lines), error=CheckpointError, advice=_ADVICE)
        with _reported(self._path):
            self._file = self._path.open("a", encoding="utf-8", newline="\n")
            self._size = os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Closes the file."""
        # A line that could not be written would be tried once more; its error has been raised already.
        with suppress(OSError):
            if self._file is not None:
                self._file.close()


class RunLog(Callback):
    """Writes what the run tells into log.jsonl, the trackers and the program's log; at the end, the unreadable videos.

    The main process writes; the others write nothing.

    Args:
        folder: of the run.
        accelerator: holds the trackers.
        num_epochs: in the whole run.
        log_every: steps between two lines.
        keep_lines: lines of log.jsonl that belong to the run so far.
    """

    def __init__(
        self, folder: RunFolder, accelerator: Accelerator, *, num_epochs: int, log_every: int, keep_lines: int
    ) -> None:
        self._folder, self._accelerator, self._num_epochs = folder, accelerator, num_epochs
        self._log_every, self._keep_lines = log_every, keep_lines
        self._journal: Journal | None = None
        self._is_main = False

    @property
    def num_lines(self) -> int:
        """Lines in log.jsonl; 0 in other processes than the main one."""
        return 0 if self._journal is None else self._journal.num_lines

    def sync(self) -> None:
        """Makes sure that every line is on the disk.

        Raises:
            CheckpointError: it cannot be written any more.
        """
        if self._journal is not None:
            self._journal.sync()

    def on_start(self, start: Start) -> None:
        """Opens log.jsonl."""
        self._is_main = start.is_main
        if start.is_main:
            self._journal = Journal(self._folder.log, keep_lines=self._keep_lines)

    def on_step(self, step: Step) -> None:
        """A line for every `log_every` steps that had a clip."""
        if step.step % self._log_every == 0 and step.num_clips:
            names = ("loss", "accuracy", "balanced_accuracy", "lr", "gradient_norm", "clips_per_second")
            self._write("step", step.epoch, step.step, _known(step, names))

    def on_epoch(self, epoch: Epoch) -> None:
        """The epoch's line."""
        names = ("loss", "accuracy", "balanced_accuracy", "gradient_norm", "clips_per_second", "seconds")
        values = _known(epoch, names)
        self._write("epoch", epoch.epoch, epoch.step, {**values, "unreadable": epoch.num_unreadable})
        balanced = epoch.balanced_accuracy
        also = "" if balanced is None else f" ({100 * balanced:.1f} % balanced over classes)"
        logger.info(
            "epoch %d/%d  loss %.4f  accuracy %.1f %%%s  %.1f clips/s  %.1f GiB", epoch.epoch + 1, self._num_epochs,
            epoch.loss, 100 * epoch.accuracy, also, epoch.clips_per_second, memory_gib(self._accelerator.device),
        )  # fmt: skip

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """The evaluation's line."""
        self._write("evaluation", evaluation.epoch, evaluation.step, evaluation.scores)
        logger.info("epoch %d/%d  evaluation  %s", evaluation.epoch + 1, self._num_epochs, listed(evaluation.scores))

    def on_end(self, end: End) -> None:
        """Lists unreadable videos and closes log.jsonl."""
        try:
            if self._is_main:
                write_unreadable(self._folder.unreadable, end.unreadable)
            if end.unreadable:
                number, path = len(end.unreadable), self._folder.unreadable
                logger.warning("%d training videos could not be read; reasons in %s", number, path)
        finally:
            if self._journal is not None:
                self._journal.close()

    def _write(self, kind: str, epoch: int, step: int, values: Mapping[str, float]) -> None:
        if self._journal is not None:
            self._journal.write(kind, {"epoch": epoch + 1, "step": step, **values})
        self._accelerator.log({f"{kind}/{key}": value for key, value in values.items()}, step=step)


def _known(told: Step | Epoch, names: Iterable[str]) -> dict[str, float]:
    """The values of these names that there are."""
    return {name: getattr(told, name) for name in names if getattr(told, name) is not None}


def write_unreadable(path: Path, unreadable: Mapping[str, str]) -> None:
    """Lists videos that could not be read, with the reason of each, as JSON; no list, no file."""
    if unreadable:
        rows = [{"path": video, "reason": reason} for video, reason in sorted(unreadable.items())]
        write_text(path, to_json(rows, indent=1) + "\n", error=CheckpointError)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _lines(path: Path) -> list[str]:
    """Every whole line."""
    if not path.exists():
        return []
    # Whoever wrote something else into it: the lines that belong to the run are still found.
    content = read_bytes(path, max_bytes=_MAX_BYTES, error=CheckpointError)
    return content.decode("utf-8", errors="replace").split("\n")[:-1]


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _error(path, error) from error


def _error(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be written ({error.strerror or error}). {_ADVICE}")
