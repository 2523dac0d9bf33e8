import errno
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from kinescan.errors import ConfigError
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.distributed import Processes
from kinescan.runtime.files import read_json_object

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
HOLDER_FILE = ".lock-holder.json"
"""Who holds the lock, for messages: the lock file itself cannot be read on every system while it is held."""
_HOLDER_BYTES = 4096
PATIENCE_SECONDS = 0.5
"""How long to wait for the lock, in seconds: longer than `is_locked` of another process holds it."""
NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
"""Error numbers by which file systems without locks refuse one."""


@contextmanager
def locked(folder: Path, processes: Processes | None = None) -> Iterator[None]:
    """Keeps other runs out of an output folder for the length of a block.

    The system holds the lock for the process, and lets go of it however the process ends. The same thread may lock the
    folder again inside. Of several processes the first takes it, and all learn if it cannot.

    Args:
        folder: a folder that is there and can be written.
        processes: those that work together, all of which call this; None: this one alone.

    Raises:
        ConfigError: another process writes into the folder, or its lock file cannot be opened.
    """
    processes = processes or Processes()
    lock, problem = _lock_of(folder), None
    if processes.is_main:
        problem = _take(lock, folder)
    try:
        problem = processes.broadcast(problem)
        if problem is not None:
            raise ConfigError(problem)
        yield
    finally:
        if lock.lock_counter == 1:
            with suppress(OSError):
                (folder / HOLDER_FILE).unlink()
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a run of another process, or another thread, writes into the folder; False if that cannot be told."""
    if not (folder / LOCK_FILE).is_file():
        return False
    lock = _lock_of(folder)
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _lock_of(folder: Path) -> FileLock:
    # One object for each folder and thread counts how often it was taken. A lock that a dead process leaves behind, as
    # the library's other kind is, would keep a killed run from continuing.
    return FileLock(folder.resolve() / LOCK_FILE, is_singleton=True, fallback_to_soft=False)


def _take(lock: FileLock, folder: Path) -> str | None:
    """Takes the lock and writes down who has it; gives what to say where that is refused."""
    try:
        lock.acquire(timeout=PATIENCE_SECONDS)
    except Timeout:
        return (
            f"{folder} is in use: {_holder(folder)} writes into it. Wait until that ends, or end it; or choose another "
            "folder with --output."
        )
    except OSError as error:
        if error.errno not in NO_LOCKS:
            return f"{folder / LOCK_FILE} cannot be opened ({error.strerror or error}). Choose another folder."
        logger.warning(
            "%s: its file system has no locks (%s), so nothing keeps a second run out of it",
            folder,
            error.strerror or error,
        )
        return None
    if lock.lock_counter == 1:
        holder = {"process": os.getpid(), "host": platform.node(), "since": datetime.now(UTC).isoformat("T", "seconds")}
        with suppress(ConfigError):
            write_text(folder / HOLDER_FILE, json.dumps(holder) + "\n")
    return None


def _holder(folder: Path) -> str:
    try:
        said = read_json_object(folder / HOLDER_FILE, max_bytes=_HOLDER_BYTES)
        return f"process {said['process']} on {said['host']} (since {said['since']})"
    except (ConfigError, KeyError):
        return "another process"
