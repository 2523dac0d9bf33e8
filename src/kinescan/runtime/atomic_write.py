"""Files and folders are written whole or not at all: aside first, synced to the disk, then renamed.

`atomic_write` and `write_text` are for one file, `atomic_files` for several that go into a folder together,
`atomic_folder` for a folder that replaces another one.
"""

import errno
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from kinescan.errors import ConfigError, KinescanError
from kinescan.runtime.addresses import require_local
from kinescan.runtime.files import require_path

ADVICE = "Free space, or choose another folder that you may write to."


@contextmanager
def atomic_write(
    path: str | Path,
    *,
    error: Callable[[str], Exception] = ConfigError,
    advice: str = ADVICE,
    sync: bool = True,
) -> Iterator[Path]:
    """A new file beside `path` that takes its name when the block ends well.

    The block writes the file that it is given. Then the file is synced to the disk, gets the permissions that a new
    file has here (or those of the file that it replaces), and is renamed. Where anything fails, nothing is left beside
    `path`, and the old file stays as it was.

    Args:
        path: the file to write; its folder is made where it is missing.
        error: makes the error to raise where the system refuses to write.
        advice: what to do then; ends the message.
        sync: wait until it is on the disk; not needed for what can be made again, such as a cache.

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
    require_path(path, error=error)
    path = Path(path)
    require_local(path, error=error)
    _require_name(path, error)
    # Threads of one process may write the same file, too.
    aside = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_native_id()}.part{path.suffix}")
    try:
        _require_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # What is there under that name was left by a killed process, or is a link that would lead elsewhere.
        aside.unlink(missing_ok=True)
        yield aside
        if sync:
            _sync(aside)
        aside.chmod(_mode_of(path))
        os.replace(aside, path)
        if sync:
            _sync(path.parent)
    except KinescanError:
        # Some of ours are errors of the system, too.
        raise
    except OSError as problem:
        raise error(_refusal(path, problem, advice)) from problem
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def require_writable(
    path: str | Path, *, error: Callable[[str], Exception] = ConfigError, advice: str = ADVICE
) -> None:
    """Refuses before hours of work what `atomic_write` would refuse behind them; a missing folder is made.

    Raises:
        ConfigError: (or what `error` makes) no file of that name can be written.
    """
    require_path(path, error=error)
    path = Path(path)
    require_local(path, error=error)
    _require_name(path, error)
    try:
        _require_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as problem:
        raise error(_refusal(path, problem, advice)) from None


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


@contextmanager
def atomic_files(
    folder: str | Path,
    *,
    last: str = "",
    instead_of: Sequence[str] = (),
    error: Callable[[str], Exception] = ConfigError,
    advice: str = ADVICE,
) -> Iterator[Path]:
    """A new folder whose files go into `folder` together when the block ends well.

    All are whole and on the disk before the first of them takes its name. What else lies in `folder` stays. Where
    anything fails in the block, `folder` holds what it held before, or does not exist as before.

    Args:
        folder: where the files go; made where it is missing.
        last: the file that takes its name after all others, so that where it is there, they are, too.
        instead_of: names in `folder` that are removed before.
        error: makes the error to raise where the system refuses to write.
        advice: what to do then; ends the message.

    Yields:
        the folder to write into.

    Raises:
        ConfigError: (or what `error` makes) the files cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_files(f"{folder}/model", last="config.json") as aside:
        ...         _ = (aside / "config.json").write_text("{}"), (aside / "card.md").write_text("")
        ...     print(sorted(os.listdir(f"{folder}/model")))
        ['card.md', 'config.json']
    """
    folder = Path(folder)
    require_local(folder, error=error)
    aside = folder / f".{os.getpid()}.part"
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove(aside)
        aside.mkdir()
        yield aside
        for path in aside.rglob("*"):
            if path.is_file():
                # Some writers, such as that of safetensors, make private files.
                path.chmod(_mode_of(folder / path.relative_to(aside)))
        _sync_all(aside)
        for name in instead_of:
            (folder / name).unlink(missing_ok=True)
        for path in sorted(aside.iterdir(), key=lambda path: (path.name == last, path.name)):
            os.replace(path, folder / path.name)
        _sync(folder)
    except KinescanError:
        raise
    except OSError as problem:
        raise error(_refusal(folder, problem, advice)) from problem
    finally:
        with suppress(OSError):
            _remove(aside)
        if is_new:
            # Only an empty folder can be removed so.
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def atomic_folder(
    folder: Path,
    *,
    is_whole: Callable[[Path], bool],
    earlier: Path | None = None,
    error: Callable[[str], Exception] = ConfigError,
    advice: str = ADVICE,
) -> Iterator[Path]:
    """A new folder that replaces `folder`, with all that is in it, when the block ends well.

    Whatever happens on the way, `folder` holds either what it held before or the new files; only between the two
    renames it is not there: then the old one is `folder_aside(folder, "old")` (or `earlier`), and the new one is
    `folder_aside(folder, "new")`, which the next call puts into its place.

    Args:
        folder: what is replaced; the folder that it lies in is made where it is missing.
        is_whole: whether a folder that was left by a killed process holds all that it should.
        earlier: where the old folder stands from then on; None removes it.
        error: makes the error to raise where the system refuses to write.
        advice: what to do then; ends the message.

    Yields:
        the folder to write into.

    Raises:
        ConfigError: (or what `error` makes) the folder cannot be written.
    """
    require_local(folder, error=error)
    new, old = folder_aside(folder, "new"), folder_aside(folder, "old")
    kept = old if earlier is None else earlier
    has_moved = False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.exists() and new.is_dir() and is_whole(new):
            # The last call ended between its two renames: what it wrote is the newest there is.
            os.replace(new, folder)
        _remove(new)
        new.mkdir()
        yield new
        _sync_all(new)
        if folder.exists():
            _remove(kept)
            os.replace(folder, kept)
            has_moved = True
        os.replace(new, folder)
        _sync(folder.parent)
        _remove(old)
    except Exception as problem:
        with suppress(OSError):
            if has_moved and not folder.exists():
                os.replace(kept, folder)
        with suppress(OSError):
            _remove(new)
        if isinstance(problem, OSError) and not isinstance(problem, KinescanError):
            raise error(_refusal(folder, problem, advice)) from problem
        raise


def same_file(there: Path, new: Path) -> bool:
    """Makes `new` a second name of a file; False where the system has no such names, or the file is gone."""
    try:
        os.link(there, new)
    except OSError:
        return False
    return True


def folder_aside(folder: Path, role: Literal["new", "old"]) -> Path:
    """Where `atomic_folder` writes the new folder, or puts the old one.

    Example:
        >>> folder_aside(Path("checkpoints/last"), "new").name
        '.last.new'
    """
    return folder.with_name(f".{folder.name}.{role}")


def _require_replaceable(path: Path) -> None:
    """Refuses what a file would replace for good, and was never meant to: devices, named pipes, sockets, folders."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(errno.ENOTSUP, "it is a device, a named pipe or a socket, and a file would replace it")


def _require_name(path: Path, error: Callable[[str], Exception]) -> None:
    """Refuses the root and the current folder, which a file cannot be written beside, and what no file is named."""
    if not path.name:
        raise error(f"{path} is a folder. Give the name of a file in it.")
    if "\0" in str(path):
        raise error(f"{str(path)!r} is the name of no file. Give another one.")


def _refusal(path: Path, problem: OSError, advice: str) -> str:
    return f"{path} cannot be written ({problem.strerror or problem}). {advice}"


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        # It would lead elsewhere.
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _sync_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    """Makes sure that a file, or a folder's list of names, is on the disk."""
    if path.is_dir():
        # Not every system opens folders, and not every file system syncs them; the files are on the disk by now.
        with suppress(OSError):
            _fsync(path, os.O_RDONLY)
        return
    _fsync(path, os.O_RDWR)


def _fsync(path: Path, mode: int) -> None:
    handle = os.open(path, mode)
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
