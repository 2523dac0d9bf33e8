"""Videos at http addresses, fetched into a file of their own before anything is decoded."""

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

from kinescan.errors import ConfigError, VideoError
from kinescan.runtime.quantities import byte_size
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
            with opener.open(url, timeout=timeout_seconds) as answer:
                _copy(answer, file, shown, max_bytes=max_bytes, end=end)
        except VideoError:
            raise
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise VideoError(shown, f"cannot be fetched: {mask_urls(str(reason))}. Check the address.") from None
        yield path


@contextmanager
def spooled(source: BinaryIO | bytes | None = None) -> Iterator[tuple[IO[bytes], Path]]:
    """A temporary file with what `source` gives, open for writing, and its path; deleted at the end of the block.

    Args:
        source: bytes, or a file to read from its current position; None: the file is empty.

    Raises:
        ConfigError: `source` gives text instead of bytes.
    """
    with tempfile.NamedTemporaryFile(prefix="kinescan-", suffix=".video") as file:
        if isinstance(source, bytes):
            file.write(source)
        elif source is not None:
            try:
                shutil.copyfileobj(source, file, _PART)
            except TypeError as error:
                raise ConfigError(
                    "a file object gave text instead of bytes. Open the file in binary mode: open(path, 'rb')."
                ) from error
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


def _copy(answer: IO[bytes], file: IO[bytes], shown: str, *, max_bytes: int, end: float) -> None:
    num_bytes = 0
    while part := answer.read(_PART):
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise VideoError(shown, f"is longer than {byte_size(max_bytes)}, which is the limit of what is fetched.")
        if time.monotonic() > end:
            raise VideoError(shown, "fetching it took too long and was broken off. Fetch it yourself first.")
        file.write(part)
    file.flush()


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
