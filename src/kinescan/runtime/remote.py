"""Files on web servers and in object stores, read by ranges of bytes: by HTTP, or through fsspec."""

import io
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kinescan.errors import ConfigError
from kinescan.runtime.addresses import OBJECT_STORES, check_address
from kinescan.runtime.gcsfs_internals import ask_once, is_refusal
from kinescan.runtime.http_store import HttpStore, Part, StoreError, status_error
from kinescan.runtime.optional_package import optional_package

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
SECONDS_VARIABLE = "KINESCAN_STORE_SECONDS"
"""Environment variable: how long one request to a store may take, in seconds; 60 without it."""
BLOCK = 2**17
"""Bytes of a block: ranges are requested and kept in blocks."""
_MOST_AHEAD = 2**21
"""Bytes that are read ahead at most, of a file that is read in order."""
_WHOLE_BYTES = 2**20
"""A file of at most so many bytes is read by one request."""
_KEPT_BYTES = 2**25
"""Bytes of blocks that a process keeps."""
_UPLOADED_AT_ONCE = 2**24
"""Bytes of one request of an upload."""
_KEPT_SECONDS = 30.0
"""How long blocks and sizes are kept: after that, a file may have been replaced."""
_ATTEMPTS = 4
_FIRST_WAIT_SECONDS = 0.25
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
EXTRA = "stores"


class Store(Protocol):
    """A web server or an object store, of which ranges of bytes are read."""

    def read(self, address: str, start: int, end: int) -> Part:
        """See `HttpStore.read`."""
        ...


