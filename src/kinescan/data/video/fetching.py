"""Videos at http addresses, fetched into a file of their own before anything is decoded."""

import io
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, BinaryIO

from kinescan.errors import ConfigError, KinescanError, VideoError
from kinescan.runtime.http_store import StoreError, failed_request, status_error
from kinescan.runtime.quantities import byte_size
from kinescan.runtime.remote import tried_again
from kinescan.runtime.urls import mask_url, mask_urls

MAX_BYTES = 4 * 2**30
"""Of a video that is fetched."""
_PART = 2**20
_SCHEMES = ("http", "https")

Allow = Callable[[str], None]
"""Called with each address before it is asked for, those that a server sends on to among them; raises to refuse it."""


def is_fetchable(source: str) -> bool:
    """Whether it is an address that a whole file can be fetched from.

    Example:
        >>> is_fetchable("https://example.org/a.mp4"), is_fetchable("rtsp://camera/1"), is_fetchable("a.mp4")
        (True, False, False)
    """
    return source.partition("://")[0].lower() in _SCHEMES and "://" in source


@contextmanager
def fetched(
    url: str,
    *,
    max_bytes: int = MAX_BYTES,
    timeout_seconds: float = 120.0,
    allow: Allow | None = None,
) -> Iterator[Path]:
    """The file at an address, deleted at the end of the block.

    Args:
        url: http or https.
        max_bytes: a longer file is refused, whatever length the server promises.
        timeout_seconds: for the whole of it.
        allow: see `Allow`; by default every address is asked for.

    Raises:
        VideoError: it cannot be fetched, is too long, or takes too long.
    """
    shown = mask_url(url)
    if not is_fetchable(url):
        raise VideoError(shown, "only http:// and https:// are fetched. Use kinescan stream for live sources.")
    if allow is not None:
        allow(url)
    opener = _opener(allow)
    end = time.monotonic() + timeout_seconds
    with spooled() as (file, path):
        try:
            tried_again(shown, lambda: _fetch(opener, url, file, shown, max_bytes=max_bytes, end=end))
        except StoreError as error:
            raise VideoError(shown, f"cannot be fetched: {error.reason}") from None
        yield path


@contextmanager
def spooled(source: BinaryIO | bytes | None = None) -> Iterator[tuple[IO[bytes], Path]]:
    """A temporary file with what `source` gives, open for writing, and its path; deleted at the end of the block.

    Args:
        source: bytes, or a file to read from its current position; None: the file is empty.

    Raises:
        ConfigError: `source` gives text instead of bytes, is closed, or was not opened for reading.
    """
    with tempfile.NamedTemporaryFile(prefix="kinescan-", suffix=".video") as file:
        if isinstance(source, bytes):
            file.write(source)
        elif source is not None:
            if getattr(source, "closed", False):
                raise ConfigError("a file object is closed. Give it while it is open, or give its path.")
            try:
                shutil.copyfileobj(source, file, _PART)
            except TypeError as error:
                raise ConfigError(
                    "a file object gave text instead of bytes. Open the file in binary mode: open(path, 'rb')."
                ) from error
            except io.UnsupportedOperation as error:
                raise ConfigError("a file object was not opened for reading. Open it with open(path, 'rb').") from error
        file.flush()
        yield file, Path(file.name)


def _opener(allow: Allow | None) -> urllib.request.OpenerDirector:
    """Without urllib's other schemes: "file:" would read this machine's files."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(allow),
    ):
        opener.add_handler(handler)
    return opener


def _fetch(
    opener: urllib.request.OpenerDirector, url: str, file: IO[bytes], shown: str, *, max_bytes: int, end: float
) -> None:
    """One attempt: all of it, into an empty file.

    Raises:
        StoreError: the server refuses, or not all of it arrived.
        VideoError: it is too long, or takes too long.
    """
    left = end - time.monotonic()
    if left <= 0:
        raise _too_slow(shown)
    file.seek(0)
    file.truncate()
    try:
        with opener.open(url, timeout=left) as answer:
            promised = answer.headers.get("Content-Length") or ""
            num_bytes = _copy(answer, file, shown, max_bytes=max_bytes, end=end)
    except KinescanError:
        # some of ours are errors of the system, too
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise status_error(error.code, error.reason) from None
    except ValueError as error:
        raise StoreError(f"{mask_urls(str(error))}. Check the address.") from None
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, Exception):
            raise failed_request(reason, left) from None
        raise StoreError(f"{mask_urls(str(reason))}. Check the address.") from None
    if promised.isdecimal() and num_bytes < int(promised):
        raise StoreError(f"{num_bytes:,} bytes arrived of {int(promised):,} that were promised.", may_pass=True)


def _too_slow(shown: str) -> VideoError:
    return VideoError(shown, "fetching it took too long and was broken off. Fetch it yourself first.")


def _copy(answer: IO[bytes], file: IO[bytes], shown: str, *, max_bytes: int, end: float) -> int:
    num_bytes = 0
    while part := answer.read(_PART):
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise VideoError(shown, f"is longer than {byte_size(max_bytes)}, which is the limit of what is fetched.")
        if time.monotonic() > end:
            raise _too_slow(shown)
        file.write(part)
    file.flush()
    return num_bytes


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, allow: Allow | None) -> None:
        self._allow = allow

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if not is_fetchable(newurl):
            raise ValueError(f"the server sends on to {mask_url(newurl)}, which is neither http nor https")
        if self._allow is not None:
            self._allow(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
