"""How far apart in time the frames of a run's clips were, counted in constant memory and in any order."""

import math
from collections.abc import Iterable, Mapping

from kinescan.models.timing import FrameTiming

_BINS_PER_E = 200
"""Bins of half a per cent; of what falls into one, the mean is kept."""
_MICROSECONDS = 1e6


class TimingCounts:
    """Counts clips by the seconds between their frames; the same whatever the order, and however they are shared out.

    Args:
        plain: what `to_plain` gave.

    Example:
        >>> counts = TimingCounts()
        >>> counts.add([0.04, 0.08, 0.08])
        >>> counts.timing()
        FrameTiming(median_seconds=0.08, shortest_seconds=0.04, longest_seconds=0.08)
    """

    def __init__(self, plain: Mapping[str, list[int]] | None = None) -> None:
        self._bins = {int(key): (entry[0], entry[1]) for key, entry in (plain or {}).items()}

    def add(self, frame_seconds: Iterable[float]) -> None:
        """Clips, each by the seconds from frame to frame; what is not positive tells nothing."""
        for seconds in frame_seconds:
            microseconds = round(seconds * _MICROSECONDS) if 0 < seconds < math.inf else 0
            if microseconds > 0:
                self._add(round(_BINS_PER_E * math.log(microseconds)), 1, microseconds)

    def merge(self, plain: Mapping[str, list[int]]) -> None:
        """Adds what another one's `to_plain` gave."""
        for key, (count, total) in TimingCounts(plain)._bins.items():
            self._add(key, count, total)

    def timing(self) -> FrameTiming | None:
        """What was counted; None for nothing."""
        if not self._bins:
            return None
        keys = sorted(self._bins)
        half, seen = sum(count for count, _ in self._bins.values()) / 2, 0
        median = keys[-1]
        for key in keys:
            seen += self._bins[key][0]
            if seen >= half:
                median = key
                break
        return FrameTiming(
            median_seconds=self._mean(median),
            shortest_seconds=self._mean(keys[0]),
            longest_seconds=self._mean(keys[-1]),
        )

    def to_plain(self) -> dict[str, list[int]]:
        """Bin -> how many clips, and the sum of their seconds in microseconds."""
        return {str(key): [count, total] for key, (count, total) in sorted(self._bins.items())}

    def _add(self, key: int, count: int, total: int) -> None:
        before = self._bins.get(key, (0, 0))
        self._bins[key] = (before[0] + count, before[1] + total)

    def _mean(self, key: int) -> float:
        count, total = self._bins[key]
        return round(total / count) / _MICROSECONDS
