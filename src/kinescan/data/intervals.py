"""Labels with a start and an end."""

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path

from kinescan.errors import ConfigError

_MOST_LOGGED, _MOST_NAMED = 1000, 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """What happens in a video, from when to when: [start, end) in seconds from the video's first frame on.

    Attributes:
        video_id: which video.
        label: what happens.
        start_seconds: when it begins.
        end_seconds: when it has ended.

    Raises:
        ConfigError: a time is NaN or infinite.
    """

    video_id: str
    label: str
    start_seconds: float
    end_seconds: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start_seconds) and math.isfinite(self.end_seconds)):
            raise ConfigError(
                f"{self.video_id}: an interval of {self.label!r} runs from {self.start_seconds} to {self.end_seconds}. "
                "Give both times as numbers of seconds."
            )


@dataclass(frozen=True)
class IntervalVideo:
    """A video with all that happens in it.

    Attributes:
        path: the file.
        video_id: what names the video wherever its folder lies; augmentation and splits depend on it.
        intervals: by start; none where nothing happens.
        group: what must not stand on both sides of a split, such as a person; empty: the video alone.
        line: of the file that lists it first, from 1; 0 where none does.
    """

    path: Path
    video_id: str
    intervals: tuple[Interval, ...]
    group: str = ""
    line: int = 0

    @property
    def labels(self) -> frozenset[str]:
        """What happens in it."""
        return frozenset(interval.label for interval in self.intervals)


@dataclass(frozen=True, order=True)
class RowProblem:
    """What is wrong with one row of an annotation file.

    Attributes:
        line: its number, from 1; 0 where the format has none.
        reason: what is wrong, what is allowed.
        video: what the file calls the video, where that is known.
    """

    line: int
    reason: str
    video: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}" if self.line else self.reason


@dataclass(frozen=True)
class IntervalTable:
    """What an annotation file says of its videos.

    Attributes:
        videos: each once, in the order of the file.
        classes: label texts in the order of their numbers; without the label for "nothing happens".
        problems: every row that is wrong; such rows are in no video.
        missing: ids that are listed and no file was found for; they are among no videos.
        notes: what else a user should know.
    """

    videos: list[IntervalVideo]
    classes: tuple[str, ...]
    problems: tuple[RowProblem, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"IntervalTable({len(self.videos)} videos, {len(self.classes)} classes, {len(self.problems)} wrong rows)"

    def require_sound(self, source: str | Path) -> None:
        """Passes where nothing is wrong with the table; what is wrong is logged row by row.

        Raises:
            ConfigError: rows are wrong; the first ones are named.
        """
        if not self.problems:
            return
        listed = sorted(self.problems)
        for problem in listed[:_MOST_LOGGED]:
            logger.error("%s, %s", source, problem)
        count, shown = len(listed), " ".join(map(str, listed[:_MOST_NAMED]))
        more = f" ... ({count - _MOST_NAMED} more)" if count > _MOST_NAMED else ""
        rows = "1 row is" if count == 1 else f"{count:,} rows are"
        raise ConfigError(f"{source}: {rows} wrong. Correct or remove: {shown}{more}")