class ObjectStore:
    """Reads ranges of objects through fsspec, which finds credentials as the store's own programs do.

    Raises:
        DependencyError: fsspec's package for this store is not installed.
    """

    def __init__(self, scheme: str) -> None:
        optional_package(_PACKAGES[scheme], EXTRA)
        self._scheme = scheme
        self._known: dict[str, tuple[float, dict[str, Any]]] = {}

    @property
    def files(self) -> Any:
        """The file system of fsspec; one for each process."""
        seconds = request_seconds()
        options: dict[str, Any] = {"requests_timeout": seconds}
        if self._scheme == "s3":
            once = {"total_max_attempts": 1}
            config = {"connect_timeout": seconds, "read_timeout": seconds, "retries": once}
            options = {"config_kwargs": config}
        files = optional_package("fsspec", EXTRA).filesystem(self._scheme, **options)
        if self._scheme == "s3":
            # `read_range` tries again; with the retries of s3fs and botocore on top, a silent store is asked 43 times
            files.retries = 1
        else:
            ask_once(files)
        return files

    def read(self, address: str, start: int, end: int) -> Part:
        """The bytes [start, end) of an object, fewer where it ends before.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            info = self._info(address, anew=start == 0)
            total = int(info["size"])
            end = min(end, total)
            data = self.files.cat_file(address, start=start, end=end) if start < end else b""
        except Exception as error:  # every back end has errors of its own
            raise self._error(error) from error
        if len(data) != max(0, end - start):
            raise StoreError(f"{len(data):,} bytes arrived of {end - start:,} that were promised.", may_pass=True)
        return Part(data, total, str(info.get("ETag") or info.get("etag") or info.get("LastModified") or ""))

    def _error(self, error: Exception) -> StoreError:
        return status_error(403) if self._scheme != "s3" and is_refusal(error) else _object_error(error)

    def _info(self, address: str, *, anew: bool) -> dict[str, Any]:
        found = self._known.get(address)
        if anew or found is None or time.monotonic() - found[0] > _KEPT_SECONDS:
            files = self.files
            files.invalidate_cache(address)  # and of the folders above it
            if len(self._known) > 4096:
                self._known.clear()
            found = self._known[address] = time.monotonic(), files.info(address)
        return found[1]

    def sizes(self, address: str) -> dict[str, int]:
        """The addresses of all objects below one, sorted, with their bytes; none where there is no such folder.

        Raises:
            StoreError: they cannot be listed.
        """
        try:
            files = self.files
            files.invalidate_cache(address)
            found = files.find(address, detail=True)
        except Exception as error:
            raise self._error(error) from error
        return {f"{self._scheme}://{name}": int(found[name]["size"] or 0) for name in sorted(found)}

    def write(self, file: Path, address: str) -> None:
        """Puts a file of this machine there, whole or not at all, and asks whether all of it arrived.

        Raises:
            StoreError: the store does not take it.
        """
        num_bytes = os.path.getsize(file)
        try:
            files = self.files
            files.put_file(os.fspath(file), address, chunksize=_UPLOADED_AT_ONCE)
            files.invalidate_cache(address)
            self._known.pop(address, None)
            arrived = int(files.info(address)["size"])
        except Exception as error:
            raise self._error(error) from error
        if arrived != num_bytes:
            raise StoreError(f"{arrived:,} bytes arrived of {num_bytes:,}.", may_pass=True)

    def remove(self, address: str) -> None:
        """Removes an object.

        Raises:
            StoreError: it is not there, or the store refuses.
        """
        try:
            self.files.rm_file(address)
        except Exception as error:
            raise self._error(error) from error


def _object_error(error: Exception) -> StoreError:
    """An error of fsspec or a package below it as ours, told by types, status and names of classes in its chain."""
    if isinstance(error, StoreError):
        return error
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)  # type: ignore[arg-type]
    names = {type(one).__name__ for one in chain}
    if isinstance(error, FileNotFoundError):
        return status_error(404)
    if isinstance(error, PermissionError):
        return status_error(403)
    # before its status, which aiohttp makes up
    if names & {"ClientPayloadError", "IncompleteReadError", "ResponseStreamingError", "ContentLengthError"}:
        return StoreError("fewer bytes arrived than were promised.", may_pass=True)
    status = next(filter(None, map(_status_of, chain)), 0)
    if status >= 400:
        return status_error(status)
    if names & {"NoCredentialsError", "PartialCredentialsError", "RefreshError"}:
        return StoreError("no credentials were found for this store. Set them in the environment.")
    if any("Timeout" in name for name in names):
        return StoreError(
            f"no answer, or not all of it, in {request_seconds():g} s. Is the store slow? {SECONDS_VARIABLE} says "
            "how long one request may take.",
            may_pass=True,
        )
    # what a back end says may hold an address with a signature: only its kind is told
    return StoreError(
        f"the store cannot be read ({type(chain[-1]).__name__}). Check the address and the connection.", may_pass=True
    )


def _status_of(error: BaseException) -> int:
    """The status of HTTP behind an error of a back end; 0 where there is none."""
    response = getattr(error, "response", None)
    told = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    status = told or getattr(error, "code", None) or getattr(error, "status", None)
    text = str(status)
    return int(text) if text.isdecimal() else 0


def request_seconds() -> float:
    """How long one request may take.

    Raises:
        ConfigError: the environment variable is not a number of seconds.
    """
    text = os.environ.get(SECONDS_VARIABLE, "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86_400:
        raise ConfigError(f"{SECONDS_VARIABLE}={text!r} is not a number of seconds above 0. Correct or unset it.")
    return seconds


@cache
def _http(process: int, seconds: float) -> HttpStore:
    return HttpStore(seconds)


@cache
def _objects(process: int, scheme: str) -> ObjectStore:
    return ObjectStore(scheme)


def store_of(address: str) -> Store:
    """What reads an address.

    Raises:
        DependencyError: a package is missing.
    """
    scheme = address.partition("://")[0]
    # connections do not survive a fork
    process = os.getpid()
    return _objects(process, scheme) if scheme in OBJECT_STORES else _http(process, request_seconds())


def read_range(address: str, start: int, end: int) -> Part:
    """The bytes [start, end) of what lies at an address; errors that may pass are tried again after 0.25, 0.5 and 1 s.

    Raises:
        StoreError: it cannot be read.
        ConfigError: the address may not be read.
        DependencyError: the package for this store is not installed.
    """
    check_address(address)
    return tried_again(address, lambda: store_of(address).read(address, start, end))


def tried_again(address: str, ask: Callable[[], Answer]) -> Answer:
    """What a store answers; what may pass is tried again, after 0.25, 0.5 and 1 s.

    Raises:
        StoreError: it refuses, or four attempts failed.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return ask()
        except StoreError as error:
            if not error.may_pass:
                raise
            if attempt == _ATTEMPTS - 1:
                raise StoreError(
                    f"{error.reason} {_ATTEMPTS} attempts failed.", is_gone=error.is_gone, status=error.status
                ) from error
            logger.debug("%s: %s; it is tried again", address, error.reason)
            time.sleep(_FIRST_WAIT_SECONDS * 2**attempt)
    raise AssertionError


def read_whole(address: str, max_bytes: int) -> bytes:
    """All bytes of a small file, or one byte more than `max_bytes`.

    Raises:
        StoreError: it cannot be read.
    """
    data = bytearray()
    while len(data) <= max_bytes:
        part = read_range(address, len(data), min(max_bytes + 1, len(data) + 2**24))
        data += part.data
        if len(data) >= part.num_bytes or not part.data:
            break
    return bytes(data[: max_bytes + 1])


