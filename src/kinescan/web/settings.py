"""What the service serves, and how much anybody may ask of it."""

import ipaddress
import math
from dataclasses import dataclass, field, fields
from pathlib import Path

from kinescan.errors import ConfigError
from kinescan.fields import check_types

_LOOPBACK = "localhost"
LOWEST_FPS = 0.001
"""Frames a second that a request may ask for: one in seventeen minutes."""


@dataclass(frozen=True, kw_only=True)
class ServeLimits:
    """What the service takes at most; what is above is refused with a 4xx answer that says so.

    Attributes:
        body_bytes: of a request; an uploaded video is one.
        body_seconds: in which a request's body has to be there.
        stall_seconds: without a byte of what a client owes, after which it is refused.
        video_seconds: length of a video.
        max_pixels: of a frame.
        frame_bytes: of one message of a stream.
        streams: open at once.
        sessions: conversations with the VLM open at once.
        session_frames: that one conversation may be shown.
        waiting: requests that wait for a model; those beyond get 429.
        uploads: files that are kept at once.
        upload_bytes: of all files that are kept together.
        upload_seconds: for which a file is kept.
        answer_tokens: of one answer.
        answer_seconds: that one prediction or answer may take.
        connections: open at once.
    """

    body_bytes: int = 256 * 2**20
    body_seconds: float = 120.0
    stall_seconds: float = 20.0
    video_seconds: float = 600.0
    max_pixels: int = 3840 * 2160
    frame_bytes: int = 16 * 2**20
    streams: int = 16
    sessions: int = 4
    session_frames: int = 3600
    waiting: int = 32
    uploads: int = 32
    upload_bytes: int = 2 * 2**30
    upload_seconds: float = 3600.0
    answer_tokens: int = 1024
    answer_seconds: float = 300.0
    connections: int = 512

    def __post_init__(self) -> None:
        check_types(self)
        for one in fields(self):
            value = getattr(self, one.name)
            if not 0 < value < math.inf:
                raise ConfigError(f"limits.{one.name} must be positive, got {value}.")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """One service.

    Attributes:
        models: name -> a classifier's folder, run or hub name; the first is the default.
        vlm: folder or hub name of a video VLM; None: no questions are answered.
        media: folder below which requests may name videos; None: none.
        allow_urls: beginnings of addresses from which videos may be fetched, as in "https://example.org/videos/".
        host: to listen at.
        port: likewise; 0 chooses a free one.
        api_key: that requests have to bring; required where others can reach the service.
        device: "auto" or the name of one.
        budget: keys of the VLM's compressed state.
        fps: frames a second that the VLM sees of a video.
        page: whether the page is there, too.
        limits: see `ServeLimits`.
    """

    models: dict[str, str] = field(default_factory=dict)
    vlm: str | None = None
    media: Path | None = None
    allow_urls: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    device: str = "auto"
    budget: int = 4096
    fps: float = 1.0
    page: bool = True
    limits: ServeLimits = field(default_factory=ServeLimits)

    def __post_init__(self) -> None:
        if not self.models and self.vlm is None:
            raise ConfigError("nothing to serve: name a model (--model RUN) or a VLM (--vlm FOLDER).")
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port must lie in [0, 65535], got {self.port}.")
        if self.media is not None and not self.media.is_dir():
            raise ConfigError(f"--media {self.media} is not a folder.")
        if self.api_key is not None and len(self.api_key) < 16:
            raise ConfigError("the API key is shorter than 16 characters. Make one: openssl rand -hex 24")
        if self.api_key is None and not is_loopback(self.host):
            raise ConfigError(
                f"{self.host} can be reached from other machines, so an API key is needed. Set KINESCAN_API_KEY (make "
                "one: openssl rand -hex 24), or listen at 127.0.0.1."
            )
        for address in self.allow_urls:
            if not address.startswith(("http://", "https://")) or address.count("/") < 3:
                raise ConfigError(
                    f"--allow-url {address}: give the beginning of addresses with a slash behind the host, as in "
                    "https://example.org/videos/."
                )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    if host == _LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
