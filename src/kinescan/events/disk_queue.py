"""Messages that wait on the disk, in order, bounded."""

import errno
import logging
import os
import re
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote

from filelock import FileLock, Timeout

from kinescan.errors import ConfigError
from kinescan.events.told import stream_of
from kinescan.runtime.addresses import require_local
from kinescan.runtime.atomic_write import atomic_write, write_text
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import read_bytes, read_json_object

logger = logging.getLogger(__name__)

_ACCEPTED_FILE, _LOCK_FILE, _REFUSED_FOLDER = "accepted.json", ".lock", "refused"
_NAME = re.compile(r"(\d{12})-(\d+)-(.+)\.json")
_MOST_STREAMS = 1000
"""Whose last number is remembered."""


class QueueInUseError(ConfigError):
    """A folder of waiting messages that another process, or another webhook of this one, has."""


class DiskQueue:
    """A folder with one file a message; what is in it outlives the process, however that ends.

    One process at a time has the folder. A message is in the queue once `put` returns: its file was synced and renamed
    into place. Where more than `capacity` wait, the oldest are removed and counted.

    Args:
        folder: made where it is missing.
        capacity: how many messages may wait.

    Attributes:
        num_dropped: messages that gave way so far.
        num_refused: messages set aside so far, into the folder `refused`.

    Raises:
        ConfigError: the folder cannot be written.
        QueueInUseError: another process has it, or another queue of this one.
    """

    def __init__(self, folder: str | Path, *, capacity: int = 10_000) -> None:
        require_local(folder)
        self.folder = Path(folder)
        self.capacity = capacity
        self.num_dropped = 0
        self.num_refused = 0
        self._changed = threading.Condition()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(
                self.folder / _LOCK_FILE, fallback_to_soft=False, is_singleton=True, thread_local=False
            )
            self._take_lock()
            names = [entry.name for entry in os.scandir(self.folder) if _NAME.fullmatch(entry.name)]
        except OSError as error:
            raise ConfigError(
                f"{self.folder} cannot hold the queue of events ({error.strerror or error}). Name another folder."
            ) from None
        self._names = deque(sorted(names))
        self._keys = {_key(name) for name in self._names}
        self._next = int(self._names[-1][:12]) + 1 if self._names else 1
        self._accepted = self._read_accepted()
        for name in self._names:
            # a kill came between the message and the note that it was accepted
            stream_id, sequence = stream_of(_key(name).rpartition("-")[0]), int(name.split("-")[1])
            self._accepted[stream_id] = max(sequence, self._accepted.get(stream_id, 0))

    def __len__(self) -> int:
        return len(self._names)

    def put(self, key: str, content: str, *, stream_id: str, sequence: int) -> None:
        """Adds a message; one that waits already under the same key, or was accepted before, is not added again.

        Raises:
            OSError: the disk does not take it.
        """
        with self._changed:
            if key in self._keys or sequence <= self._accepted.get(stream_id, 0):
                return
            name = f"{self._next:012d}-{sequence}-{quote(key, safe='')}.json"
            try:
                write_text(self.folder / name, content, error=_not_written)
                self._accept(stream_id, sequence)
            except OSError:
                # the one without the other would be a message that is sent, and added once more
                with suppress(OSError):
                    (self.folder / name).unlink(missing_ok=True)
                raise
            self._next += 1
            self._names.append(name)
            self._keys.add(key)
            self._drop_oldest()
            self._changed.notify_all()

    def first(self, timeout_seconds: float) -> tuple[str, bytes] | None:
        """The oldest message, with the key that it was put under; None where none came in that time."""
        with self._changed:
            if not self._names:
                self._changed.wait(timeout_seconds)
            while self._names:
                name = self._names[0]
                try:
                    return _key(name), read_bytes(self.folder / name)
                except ConfigError as error:
                    logger.warning("%s It is left out.", error)
                    self._forget(name)
            return None

    def done(self, key: str) -> None:
        """Removes a message that has arrived."""
        with self._changed:
            name = self._name_of(key)
            if name is not None:
                with suppress(OSError):
                    (self.folder / name).unlink(missing_ok=True)
                self._forget(name)

    def set_aside(self, key: str) -> None:
        """Moves a message that will never be taken into the folder `refused`."""
        with self._changed:
            name = self._name_of(key)
            if name is None:
                return
            self.num_refused += 1
            try:
                (self.folder / _REFUSED_FOLDER).mkdir(exist_ok=True)
                os.replace(self.folder / name, self.folder / _REFUSED_FOLDER / name)
            except OSError:
                with suppress(OSError):
                    (self.folder / name).unlink(missing_ok=True)
            self._forget(name)

    def position(self, stream_id: str) -> int:
        """The sequence number of the last message of a stream that was ever put."""
        with self._changed:
            return self._accepted.get(stream_id, 0)

    def wake(self) -> None:
        """Lets `first` return."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Leaves the folder to others."""
        self._lock.release()

    def _take_lock(self) -> None:
        try:
            self._lock.acquire(timeout=0.5)
        except Timeout:
            raise QueueInUseError(
                f"{self.folder} is in use: another process sends events from it. Give this one a folder of its own."
            ) from None
        if self._lock.lock_counter > 1:
            self._lock.release()
            raise QueueInUseError(f"{self.folder} is in use by another webhook. Give this one a folder of its own.")

    def _read_accepted(self) -> dict[str, int]:
        path = self.folder / _ACCEPTED_FILE
        if not path.exists():
            return {}
        try:
            content = read_json_object(path)
            return {str(stream): int(sequence) for stream, sequence in content.items()}
        except (ConfigError, TypeError, ValueError) as error:
            logger.warning("%s is damaged (%s): earlier messages may be sent again", path, error)
            return {}

    def _accept(self, stream_id: str, sequence: int) -> None:
        accepted = {stream: number for stream, number in self._accepted.items() if stream != stream_id}
        accepted = dict(list(accepted.items())[-_MOST_STREAMS:]) | {stream_id: sequence}
        with atomic_write(self.folder / _ACCEPTED_FILE, error=_not_written) as aside:
            aside.write_text(to_json(accepted), encoding="utf-8")
        self._accepted = accepted

    def _drop_oldest(self) -> None:
        while len(self._names) > self.capacity:
            name = self._names[0]
            with suppress(OSError):
                (self.folder / name).unlink(missing_ok=True)
            self._forget(name)
            self.num_dropped += 1
            if self.num_dropped == 1:
                logger.warning(
                    "%s: %d messages wait, which is all that it holds: the oldest are dropped and counted",
                    *(self.folder, self.capacity),
                )

    def _name_of(self, key: str) -> str | None:
        if self._names and _key(self._names[0]) == key:
            return self._names[0]
        return next((name for name in self._names if _key(name) == key), None)

    def _forget(self, name: str) -> None:
        self._names.remove(name)
        self._keys.discard(_key(name))


def _key(name: str) -> str:
    match = _NAME.fullmatch(name)
    return unquote(match[3]) if match else ""


def _not_written(reason: str) -> Exception:
    return OSError(errno.EIO, reason)