class _Kept:
    """A cache of this process: blocks and sizes that were read in the last seconds; the oldest blocks go first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[str, int, int], tuple[float, bytes]] = OrderedDict()
        self._sizes: dict[str, tuple[float, int, str]] = {}
        self._num_bytes = 0

    def get(self, key: tuple[str, int, int]) -> bytes | None:
        with self._lock:
            found = self._blocks.get(key)
            if found is None or time.monotonic() - found[0] > _KEPT_SECONDS:
                return None
            self._blocks.move_to_end(key)
            return found[1]

    def put(self, key: tuple[str, int, int], block: bytes) -> None:
        with self._lock:
            before = self._blocks.pop(key, None)
            self._num_bytes += len(block) - (len(before[1]) if before else 0)
            self._blocks[key] = time.monotonic(), block
            while self._num_bytes > _KEPT_BYTES and len(self._blocks) > 1:
                self._num_bytes -= len(self._blocks.popitem(last=False)[1][1])

    def size(self, address: str) -> tuple[int, str] | None:
        found = self._sizes.get(address)
        return None if found is None or time.monotonic() - found[0] > _KEPT_SECONDS else found[1:]

    def put_size(self, address: str, num_bytes: int, version: str) -> None:
        if len(self._sizes) > 4096:
            self._sizes.clear()
        self._sizes[address] = time.monotonic(), num_bytes, version

    def drop(self, address: str) -> None:
        with self._lock:
            self._sizes.pop(address, None)
            for key in [key for key in self._blocks if key[0] == address]:
                self._num_bytes -= len(self._blocks.pop(key)[1])


_kept = _Kept()


def remote_size(address: str) -> tuple[int, str]:
    """The size of what lies at an address, in bytes, and its version (ETag or time); the first block is read with it.

    Raises:
        StoreError: it cannot be read.
    """
    found = _kept.size(address)
    if found is None:
        part = read_range(address, 0, BLOCK)
        _kept.drop(address)
        _kept.put((address, 0, 0), part.data)
        _kept.put_size(address, part.num_bytes, part.version)
        found = part.num_bytes, part.version
    return found


class ByteWindow(io.RawIOBase):
    """A read-only file over bytes from elsewhere, as `open` in binary mode gives it: read, seek, tell.

    Args:
        num_bytes: length of the window, in bytes.
        name: as FFmpeg sees it, for its suffix.
        lead: bytes before the first one that belong to what is stored, and not to the file; see `head`.
    """

    def __init__(self, num_bytes: int, *, name: str = "video", lead: int = 0) -> None:
        super().__init__()
        self.name = name
        self._num_bytes, self._lead, self._position = num_bytes, lead, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves there, as files do."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._num_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Reads into the buffer; gives the number of bytes, 0 at the end."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes, fewer at the end; negative or None: all that are left."""
        left = self._num_bytes - self._position
        size = max(0, left if size is None or size < 0 else min(size, left))
        data = self._read_at(self._lead + self._position, size) if size else b""
        self._position += len(data)
        return data

    def head(self) -> bytes:
        """The bytes before the first one."""
        return self._read_at(0, self._lead)

    def _read_at(self, position: int, size: int) -> bytes:
        raise NotImplementedError


class RangeFile(ByteWindow):
    """A range of bytes of a stored file, read by blocks; what is read in order is read ahead.

    Args:
        address: of the stored file.
        start: first byte of the range, its lead included.
        num_bytes: length of the range, without its lead.
        version: of the stored file, where it is known: another one later is an error.
        name: see `ByteWindow`.
        lead: see `ByteWindow`.
        read: reads a range; for tests.
    """

    def __init__(
        self,
        address: str,
        start: int,
        num_bytes: int,
        *,
        version: str = "",
        name: str = "video",
        lead: int = 0,
        read: Callable[[str, int, int], Part] = read_range,
    ) -> None:
        super().__init__(num_bytes, name=name, lead=lead)
        self._address, self._start, self._version, self._read = address, start, version, read
        self._end = lead + num_bytes
        self._next_block, self._ahead = -1, 1

    def _read_at(self, position: int, size: int) -> bytes:
        first, last = position // BLOCK, (position + size - 1) // BLOCK
        data = b"".join(self._block(number, last) for number in range(first, last + 1))
        begin = position - first * BLOCK
        return data[begin : begin + size]

    def _block(self, number: int, last: int) -> bytes:
        found = _kept.get((self._address, self._start, number))
        if found is not None:
            return found
        # read in order: twice as much is read ahead each time
        self._ahead = min(2 * self._ahead, _MOST_AHEAD // BLOCK) if number == self._next_block else 1
        count = max(last - number + 1, self._ahead)
        if self._end <= _WHOLE_BYTES:
            # a small file: one request for all of it takes less time than several
            count = -(-self._end // BLOCK)
        end = min(self._end, (number + count) * BLOCK)
        part = self._read(self._address, self._start + number * BLOCK, self._start + end)
        if self._version and part.version and part.version != self._version:
            _kept.drop(self._address)
            raise StoreError("it was changed while it was read. Read it again.", is_gone=False)
        if len(part.data) != end - number * BLOCK:
            raise StoreError(
                f"it ends at byte {part.num_bytes:,}; {self._start + end:,} bytes are needed. It is cut.", is_gone=False
            )
        for index in range(0, len(part.data), BLOCK):
            _kept.put((self._address, self._start, number + index // BLOCK), part.data[index : index + BLOCK])
        self._next_block = number + -(-len(part.data) // BLOCK)
        return part.data[:BLOCK]


def sizes_below(address: str) -> dict[str, int]:
    """The addresses of all objects below one, with their bytes, of stores that list them.

    Raises:
        ConfigError: it is on a web server, which lists nothing.
        StoreError: it cannot be read.
    """
    check_address(address)
    store = store_of(address)
    if not isinstance(store, ObjectStore):
        raise ConfigError(
            f"{address}: a web server does not tell which files it has. Name a csv of path,label, or a folder of "
            "shards (kinescan data pack)."
        )
    return tried_again(address, lambda: store.sizes(address))


def forget(address: str) -> None:
    """What was read of it is read anew."""
    _kept.drop(address)
