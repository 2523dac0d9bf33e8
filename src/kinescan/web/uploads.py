"""Files that clients leave for a while, to ask about them later."""

import os
import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kinescan.errors import ConfigError
from kinescan.runtime.atomic_write import atomic_write
from kinescan.runtime.quantities import byte_size
from kinescan.web.problems import RequestProblem
from kinescan.web.settings import ServeLimits

PREFIX = "file-"


@dataclass(frozen=True)
class Upload:
    """One file.

    Attributes:
        id: a random name that only its owner knows.
        filename: what its owner calls it.
        num_bytes: its size.
        created: when, by `time.time()`.
        path: where it lies.
    """

    id: str
    filename: str
    num_bytes: int
    created: float
    path: Path

    def to_plain(self) -> dict[str, Any]:
        """As the files interface of OpenAI has it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.num_bytes,
            "created_at": int(self.created),
            "filename": self.filename,
            "purpose": "user_data",
            "status": "processed",
        }


class Uploads:
    """Keeps files in a folder of its own, which is deleted at the end; each is deleted when its time is over."""

    def __init__(self, limits: ServeLimits) -> None:
        self._limits = limits
        self._folder = Path(tempfile.mkdtemp(prefix="kinescan-uploads-"))
        os.chmod(self._folder, 0o700)
        self._lock = threading.Lock()
        self._kept: dict[str, Upload] = {}

    def add(self, filename: str, source: BinaryIO) -> Upload:
        """Keeps what a file object holds.

        Raises:
            RequestProblem: there are too many files, or they are too long together.
        """
        self.expire()
        source.seek(0, os.SEEK_END)
        num_bytes = source.tell()
        source.seek(0)
        with self._lock:
            taken = sum(one.num_bytes for one in self._kept.values())
            if len(self._kept) >= self._limits.uploads or taken + num_bytes > self._limits.upload_bytes:
                raise RequestProblem(
                    429,
                    f"at most {self._limits.uploads} files of {byte_size(self._limits.upload_bytes)} together are "
                    "kept. Delete some, or wait.",
                    "too_many_files",
                )
            name = PREFIX + secrets.token_hex(16)
            path = self._folder / f"{name}.video"
            upload = Upload(name, filename[:200], num_bytes, time.time(), path)
            self._kept[name] = upload
        try:
            # An upload is read soon or not at all: it need not outlive a power cut.
            with atomic_write(path, sync=False) as aside, aside.open("wb") as file:
                shutil.copyfileobj(source, file, 2**20)
        except (OSError, ConfigError):
            self.delete(name)
            raise RequestProblem(503, "there is no room for the file at the moment.", "no_room") from None
        return upload

    def get(self, name: str) -> Upload:
        """One of the files.

        Raises:
            RequestProblem: the name is unknown.
        """
        self.expire()
        with self._lock:
            if name not in self._kept:
                raise RequestProblem(404, "no such file; files are deleted after a while.", "no_such_file")
            return self._kept[name]

    def delete(self, name: str) -> bool:
        """Whether it was there."""
        with self._lock:
            upload = self._kept.pop(name, None)
        if upload is not None:
            upload.path.unlink(missing_ok=True)
        return upload is not None

    def expire(self) -> None:
        """Deletes those whose time is over."""
        oldest = time.time() - self._limits.upload_seconds
        for name in [one.id for one in list(self._kept.values()) if one.created < oldest]:
            self.delete(name)

    def list(self) -> list[Upload]:
        """All of them."""
        self.expire()
        with self._lock:
            return list(self._kept.values())

    def close(self) -> None:
        """Deletes all."""
        shutil.rmtree(self._folder, ignore_errors=True)
