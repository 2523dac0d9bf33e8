"""An object store that is a folder of this machine, behind fsspec as the real ones are, and can be made to fail."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem

from kinescan.runtime import remote


@dataclass
class Store:
    """What the store does.

    Attributes:
        address: of its bucket.
        folder: that holds its objects.
        failing: end of the addresses whose writing fails.
        error: raised there.
        times: how often.
        short: objects that are written there lose their last byte.
        written: addresses, in the order in which they were uploaded.
        removed: the same of those that were taken away.
    """

    address: str
    folder: Path
    failing: str = "\0"
    error: Exception | None = None
    times: int = 10**9
    short: bool = False
    written: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


@contextmanager
def folder_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store whose bucket "bucket" is a folder in this one, at s3://bucket."""
    (folder / "bucket").mkdir(parents=True)
    store = Store("s3://bucket", folder / "bucket")

    class Files(DirFileSystem):
        protocol = "s3"
        cachable = False
        retries = 5

        def __init__(self, **_: Any) -> None:
            super().__init__(path=str(folder), fs=fsspec.filesystem("file"))

        def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
            fails = rpath.endswith(store.failing) and store.times > 0
            store.times -= fails
            if fails and store.error is not None:
                raise store.error
            data = Path(lpath).read_bytes()
            target = Path(self._join(self._strip_protocol(rpath)))
            if not (folder / target.relative_to(folder).parts[0]).is_dir():
                raise FileNotFoundError(rpath)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data[:-1] if fails and store.short else data)
            store.written.append(rpath)

        def rm_file(self, path: str) -> None:
            store.removed.append(path)
            os.unlink(self._join(self._strip_protocol(path)))

        def info(self, path: str, **options: Any) -> dict[str, Any]:
            found = dict(super().info(self._strip_protocol(path), **options))
            return {**found, "ETag": str(found["mtime"])}

        def cat_file(self, path: str, **options: Any) -> bytes:
            data: bytes = super().cat_file(self._strip_protocol(path), **options)
            return data

        def find(self, path: str, **options: Any) -> Any:
            return super().find(self._strip_protocol(path), **options)

        def invalidate_cache(self, path: str | None = None) -> None:
            pass

    given = SimpleNamespace(filesystem=lambda scheme, **_: Files())
    monkeypatch.setattr(remote, "optional_package", lambda name, extra: given)
    monkeypatch.setattr(remote, "_FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(remote, "_kept", remote._Kept())
    remote._objects.cache_clear()
    try:
        yield store
    finally:
        remote._objects.cache_clear()
