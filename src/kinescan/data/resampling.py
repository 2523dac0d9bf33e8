"""Frames of any video source at the rate that a model was trained with, by their times."""

import logging
import math
import statistics
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from kinescan.errors import ConfigError

logger = logging.getLogger(__name__)

Frame = TypeVar("Frame")
"""Pixels, or whatever stands for them."""

_SLACK = 1e-3
"""Of the wanted distance: clocks are rounded."""
_SAME_SECONDS = 1e-6
_USUAL = 9
"""Of so many distances, the median is the usual one."""
_STALLED_FRAMES = 8
"""A clock that gives so many frames the same time has stopped; fewer were sent twice, or in a burst."""
_TOLD_AFTER = 4
"""A video source is slow where so many of its distances are longer than wanted, one after the other."""
_SLOWER = 1.1
_LONGEST_GAP_SECONDS, _LONGEST_GAP_FRAMES = 2.0, 8


@dataclass(frozen=True, kw_only=True)
class ResampledFrame(Generic[Frame]):
    """A frame in its turn.

    Attributes:
        pixels: the frame itself.
        seconds: when: the frame's own time, or, where it is repeated, the time at which it is shown again. Increasing.
        frame_index: its position in the video source, from 0.
        is_repeated: it was given before.
        gap_seconds: how long nothing came before it, where that was too long to be filled; 0 otherwise.
    """

    pixels: Frame
    seconds: float
    frame_index: int
    is_repeated: bool = False
    gap_seconds: float = 0.0


def resample(
    frames: Iterable[tuple[Frame, float | None]],
    frame_seconds: float,
    *,
    longest_gap_seconds: float | None = None,
    name: str = "the video source",
) -> Iterator[ResampledFrame[Frame]]:
    """Frames `frame_seconds` apart, chosen by their times as they come; none is waited for.

    Turns come every `frame_seconds`, from the first frame's time on.

    1. A frame takes its turn as soon as it is there, up to half of the video source's distance early: so each turn has
       the frame that is nearest to it. Frames between two turns are left out.
    2. Where more than one turn is due, the frame before is repeated for all but the last. A video source that is slower
       than wanted all the time is named once in the log.
    3. Where nothing came for more than `longest_gap_seconds`, nothing is repeated: turns begin anew with the next
       frame, whose `gap_seconds` says so.
    4. Where the clock goes back, or gives more than 8 frames the same time, times continue at the usual distance, and
       the clock is followed from there. A frame without a time follows the one before at the usual distance.
       It is told once. A few frames with the same time, or with one that is hardly earlier, are the same moment: the
       first of them counts.

    Args:
        frames: in the order in which they are shown, each with its time in seconds; None where its video source says
            none.
        frame_seconds: the wanted distance.
        longest_gap_seconds: by default that of `longest_gap`.
        name: of the video source, for the log.

    Raises:
        ConfigError: `frame_seconds` or `longest_gap_seconds` is not positive.

    Example:
        >>> import torch
        >>> source = [(torch.full((3, 1, 1), k, dtype=torch.uint8), 0.1 * k) for k in range(7)]
        >>> [frame.frame_index for frame in resample(source, 0.2)]
        [0, 2, 4, 6]
        >>> [frame.frame_index for frame in resample(source[::2], 0.1)]
        [0, 0, 1, 1, 2, 2, 3]
    """
    gap = longest_gap(frame_seconds) if longest_gap_seconds is None else longest_gap_seconds
    if not (frame_seconds > 0 and gap > 0):
        raise ConfigError(f"frame_seconds and longest_gap_seconds must be positive, got {frame_seconds} and {gap}.")
    return _resampled(frames, frame_seconds, gap, name)


def longest_gap(frame_seconds: float) -> float:
    """How long a pause is bridged by the frame before it: 2 s, or 8 times the wanted distance if that is more."""
    return max(_LONGEST_GAP_SECONDS, _LONGEST_GAP_FRAMES * frame_seconds)


