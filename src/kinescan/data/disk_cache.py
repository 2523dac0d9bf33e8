"""Arrays that were computed from videos, kept in files; what does not fit the video any more is computed again."""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kinescan.data.stored import identity_of
from kinescan.errors import ConfigError
from kinescan.runtime.addresses import absolute
from kinescan.runtime.atomic_write import atomic_write

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "KINESCAN_FRAME_TABLES"
"""Environment variable: the folder of what is kept, or "off"."""
_PROBED_BYTES = 4096
"""Of the start and of the end of a video, which tell whether it was changed."""
_SUFFIX = ".npz"
_ATTEMPTS = 3
_LEFT_OVER_SECONDS = 3600.0
_told: set[str] = set()
_untold: list[tuple[str, str]] | None = None
"""Of a worker process: lines and kinds that the main process is still to say."""

Arrays = dict[str, Any]


@dataclass(frozen=True)
class DiskCache:
    """A folder with one file of arrays for each video; any file, or all, may be deleted at any moment.

    A file belongs to a path, and to a size, a time of the last change and the first and last bytes of the video there;
    where one of them differs, or another version wrote it, it is made anew. Many processes may read and write at once:
    files are written aside and renamed.

    Attributes:
        folder: made when the first file is written.
        format: of the files, with the versions that they depend on.
        what: the name of what is kept, for the log.
    """

    folder: Path
    format: str
    what: str

    def read(self, path: str | Path, key: str, convert: Callable[[Arrays], Any]) -> Any | None:
        """What is kept of a video as it is now; None where there is nothing, or nothing that fits.

        Args:
            path: the video.
            key: what it depends on besides the video.
            convert: makes the result; a ValueError or KeyError of it means that the file is damaged.
        """
        file = self.file(path, key)
        try:
            identity = list(identity_of(path, _PROBED_BYTES))
        except Exception:  # the video itself cannot be read: whoever opens it says why
            return None
        try:
            if not file.is_file():
                return None
            with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                why = "another version wrote it" if str(arrays["format"]) != self.format else ""
                if not why and arrays["identity"].tolist() != identity:
                    why = "the video was changed since"
                if not why:
                    return convert({name: arrays[name] for name in arrays.files})
        except FileNotFoundError:
            # deleted at this moment
            return None
        except Exception as error:  # whatever zlib, zipfile and NumPy raise for a damaged archive: it is made anew
            why = f"it cannot be read ({type(error).__name__})"
        say_once(f"{self.folder}: the kept {self.what} of {path} is made anew, and so are others like it: {why}", why)
        return None

    def write(self, path: str | Path, key: str, arrays: Mapping[str, Any], *, compressed: bool) -> bool:
        """Keeps arrays of a video; a folder that cannot be written is logged once, and nothing else happens.

        Args:
            path: the video.
            key: all settings that the arrays depend on.
            arrays: name -> array.
            compressed: writes a smaller file, more slowly.

        Returns:
            Whether they are kept.
        """
        file, save = self.file(path, key), np.savez_compressed if compressed else np.savez
        for attempt in range(_ATTEMPTS):
            try:
                identity = np.array(identity_of(path, _PROBED_BYTES))
                with atomic_write(file, sync=False) as aside, aside.open("wb") as out:
                    save(out, **{"format": np.array(self.format), "identity": identity, **arrays})
                return True
            except (ConfigError, OSError) as error:
                # the folder was deleted while it was written to
                if isinstance(error.__cause__, FileNotFoundError) and attempt < _ATTEMPTS - 1:
                    continue
                say_once(f"{self.folder}: no {self.what} can be kept there ({error}); videos are read whole each time")
                break
        return False

    def holds(self, path: str | Path, key: str) -> bool:
        """Whether there is a file for a video, whatever it holds."""
        return self.file(path, key).is_file()

    def file(self, path: str | Path, key: str) -> Path:
        """Where what is kept of a video lies."""
        name = os.fsencode(absolute(path)) + b"\0" + key.encode()
        digest = hashlib.blake2b(name, digest_size=16).hexdigest()
        return self.folder / digest[:2] / f"{digest}{_SUFFIX}"

    def remove_left_over(self) -> int:
        """Removes what processes that were killed an hour ago or earlier left half written.

        Returns:
            How many files.
        """
        before, removed = time.time() - _LEFT_OVER_SECONDS, 0
        for file in self.folder.glob(f"??/.*.part{_SUFFIX}"):
            with suppress(OSError):
                if file.stat().st_mtime < before:
                    file.unlink()
                    removed += 1
        return removed


def cache_folder() -> Path | None:
    """Where this user's tables lie; None where KINESCAN_FRAME_TABLES=off.

    By default $XDG_CACHE_HOME or ~/.cache, and kinescan/frame_tables below it.
    """
    chosen = os.environ.get(CACHE_VARIABLE, "")
    if chosen.lower() == "off":
        return None
    if chosen:
        return Path(chosen)
    caches = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(caches) if os.path.isabs(caches) else Path(os.path.expanduser("~"), ".cache")
    return home / "kinescan" / "frame_tables"


def say_once(text: str, kind: str = "") -> None:
    """A line of the log, once in a process for each kind; of a worker process, see `tell_later`."""
    if (kind or text) in _told:
        return
    _told.add(kind or text)
    if _untold is None:
        logger.info(text)
    else:
        _untold.append((text, kind))


def tell_later() -> None:
    """Makes `say_once` keep its lines in this process for `take_said`: nobody sees the log of a worker process."""
    global _untold
    _untold = []


def take_said() -> list[tuple[str, str]]:
    """What `say_once` kept since the last call, for `say_again` in the main process."""
    global _untold
    if not _untold:
        return []
    said, _untold = _untold, []
    return said


def say_again(said: Iterable[tuple[str, str]]) -> None:
    """Says what workers kept: once, however many of them kept it."""
    for text, kind in said:
        say_once(text, kind)
