"""How often classes of intervals happen, and how long they last."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from kinescan.data.intervals import IntervalTable, RowProblem
from kinescan.runtime.escaping import escape_terminal
from kinescan.runtime.quantities import percent

_BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_NUM_BINS = 16
_MOST_LETTERS = 32


@dataclass(frozen=True, kw_only=True)
class ClassLengths:
    """The intervals of one class.

    Attributes:
        label: its text.
        num_videos: videos in which it happens.
        seconds: how long each interval lasts, ascending.
    """

    label: str
    num_videos: int
    seconds: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Counts and lengths as plain values."""
        found = self.seconds
        return {
            "label": self.label,
            "intervals": len(found),
            "videos": self.num_videos,
            "shortest_seconds": round(found[0], 3) if found else None,
            "median_seconds": round(median(found), 3) if found else None,
            "longest_seconds": round(found[-1], 3) if found else None,
            "all_seconds": round(sum(found), 3),
        }


@dataclass(frozen=True, kw_only=True)
class IntervalSummary:
    """What the labels of one part say.

    Attributes:
        classes: in their order.
        num_videos: labelled videos.
        num_empty: videos in which nothing happens.
        problems: rows that are wrong.
        notes: what else a user should know.
    """

    classes: tuple[ClassLengths, ...]
    num_videos: int
    num_empty: int
    problems: tuple[RowProblem, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "videos": self.num_videos,
            "videos_in_which_nothing_happens": self.num_empty,
            "classes": [entry.to_json() for entry in self.classes],
            "wrong_rows": [{"line": problem.line or None, "reason": problem.reason} for problem in self.problems],
            "notes": list(self.notes),
        }

    def lines(self, video_seconds: float) -> Iterator[str]:
        """A table with a drawing of how long each class lasts, from short to long.

        Args:
            video_seconds: how long the videos are together.
        """
        count = sum(len(entry.seconds) for entry in self.classes)
        yield f"  {count:,} intervals of {len(self.classes)} classes; nothing happens in {self.num_empty} videos"
        lengths = [seconds for entry in self.classes for seconds in entry.seconds]
        if not lengths:
            return
        edges = bin_edges(lengths)
        names = [_short(entry.label) for entry in self.classes]
        width = max(5, *map(len, names))
        header = f"{'intervals':>9} {'videos':>6} {'shortest':>9} {'median':>9} {'longest':>9} {'of time':>8}"
        yield f"  {'class':<{width}} {header}  {_time(edges[0])} to {_time(edges[-1])}"
        for name, entry in zip(names, self.classes, strict=True):
            found = entry.seconds
            if not found:
                yield f"  {name:<{width}} {0:>9} {0:>6}"
                continue
            fraction = percent(sum(found) / video_seconds) if video_seconds else "-"
            cells = [f"{_time(value):>9}" for value in (found[0], median(found), found[-1])]
            bars = draw(histogram(found, edges))
            counts = f"{len(found):>9,} {entry.num_videos:>6,}"
            yield f"  {name:<{width}} {counts} {' '.join(cells)} {fraction:>8}  {bars}".rstrip()


def summarise(table: IntervalTable) -> IntervalSummary:
    """The summary of a part."""
    lengths: dict[str, list[float]] = {label: [] for label in table.classes}
    videos = dict.fromkeys(table.classes, 0)
    for video in table.videos:
        for interval in video.intervals:
            lengths.setdefault(interval.label, []).append(interval.end_seconds - interval.start_seconds)
        for label in video.labels:
            videos[label] = videos.get(label, 0) + 1
    return IntervalSummary(
        classes=tuple(
            ClassLengths(label=label, num_videos=videos[label], seconds=tuple(sorted(found)))
            for label, found in lengths.items()
        ),
        num_videos=len(table.videos),
        num_empty=sum(not video.intervals for video in table.videos),
        problems=table.problems,
        notes=table.notes,
    )


def bin_edges(lengths: Sequence[float], num_bins: int = _NUM_BINS) -> list[float]:
    """Edges of bins that grow by the same factor, from the shortest to the longest.

    Example:
        >>> [round(edge, 3) for edge in bin_edges([1.0, 16.0], 4)]
        [1.0, 2.0, 4.0, 8.0, 16.0]
    """
    low, high = max(min(lengths), 1e-3), max(*lengths, 1e-3)
    high = high if high > low else 1.001 * low
    return [low * (high / low) ** (edge / num_bins) for edge in range(num_bins + 1)]


def histogram(lengths: Sequence[float], edges: Sequence[float]) -> list[int]:
    """How many lengths lie in each bin; the last one holds its upper edge."""
    counts = [0] * (len(edges) - 1)
    step = math.log(edges[-1] / edges[0]) / len(counts)
    for length in lengths:
        index = int(math.log(max(length, edges[0]) / edges[0]) / step + 1e-9)
        counts[min(index, len(counts) - 1)] += 1
    return counts


def draw(counts: Sequence[int]) -> str:
    """A line of bars, each as high as its count.

    Example:
        >>> draw([0, 1, 2, 4]).isascii(), len(draw([0, 1, 2, 4]))
        (False, 4)
    """
    most = max(counts, default=0)
    return "".join(" " if not count else _BARS[math.ceil(8 * count / most) - 1] for count in counts)


def _short(label: str) -> str:
    shown = escape_terminal(label)
    return shown if len(shown) <= _MOST_LETTERS else f"{shown[: _MOST_LETTERS - 1]}\u2026"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"
