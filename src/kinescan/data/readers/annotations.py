"""What a label reader of intervals gives, before the videos themselves are looked at."""

from dataclasses import dataclass
from pathlib import Path

from kinescan.data.intervals import RowProblem


@dataclass(frozen=True)
class LabelledSpan:
    """An interval as a file writes it.

    Attributes:
        label: what happens; empty or a word for nothing where nothing does.
        start: in seconds, or the number of its first frame (see `AnnotatedVideo.in_frames`).
        end: in seconds, or the number of the frame behind its last one.
        line: of the file, from 1; 0 where the format has none.
    """

    label: str
    start: float
    end: float
    line: int = 0


@dataclass(frozen=True)
class AnnotatedVideo:
    """A video and its labels as a file writes them.

    Attributes:
        path: the video.
        video_id: what names it wherever its folder lies.
        spans: what happens, in the order of the file.
        group: see `IntervalVideo`.
        line: of the file that names it first.
        in_frames: times are numbers of frames, from 0.
        num_frames: that the labels are given for; 0: not known.
    """

    path: Path
    video_id: str
    spans: tuple[LabelledSpan, ...]
    group: str = ""
    line: int = 0
    in_frames: bool = False
    num_frames: int = 0


@dataclass(frozen=True)
class Annotations:
    """What a label reader of intervals found.

    Attributes:
        videos: with their labels, in the order of the data set.
        classes: label texts in the data set's own order; None where it has none: then alphabetical.
        problems: rows that are wrong; they are in no video.
        missing: ids that are listed and no file was found for, where that is usual; they are left out.
        notes: what else a user should know.
        is_published: labels come from elsewhere, and times a little beyond a video's end are cut and counted.
    """

    videos: list[AnnotatedVideo]
    classes: tuple[str, ...] | None = None
    problems: tuple[RowProblem, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    is_published: bool = False
