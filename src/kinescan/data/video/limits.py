"""How much one video file may ask for: time and pixels."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import av.error

from kinescan.data.stored import num_bytes_of
from kinescan.errors import ConfigError, VideoError

MAX_PIXELS = 8192 * 4320
_BYTES_PER_SECOND = 100_000
"""Slower than this, no sound file is read and decoded."""
_FRAME_SECONDS = 0.1
"""Each frame that was given allows as much more: an hour of a still camera is a small file of very many frames."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one video file may take; a file that asks for more is an error, before the memory is taken.

    Attributes:
        timeout_seconds: for opening a file, and for each read of it; a second more for each 100 kB of the file, and for
            each ten frames that are given one by one.
        max_pixels: width times height of a frame; by default 8192 x 4320, which is 8K.

    Raises:
        ConfigError: a limit is not positive.

    Example:
        >>> Limits(timeout_seconds=10).seconds_for(2_000_000)
        30.0
    """

    timeout_seconds: float = 120.0
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if not 0 < self.timeout_seconds < math.inf:
            raise ConfigError(f"timeout_seconds must be a positive number, got {self.timeout_seconds}.")
        if self.max_pixels < 1:
            raise ConfigError(f"max_pixels must be at least 1, got {self.max_pixels}.")

    def seconds_for(self, num_bytes: int) -> float:
        """The time limit of a file of this size."""
        return self.timeout_seconds + num_bytes / _BYTES_PER_SECOND

    @property
    def decoder_options(self) -> dict[str, str]:
        """FFmpeg's own limit, before memory is taken; it counts the margins that codecs add to a frame."""
        return {"max_pixels": str(2 * self.max_pixels + 2**16)}

    def check_size(self, source: str | Path, width: int, height: int) -> None:
        """Refuses frames of a size.

        Raises:
            VideoError: they have more pixels than max_pixels.
        """
        if width * height > self.max_pixels:
            raise VideoError(
                source,
                f"its frames have {width} x {height} = {width * height:,} pixels; at most {self.max_pixels:,} are "
                f"decoded. Scale the video down, or raise data.max_pixels ({_IN_PYTHON}).",
            )


class Clock:
    """The time that our own work on a file takes, against its limit; what the caller does in between does not count.

    Args:
        source: the file, for messages.
        limits: what work on the file may take.
    """

    def __init__(self, source: str | Path, limits: Limits) -> None:
        self._source, self._limits = source, limits
        self.restart()

    def restart(self) -> None:
        """Begins a new part of the work with the whole time."""
        try:
            size = num_bytes_of(self._source)
        except (OSError, ValueError):
            size = 0
        self._allowed_seconds = self._limits.seconds_for(size)
        self._end = time.monotonic() + self._allowed_seconds

    @property
    def seconds_left(self) -> float:
        """How long the work may still take; never quite 0."""
        return max(1e-3, self._end - time.monotonic())

    def check(self) -> None:
        """Refuses to continue once the time is over.

        Raises:
            VideoError: it is.
        """
        if time.monotonic() > self._end:
            raise self.error()

    def error(self) -> VideoError:
        """The error that says that the time is over."""
        return VideoError(
            self._source,
            f"reading it took longer than {self._allowed_seconds:.4g} s and was broken off. Check the file and where "
            f"it is stored, or raise data.timeout_seconds, {self._limits.timeout_seconds:g} now ({_IN_PYTHON}).",
        )

    def watch(self, packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
        """The packets, as long as there is time.

        Raises:
            VideoError: it is over.
        """
        try:
            for packet in packets:
                self.check()
                yield packet
        except av.error.ExitError:
            raise self.error() from None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While the caller has a frame; each allows a little more time."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._end += time.monotonic() - began + _FRAME_SECONDS


_IN_PYTHON = "in Python: limits=Limits(...)"