def _resampled(
    frames: Iterable[tuple[Frame, float | None]], frame_seconds: float, longest: float, name: str
) -> Iterator[ResampledFrame[Frame]]:
    clock, slow = SourceClock(name, frame_seconds=frame_seconds), _Slowness(name, frame_seconds, longest)
    slack = _SLACK * frame_seconds
    shown: tuple[Frame, int] | None = None
    before, turn = 0.0, 0.0
    for index, (pixels, raw_seconds) in enumerate(frames):
        seconds = clock.time_of(raw_seconds)
        if seconds is None:
            continue
        distance = seconds - before
        if shown is not None:
            slow.look(distance)
        if shown is None or distance > longest:
            # turns are counted from here
            gap = 0.0 if shown is None else distance
            yield ResampledFrame(pixels=pixels, seconds=seconds, frame_index=index, gap_seconds=gap)
            turn = seconds + frame_seconds
        else:
            reach = seconds + min(distance, frame_seconds) / 2 - slack
            while turn + frame_seconds <= reach:
                yield ResampledFrame(pixels=shown[0], seconds=turn, frame_index=shown[1], is_repeated=True)
                turn += frame_seconds
            if turn <= reach:
                yield ResampledFrame(pixels=pixels, seconds=seconds, frame_index=index)
                turn += frame_seconds
        shown, before = (pixels, index), seconds


class SourceClock:
    """Increasing times of frames, from a clock that may go back, stand still or be missing for a while.

    Args:
        name: of the video source, for the log.
        frame_seconds: the distance to continue at before the video source has shown its own.

    Example:
        >>> clock = SourceClock("camera", frame_seconds=0.5)
        >>> [clock.time_of(seconds) for seconds in (7.0, 7.25, 7.5, None, 2.0, 2.25)]
        [7.0, 7.25, 7.5, 7.75, 8.0, 8.25]
    """

    def __init__(self, name: str, *, frame_seconds: float) -> None:
        self._name, self._first_guess = name, frame_seconds
        self._distances: deque[float] = deque(maxlen=_USUAL)
        self._last: float | None = None
        self._offset = 0.0
        self._num_stalled = 0
        self._told = False

    @property
    def usual_seconds(self) -> float:
        """From frame to frame, the median of the last few."""
        return statistics.median(self._distances) if self._distances else self._first_guess

    def time_of(self, raw_seconds: float | None) -> float | None:
        """The time of the next frame; None where it is of the same moment as the one before."""
        if raw_seconds is not None and not math.isfinite(raw_seconds):
            raw_seconds = None
        if self._last is None:
            self._last = raw_seconds or 0.0
            return self._last
        if raw_seconds is None:
            return self._go_on(None)
        distance = raw_seconds + self._offset - self._last
        if distance > _SAME_SECONDS:
            self._num_stalled = 0
            self._distances.append(distance)
            self._last += distance
            return self._last
        if distance > -2.5 * self.usual_seconds:
            self._num_stalled += 1
            if self._num_stalled <= _STALLED_FRAMES:
                return None
            if self._num_stalled == _STALLED_FRAMES + 1:
                # what was taken for one moment was several
                self._last += _STALLED_FRAMES * self.usual_seconds
            return self._go_on(raw_seconds, "stands still")
        return self._go_on(raw_seconds, f"goes back by {-distance:.2f} s")

    def _go_on(self, raw_seconds: float | None, problem: str = "") -> float:
        assert self._last is not None
        if problem and not self._told:
            self._told = True
            logger.warning("%s: its clock %s at %.2f s; times continue from there", self._name, problem, self._last)
        self._last += self.usual_seconds
        if raw_seconds is not None:
            self._offset = self._last - raw_seconds
        return self._last


class _Slowness:
    """Tells once that a video source is slower than wanted."""

    def __init__(self, name: str, frame_seconds: float, longest_gap: float) -> None:
        self._name, self._frame_seconds, self._longest_gap, self._count = name, frame_seconds, longest_gap, 0

    def look(self, distance: float) -> None:
        """At the distance of two frames."""
        if self._count > _TOLD_AFTER:
            return
        self._count = self._count + 1 if distance > _SLOWER * self._frame_seconds else 0
        if self._count > _TOLD_AFTER:
            logger.warning(
                "%s: its frames are %.3g s apart, and the model was trained with one every %.3g s: they are repeated, "
                "for up to %.3g s. A video source with more frames a second shows the model what it knows.",
                *(self._name, distance, self._frame_seconds, self._longest_gap),
            )
