import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kinescan.errors import CheckpointError, ConfigError


def prepare_output(folder: str | Path) -> Path:
    """The folder of a run, made and tried out by writing into it.

    Raises:
        ConfigError: nothing can be written there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     prepare_output(Path(parent) / "runs" / "a").is_dir()
        True
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"output {str(folder)!r} cannot be written ({reason}). Choose another folder with --output or `output`."
        ) from error
    return folder


class Journal:
    """The run's log.jsonl: one JSON object a line, each with its `kind` and `step`; written through at once.

    Args:
        path: the file.
        keep_lines: so many lines are kept, since the run goes on from there; 0 starts anew.

    Attributes:
        num_lines: lines in the file.

    Raises:
        CheckpointError: the file cannot be written.
    """

    def __init__(self, path: Path, *, keep_lines: int = 0) -> None:
        kept = _lines(path)[:keep_lines]
        self.num_lines = len(kept)
        with _reported(path):
            aside = path.with_name(f".{path.name}.new")
            aside.write_text("".join(line + "\n" for line in kept), encoding="utf-8", newline="\n")
            os.replace(aside, path)
            self._file = path.open("a", encoding="utf-8", newline="\n")
        self._path = path

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Adds one line.

        Raises:
            CheckpointError: the disk is full, or the file cannot be written any more.
        """
        with _reported(self._path):
            self._file.write(json.dumps({"kind": kind, **values}) + "\n")
            self._file.flush()
        self.num_lines += 1

    def sync(self) -> None:
        """Makes sure that every line is on the disk.

        Raises:
            CheckpointError: it cannot be written any more.
        """
        with _reported(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        # A line that could not be written would be tried once more; whoever wrote it has been told.
        with suppress(OSError):
            self._file.close()


def write_unreadable(path: Path, unreadable: Mapping[str, str]) -> None:
    """Lists videos that could not be read, with the reason of each, as JSON; no list, no file."""
    if unreadable:
        rows = [{"path": video, "reason": reason} for video, reason in sorted(unreadable.items())]
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _lines(path: Path) -> list[str]:
    """Every whole line."""
    if not path.is_file():
        return []
    return path.read_text(encoding="utf-8").split("\n")[:-1]


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror or error}). Free space, then go on with --resume."
        ) from error
