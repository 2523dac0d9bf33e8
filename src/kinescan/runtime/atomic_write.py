"""A file is written whole or not at all."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kinescan.errors import ConfigError

ADVICE = "Free space, or choose another folder that you may write to."


@contextmanager
def atomic_write(
    path: str | Path, *, error: Callable[[str], Exception] = ConfigError, advice: str = ADVICE
) -> Iterator[Path]:
    """A new file beside `path` that takes its name when the block ends well.

    The block writes the file that it is given. Then the file is synced to the disk, gets the permissions that a new
    file has here (or those of the file that it replaces), and is renamed. Where anything fails, nothing is left beside
    `path`, and the old file stays as it was.

    Args:
        path: the file to write; its folder is made where it is missing.
        error: makes the error to raise where the system refuses to write.
        advice: what to do then; ends the message.

    Yields:
        the path to write to, in the same folder; it ends as `path` does.

    Raises:
        ConfigError: (or what `error` makes) the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(f"{folder}/a.json") as aside:
        ...         _ = aside.write_text("{}")
        ...     print(os.listdir(folder))
        ['a.json']
    """
    path = Path(path)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # What is there under that name was left by a killed process, or is a link that would lead elsewhere.
        aside.unlink(missing_ok=True)
        yield aside
        _sync(aside)
        aside.chmod(_mode_of(path))
        os.replace(aside, path)
        _sync_folder(path.parent)
    except OSError as problem:
        raise error(f"{path} cannot be written ({problem.strerror or problem}). {advice}") from problem
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def write_text(
    path: str | Path, text: str, *, error: Callable[[str], Exception] = ConfigError, advice: str = ADVICE
) -> None:
    """Writes a text file as UTF-8, whole or not at all; bytes of names that are not UTF-8 are written as they were.

    Args:
        path: the file.
        text: what it shall hold; line ends are written as they are.
        error: makes the error to raise where the system refuses to write.
        advice: what to do then; ends the message.

    Raises:
        ConfigError: (or what `error` makes) the file cannot be written.
    """
    with atomic_write(path, error=error, advice=advice) as aside:
        aside.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def _sync(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    # Not every system opens folders, and not every file system syncs them; the file itself is on the disk by now.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def new_file_mode() -> int:
    """The permissions that a new file gets here. Some writers, such as that of safetensors, make private files."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _mode_of(path: Path) -> int:
    """The permissions of the file that is replaced, or those that a new file gets."""
    with suppress(OSError):
        return path.stat().st_mode & 0o777
    return new_file_mode()
