"""Times of frames that come from a clock which may jump, stand still, or be missing."""

import logging

logger = logging.getLogger(__name__)

_LONGEST_GAP_SECONDS = 10.0
"""Between two frames, where the system clock saw less: more is a jump of the video source's clock, as in ffmpeg."""
_JITTER_FRAMES = 2.5
"""How far the clock may run back before it counts as a jump, in frames."""
_STALLED_FRAMES = 8
"""Frames with the same time before the clock counts as standing still."""
_TINY_SECONDS = 1e-4
"""The least step between the times of two frames."""


class LiveClock:
    """Increasing times for the frames of a video source that is read as it comes.

    The video source's own clock is followed as far as it can be true. It is anchored anew where it runs back, stands
    still, or is ahead by more than the system clock allows: then the next frame follows the one before after the time
    that was waited for it, at least one frame's. The first such gap is reported.

    Args:
        source: its name for messages.
        frame_seconds: from frame to frame, as the video source names it; None where it does not.
        by_arrival: the video source has no clock (raw H.264, MJPEG over HTTP: FFmpeg invents 25 frames a second for
            them), so that frames are timed as they come.

    Attributes:
        num_jumps: how often the video source's clock was anchored anew.

    Example:
        >>> clock = LiveClock("camera", frame_seconds=0.5, by_arrival=False)
        >>> [clock.time_of(raw, now=raw_now, waited=0.5) for raw, raw_now in ((3.0, 0.0), (3.5, 0.5), (7203.5, 1.0))]
        [3.0, 3.5, 4.0]
    """

    def __init__(self, source: str, *, frame_seconds: float | None, by_arrival: bool) -> None:
        self.num_jumps = 0
        self._source = source
        self._frame_seconds = frame_seconds or 0.0
        self._by_arrival = by_arrival
        self._start: float | None = None
        self._last = 0.0
        self._last_now = 0.0
        self._offset = 0.0
        self._num_stalled = 0
        self._has_advanced = False

    def time_of(self, raw: float | None, *, now: float, waited: float) -> float:
        """The time of the next frame.

        Args:
            raw: by the video source's clock, in seconds; None where it gave none.
            now: by the system clock, when the frame came.
            waited: for this frame, in seconds; the time in which the frame before was used is not a part of it.
        """
        if self._start is None:
            self._start = now
            seconds = 0.0 if raw is None or self._by_arrival else raw
        elif self._by_arrival:
            seconds = max(now - self._start, self._last + _TINY_SECONDS)
        else:
            seconds = self._following(raw, now, waited)
        self._last, self._last_now = seconds, now
        return seconds

    def _following(self, raw: float | None, now: float, waited: float) -> float:
        step = max(self._frame_seconds, waited, _TINY_SECONDS)
        if raw is None:
            return self._last + step
        gap = raw + self._offset - self._last
        allowed = max(_LONGEST_GAP_SECONDS + now - self._last_now, 4 * self._frame_seconds)
        if _TINY_SECONDS / 2 < gap <= allowed:
            self._num_stalled, self._has_advanced = 0, True
            return self._last + gap
        if -_JITTER_FRAMES * self._frame_seconds < gap < _TINY_SECONDS:
            self._num_stalled += 1
            if self._has_advanced and self._num_stalled <= _STALLED_FRAMES:
                return self._last + _TINY_SECONDS
            if self._has_advanced and self._num_stalled == _STALLED_FRAMES + 1:
                # it stands still: what was held back for a while is made up for
                step += _STALLED_FRAMES * self._frame_seconds
            if self._num_stalled > _STALLED_FRAMES:
                self._tell(gap)
        else:
            self._num_stalled = 0
            self._tell(gap)
        self._offset += step - gap
        return self._last + step

    def _tell(self, gap: float) -> None:
        self.num_jumps += 1
        if self.num_jumps == 1:
            logger.warning(
                "%s: its clock %s at %.2f s; times continue from there as the frames come",
                *(self._source, "stands still" if abs(gap) < 1e-2 else f"jumps by {gap:+.2f} s", self._last),
            )
