"""A live source that is opened again after a break."""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from kinescan.data.video.live import LiveVideo
from kinescan.data.video.replayed import ShownPackets
from kinescan.errors import ConfigError, VideoError
from kinescan.fields import check_types
from kinescan.runtime.urls import mask_url
from kinescan.shapes import Pixels

logger = logging.getLogger(__name__)

_STEADY_SECONDS = 10.0
"""A video source that has given frames for so long is back: the next break is a new one."""
_LEAST_STEP_SECONDS = 1e-3


@dataclass(frozen=True, kw_only=True)
class Reconnect:
    """How a live source is opened again after a break.

    Attributes:
        limit_seconds: how long it may be away before it is given up; 0 never opens it again.
        first_wait_seconds: from the break to the first try; each next wait is twice as long.
        longest_wait_seconds: between two tries.
        silence_seconds: a video source that gives no data, or no whole frame, for so long has broken off.
    """

    limit_seconds: float = 60.0
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 30.0
    silence_seconds: float = 30.0

    def __post_init__(self) -> None:
        check_types(self)
        if not self.limit_seconds >= 0:
            raise ConfigError(f"limit_seconds must be 0 or more, got {self.limit_seconds}.")
        for name in ("first_wait_seconds", "longest_wait_seconds", "silence_seconds"):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"{name} must be a positive number of seconds, got {value}.")


@dataclass(frozen=True, kw_only=True)
class Outage:
    """A video source that is away.

    Attributes:
        seconds: since the break; since the first try, where it was never there.
        was_there: it has given a frame.
        reason: why, in a sentence.
    """

    seconds: float
    was_there: bool
    reason: str


class ReconnectingVideo:
    """Frames of a live source, which is opened again when it breaks off; times continue by the system clock.

    A pipe, and a video source that says how long it is (a recording behind an address), end once, or break off with an
    error, as for `LiveVideo`. Every other end is a break, as is an error or silence. After a break, the video source is
    tried again after 1, 2, 4, ... seconds, with a line in the log each. The first frame after it follows the last one
    before it after the time that has passed by the system clock, whatever the video source's own clock says now. Times
    are counted from the very first frame.

    Args:
        source: as for `LiveVideo`.
        reconnect: waits and limits.
        square_pixels: as for `LiveVideo`.
        name: of the video source, for the log; by default its address without secrets.
        stop: set by another thread, ends a wait, and the frames.
        gives_up: is asked at every break and every failed try; by default a video source that cannot be opened at the
            start is an error, and one that is away for longer than the limit has ended.
        on_outage: is called with True at a break, by the thread that iterates, and with False when frames come again.

    Attributes:
        num_reconnects: how often it came back.

    Raises:
        ConfigError: the video source's address is none that is read (while iterating).
        VideoError: it is given up (while iterating); not where it had ended in order.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        reconnect: Reconnect | None = None,
        square_pixels: bool = False,
        name: str | None = None,
        stop: threading.Event | None = None,
        gives_up: Callable[[Outage], bool] | None = None,
        on_outage: Callable[[bool], None] | None = None,
    ) -> None:
        self._given, self._square_pixels, self._name = source, square_pixels, name or mask_url(source)
        self._reconnect = reconnect or Reconnect()
        self._stop = stop or threading.Event()
        self._gives_up, self._on_outage = gives_up or self._is_over, on_outage
        self.num_reconnects = 0
        self._num_frames = 0
        self._shown = ShownPackets()
        self._last: tuple[float, float] | None = None
        self._away_since: float | None = None
        self._back_since: float | None = None
        self._num_tries = 0
        # an ordered end is not an error, even if the video source never comes back
        self._ended_in_order = False

    def __iter__(self) -> Iterator[tuple[Pixels, float]]:
        """Frame after frame ([3, H, W], uint8) with its time in seconds, increasing."""
        wait = self._reconnect.first_wait_seconds
        while not self._stop.is_set():
            error: VideoError | None = None
            ends_by_itself = False
            try:
                with LiveVideo(
                    self._given,
                    timeout_seconds=self._reconnect.silence_seconds,
                    square_pixels=self._square_pixels,
                    shown=self._shown,
                ) as video:
                    # a live playlist that was closed is a recording from then on, of what was seen already
                    is_over = video.ends_by_itself and self._num_frames > 0
                    ends_by_itself = video.ends_by_itself and not is_over
                    if not is_over:
                        with closing(self._continued(video)) as frames:
                            yield from frames
                    if ends_by_itself or self._stop.is_set():
                        return
            except VideoError as problem:
                if ends_by_itself:
                    raise
                error = problem
            if self._away_since is None or self._is_steady():
                self._away_since, self._num_tries = time.monotonic(), 0
                self._ended_in_order, wait = error is None, self._reconnect.first_wait_seconds
            elif self._back_since is not None:
                # it was not away while frames came
                self._away_since += time.monotonic() - self._back_since
            self._back_since = None
            if self._on_outage is not None:
                self._on_outage(True)
            if not self._goes_on(error, wait):
                return
            self._stop.wait(wait)
            wait = min(2 * wait, self._reconnect.longest_wait_seconds)

    def _continued(self, video: LiveVideo) -> Generator[tuple[Pixels, float], None, None]:
        """Frames of one connection, in the time of all."""
        offset: float | None = None
        for pixels, seconds in video:
            now = time.monotonic()
            if offset is None:
                offset = -seconds
                if self._last is not None:
                    before, then = self._last
                    offset = before + max(now - then, _LEAST_STEP_SECONDS) - seconds
                self._tell_of_return(now, seconds + offset)
            self._last = seconds + offset, now
            self._num_frames += 1
            yield pixels, seconds + offset
            if self._stop.is_set():
                return

    def _tell_of_return(self, now: float, seconds: float) -> None:
        self._back_since = now
        if self._on_outage is not None:
            self._on_outage(False)
        if self._away_since is not None:
            self.num_reconnects += 1
            logger.warning(
                "%s: is back after %.1f s and %d tries, at %.2f s",
                *(self._name, now - self._away_since, self._num_tries, seconds),
            )

    def _is_steady(self) -> bool:
        return self._back_since is not None and time.monotonic() - self._back_since > _STEADY_SECONDS

    def _goes_on(self, error: VideoError | None, wait: float) -> bool:
        """Whether it is tried again; False for an end in order.

        Raises:
            VideoError: it is given up.
        """
        assert self._away_since is not None, "set at every break"
        away = time.monotonic() - self._away_since
        reason = f"ended after {self._num_frames} frames." if error is None else error.reason
        outage = Outage(seconds=away, was_there=self._num_frames > 0, reason=reason)
        if not self._gives_up(outage):
            self._num_tries += 1
            logger.warning("%s: %s Tried again in %.3g s (try %d).", *(self._name, reason, wait, self._num_tries))
            return True
        if self._ended_in_order:
            if self._num_tries:
                logger.warning("%s: did not come back within %.3g s: the stream ends", self._name, away)
            return False
        if error is None:
            raise VideoError(self._name, reason)
        if self._num_tries:
            advice = f" It did not come back within {away:.3g} s ({self._num_tries} tries)."
            raise VideoError(error.path, reason + advice) from error
        raise error

    def _is_over(self, outage: Outage) -> bool:
        return not outage.was_there or outage.seconds >= self._reconnect.limit_seconds
