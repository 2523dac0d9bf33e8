import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinescan.errors import ConfigError


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
        keep_until: lines of later steps are dropped first, since the run goes on from there; None starts anew.
    """

    def __init__(self, path: Path, *, keep_until: int | None = None) -> None:
        kept = [] if keep_until is None else [line for line in _lines(path) if line.get("step", 0) <= keep_until]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Adds one line."""
        self._file.write(json.dumps({"kind": kind, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def write_unreadable(path: Path, unreadable: Mapping[str, str]) -> None:
    """Lists videos that could not be read, with the reason of each, as JSON; no list, no file."""
    if unreadable:
        rows = [{"path": video, "reason": reason} for video, reason in sorted(unreadable.items())]
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line; one cut short by a sudden end is left out."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
    return lines
