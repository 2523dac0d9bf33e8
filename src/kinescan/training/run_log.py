import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from kinescan.errors import CheckpointError
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import read_bytes

logger = logging.getLogger(__name__)

_MAX_BYTES = 2**30


class Journal:
    """The run's log.jsonl: one JSON object a line, each with its `kind` and `step`; written through at once.

    Where somebody removes or shortens the file meanwhile, it is written anew.

    Args:
        path: the file.
        keep_lines: so many lines are kept, since the run goes on from there; 0 starts anew.

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
            aside = self._path.with_name(f".{self._path.name}.new")
            # A link of that name would lead elsewhere.
            aside.unlink(missing_ok=True)
            aside.write_text("".join(line + "\n" for line in self._lines), encoding="utf-8", newline="\n")
            os.replace(aside, self._path)
            self._file = self._path.open("a", encoding="utf-8", newline="\n")
            self._size = os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Closes the file."""
        # A line that could not be written would be tried once more; whoever wrote it has been told.
        with suppress(OSError):
            if self._file is not None:
                self._file.close()


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
    return CheckpointError(
        f"{path} cannot be written ({error.strerror or error}). Free space or put its folder back, then go on with "
        "--resume."
    )
