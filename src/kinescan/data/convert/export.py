"""What a label reader of an annotation tool's export gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kinescan.data.intervals import RowProblem


@dataclass(frozen=True)
class Mark:
    """Something that an annotator marked.

    Attributes:
        video: what the tool calls the video.
        start: in seconds, or the number of its first frame, from 0.
        end: in seconds, or the number of the frame behind its last one; as `start` for what has no length.
        fields: what a label can be made of, by name, such as "tier" and "text".
        line: of the file, from 1; 0 where the format has none.
        frame_rate: frames per second that its frame numbers are counted at, where the file says it for this mark.
        in_seconds: its times are seconds, though the others of the file are frame numbers.
    """

    video: str
    start: float
    end: float
    fields: Mapping[str, str]
    line: int = 0
    frame_rate: float = 0.0
    in_seconds: bool = False


@dataclass(frozen=True)
class Export:
    """What one file of a tool holds.

    Attributes:
        videos: names of all videos that were looked at, also those in which nothing happens.
        marks: in the order of the file.
        unit: of the times of marks.
        counts_own_frames: frame numbers are those of the video itself, so that its time stamps say when they are.
        problems: what is wrong.
        notes: what else a user should know.
    """

    videos: tuple[str, ...]
    marks: tuple[Mark, ...]
    unit: Literal["seconds", "frames"] = "seconds"
    counts_own_frames: bool = True
    problems: tuple[RowProblem, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportFile:
    """A file to read.

    Attributes:
        path: the file.
        attribute: attributes of this name become fields of a mark, and change within a track; empty: none does.
    """

    path: Path
    attribute: str = ""
