"""Which videos a request may name: what it brings along, files below one folder, and addresses on a list."""

import base64
import binascii
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kinescan.data.video import Limits
from kinescan.data.video.fetching import fetched, is_fetchable, spooled
from kinescan.runtime.quantities import byte_size
from kinescan.web.problems import RequestProblem
from kinescan.web.settings import ServeLimits

_NO_FILE = "there is no such file below the media folder. Paths are relative to it, with forward slashes."


class Media:
    """Opens the videos that requests name.

    Args:
        folder: below which files may be named; None: none.
        allow_urls: beginnings of addresses that may be fetched.
        limits: on bytes and time.
    """

    def __init__(self, folder: Path | None, allow_urls: Sequence[str], limits: ServeLimits) -> None:
        self._folder = None if folder is None else Path(os.path.realpath(folder))
        self._allow_urls, self._limits = [_parts(url) for url in allow_urls], limits

    @contextmanager
    def opened(self, source: str) -> Iterator[Path]:
        """The file that `source` stands for: a data URL, an address, or a path below the folder.

        Raises:
            RequestProblem: it is not allowed, or not there.
            VideoError: it cannot be fetched.
        """
        if source.startswith("data:"):
            with spooled(self.decoded(source)) as (_, path):
                yield path
        elif is_fetchable(source):
            limits = self._limits
            with fetched(
                source, max_bytes=limits.body_bytes, timeout_seconds=limits.body_seconds, allow=self._check_url
            ) as path:
                yield path
        elif "://" in source:
            raise RequestProblem(403, "only data:, http: and https: addresses can be given.", "address_not_allowed")
        else:
            yield self.below(source)

    def decoded(self, url: str) -> bytes:
        """The content of a data URL in base64.

        Raises:
            RequestProblem: it is not a video, or too long.
        """
        head, comma, content = url.partition(",")
        if not comma or not head.endswith(";base64"):
            raise RequestProblem(400, "a data URL is written data:video/mp4;base64,...", "bad_data_url")
        if len(content) * 3 // 4 > self._limits.body_bytes:
            raise RequestProblem(413, f"more than {byte_size(self._limits.body_bytes)}.", "too_large")
        try:
            return base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError):
            raise RequestProblem(400, "the data URL is not base64.", "bad_data_url") from None

    def below(self, name: str) -> Path:
        """The file of a name below the folder, wherever links lead.

        Raises:
            RequestProblem: there is no folder, or no such file in it.
        """
        if self._folder is None:
            raise RequestProblem(403, "this service reads no files: it was started without --media.", "no_media_folder")
        # every refusal is the same, so that nobody learns what lies elsewhere
        refusal = RequestProblem(404, _NO_FILE, "no_such_file")
        if not name or "\0" in name or "\\" in name or name.startswith("/") or len(name) > 4096:
            raise refusal
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise refusal
        try:
            real = Path(os.path.realpath(self._folder / name, strict=True))
            is_file = stat.S_ISREG(os.stat(real).st_mode)
        except (OSError, ValueError):
            raise refusal from None
        if not is_file or not real.is_relative_to(self._folder):
            raise refusal
        return real

    def _check_url(self, url: str) -> None:
        asked = _parts(url)
        for scheme, host, path in self._allow_urls:
            if (scheme, host) == asked[:2] and asked[2].startswith(path):
                return
        raise RequestProblem(403, "videos are not fetched from that address (--allow-url).", "address_not_allowed")


def _parts(url: str) -> tuple[str, str, str]:
    """Scheme, host with port, and path of an address, so that no two readings of it differ.

    Raises:
        RequestProblem: it has a user in it, or a path that climbs.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise RequestProblem(400, "the address makes no sense.", "bad_address") from None
    path = unquote(parts.path)
    if "@" in parts.netloc or "\\" in url or any(ord(sign) < 33 for sign in url) or ".." in path.split("/"):
        raise RequestProblem(403, "addresses with a user, a backslash or .. are not fetched.", "address_not_allowed")
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, f"{parts.hostname}:{port or usual}", path


def check_length(seconds: float, limits: ServeLimits) -> None:
    """Refuses a video that is too long.

    Raises:
        RequestProblem: it is.
    """
    if seconds > limits.video_seconds:
        raise RequestProblem(
            413, f"the video is {seconds:.0f} s long; at most {limits.video_seconds:.0f} s are taken.", "video_too_long"
        )


def video_limits(limits: ServeLimits) -> Limits:
    """What decoding one video may take."""
    return Limits(timeout_seconds=limits.answer_seconds, max_pixels=limits.max_pixels)
