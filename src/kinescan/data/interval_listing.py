"""Which videos have labels with a start and an end, and what these are, checked against the videos themselves."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from kinescan.data.class_numbers import lookalikes
from kinescan.data.groups import column_of, make_grouping
from kinescan.data.interval_layouts import INTERVAL_DATASETS, find_interval_layout
from kinescan.data.intervals import Interval, IntervalTable, IntervalVideo, RowProblem
from kinescan.data.readers.annotations import AnnotatedVideo, LabelledSpan
from kinescan.data.readers.source import LabelSource, Part
from kinescan.data.video import Limits, VideoReader
from kinescan.errors import ConfigError, VideoError
from kinescan.settings import closest

logger = logging.getLogger(__name__)

BACKGROUND = "background"
"""The label that means that nothing happens, whatever its case; it is never a class."""
_THREADS = 8
_TOUCH_SECONDS = 0.01
"""Intervals that overlap by less were rounded: the first one is cut."""
_LEAST_MILLISECONDS = 100
"""Of an interval whose numbers may be milliseconds."""
_SLACK_SECONDS = 0.25
"""How far an interval may reach beyond its video: players show a length that was rounded, or that of the sound."""
_FRAMES_FRACTION = 0.05
"""By how much the number of labels may differ from the number of frames."""


def read_intervals(
    source: str | Path,
    *,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    reader: str = "auto",
    part: Part = "train",
    split: int = 1,
    overlaps: bool = False,
    group: str = "",
    limits: Limits | None = None,
    allow_short: bool = False,
) -> IntervalTable:
    r"""Videos with all that happens in them, from when to when.

    Seconds are counted from a video's first frame, as players show them. Each video is opened: its length is needed.

    Args:
        source: a csv of path,start,end,label, or the folder or file of another layout in `INTERVAL_DATASETS`.
        root: folder that paths are relative to, or that holds the videos; by default the label source's own.
        classes: label texts in the order of their numbers, such as those of the training data.
        reader: name of the layout; "auto" finds it out.
        part: "train" or "test", of layouts that have both.
        split: which of the published divisions, from 1.
        overlaps: intervals of one video may overlap; otherwise rows that do are among the problems.
        group: see `kinescan.data.groups`.
        limits: what opening one video may take.
        allow_short: of cut videos, what is there counts.

    Returns:
        The videos; rows that are wrong are in no video, and listed as `problems`.

    Raises:
        ConfigError: the label source cannot be read, names no video, or the label reader or split is unknown.

    Example:
        >>> import tempfile, torch
        >>> from kinescan.data.video import write_video
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/a.mp4", torch.zeros(20, 3, 24, 32, dtype=torch.uint8), fps=10)
        ...     file = Path(folder, "labels.csv")
        ...     _ = file.write_text("path,start,end,label\na.mp4,0:00.5,1.25,fall\na.mp4,3,9,run\n")
        ...     table = read_intervals(file)
        >>> table.classes, table.videos[0].intervals[0].end_seconds, table.problems[0].line
        (('fall',), 1.25, 3)
    """
    source, folder = Path(source), Path(root) if root else None
    name = find_interval_layout(source, reader, root)
    if name is None:
        known = ["auto", *INTERVAL_DATASETS]
        hint = closest(reader, known) if reader not in known else f"Known: {', '.join(INTERVAL_DATASETS)}."
        raise ConfigError(f"{source} holds no labels with a start and an end. {hint}")
    layout = INTERVAL_DATASETS[name]
    if not 1 <= split <= layout.num_splits:
        raise ConfigError(f"data.split must lie in [1, {layout.num_splits}] for this data set, got {split}.")
    if column_of(group) and name != "intervals":
        raise ConfigError(
            f"group {group!r} names a column, and {source} is not a csv. Write a pattern over the ids of videos."
        )
    found = layout.read(LabelSource(path=source, root=folder, part=part, split=split, group=group))
    if not found.videos and not found.problems:
        raise ConfigError(f"{source} lists no video of the {part} part.")
    grouping = make_grouping(group)
    clocks = _read_clocks([video.path for video in found.videos], limits, allow_short)
    problems, videos, num_cut = list(found.problems), [], 0
    for video, clock in zip(found.videos, clocks, strict=True):
        placed = _Placing(video, clock, is_published=found.is_published, overlaps=overlaps)
        found_video = placed.video()
        if found_video.intervals or not placed.problems:
            # a video whose labels are all wrong does not count as one in which nothing happens
            videos.append(replace(found_video, group=grouping(video.video_id) or video.group))
        problems += placed.problems
        num_cut += placed.num_cut
    labels = {label for video in videos for label in video.labels}
    notes = (*found.notes, *_notes(labels, num_cut, part))
    chosen = tuple(sorted(labels)) if found.classes is None else found.classes
    if classes is not None:
        chosen = tuple(classes)
        problems += _unknown_labels(videos, chosen)
    return IntervalTable(videos, chosen, tuple(sorted(set(problems))), found.missing, notes)


@dataclass(frozen=True)
class _Clock:
    """When frames are shown, in seconds since the first one, as players and annotation tools count.

    Attributes:
        starts: of each frame.
        end: of the last one.
    """

    starts: Sequence[float]
    end: float

    def at(self, frame: float) -> float:
        """When a frame begins; the frame behind the last one begins at the end."""
        index = int(frame)
        return self.starts[index] if index < len(self.starts) else self.end


class _Placing:
    """The labels of one video, and what is wrong with them.

    Args:
        annotated: the labels as they are written.
        clock: None where the video cannot be read: that is found out and said when it is trained on.
        is_published: labels come from elsewhere: what lies beyond the video is cut.
        overlaps: intervals may overlap.
    """

    def __init__(self, annotated: AnnotatedVideo, clock: _Clock | None, *, is_published: bool, overlaps: bool) -> None:
        self.problems: list[RowProblem] = []
        self.num_cut = 0
        self._annotated, self._clock = annotated, clock
        self._is_published, self._overlaps = is_published, overlaps

    def video(self) -> IntervalVideo:
        """The video with its intervals by start."""
        spans = [self._within(span) for span in self._in_seconds()]
        named = [span for span in spans if span is not None and not is_background(span.label)]
        # the same row twice is one row
        once = {(span.start, span.end, span.label): span for span in reversed(named)}
        ordered = sorted(once.values(), key=lambda span: (span.start, span.end, span.label))
        annotated = self._annotated
        return IntervalVideo(
            annotated.path,
            annotated.video_id,
            tuple(
                Interval(
                    video_id=annotated.video_id,
                    label=span.label,
                    start_seconds=span.start,
                    end_seconds=span.end,
                )
                for span in (ordered if self._overlaps else self._apart(ordered))
            ),
            annotated.group,
            annotated.line,
        )

    def _in_seconds(self) -> Sequence[LabelledSpan]:
        annotated, clock = self._annotated, self._clock
        if not annotated.in_frames:
            return annotated.spans
        if clock is None:
            self._wrong(annotated.line, "cannot be read, so the times of its labels, one a frame, are not known.")
            return ()
        labels, frames = annotated.num_frames, len(clock.starts)
        if abs(labels - frames) > max(2, _FRAMES_FRACTION * frames):
            rate = labels / clock.end if clock.end > 0 else 0
            self._wrong(
                annotated.line,
                f"has {frames:,} frames and {labels:,} labels. Labels are needed for every frame: these would "
                f"fit a video of {rate:.4g} frames per second.",
            )
            return ()
        return [replace(span, start=clock.at(span.start), end=clock.at(span.end)) for span in annotated.spans]

    def _within(self, span: LabelledSpan) -> LabelledSpan | None:
        """The span where it lies in the video; its end may lie a little beyond."""
        if self._clock is None:
            return span
        end = self._clock.end
        if span.end <= end:
            return span
        if span.start >= end or (span.end > end + _SLACK_SECONDS and not self._is_published):
            if self._is_published:
                self.num_cut += 1
                return None
            shown = f"{span.label!r} from {span.start:g} to {span.end:g} s lies beyond the video's end ({end:.6g} s)."
            self._wrong(span.line, f"{shown}{self._frame_hint(span, end)}")
            return None
        self.num_cut += span.end > end + _SLACK_SECONDS
        return replace(span, end=end)

    def _frame_hint(self, span: LabelledSpan, seconds: float) -> str:
        """Whole numbers that are not seconds may be frames, or milliseconds."""
        assert self._clock is not None
        count = len(self._clock.starts)
        if not (span.start.is_integer() and span.end.is_integer()) or not seconds:
            return ""
        if span.start < seconds and span.end < 2 * seconds:
            # more likely a mark that is a little too long
            return ""
        if span.end <= count + 1:
            return f" It has {count} frames: times look like frame numbers; divide them by {count / seconds:.4g}."
        if span.end <= 1000 * (self._clock.end + 1) and span.end - span.start >= _LEAST_MILLISECONDS:
            return " Times look like milliseconds; divide them by 1000."
        return ""

    def _apart(self, spans: Sequence[LabelledSpan]) -> list[LabelledSpan]:
        """Spans that do not overlap; where two do, the one that is written later is wrong."""
        kept: list[LabelledSpan] = []
        for span in spans:
            before = kept[-1] if kept else None
            if before is None or before.end <= span.start:
                kept.append(span)
            elif before.end - span.start < _TOUCH_SECONDS and span.start > before.start:
                kept[-1] = replace(before, end=span.start)
                kept.append(span)
            elif before.line > span.line:
                kept[-1] = span
                self._overlap(before, span)
            else:
                self._overlap(span, before)
        return kept

    def _overlap(self, span: LabelledSpan, other: LabelledSpan) -> None:
        there = f" of line {other.line}" if other.line else ""
        self._wrong(
            span.line,
            f"{span.label!r} from {span.start:g} to {span.end:g} s overlaps {other.label!r} from "
            f"{other.start:g} to {other.end:g} s{there}. Correct one, or set data.overlaps = true.",
        )

    def _wrong(self, line: int, reason: str) -> None:
        self.problems.append(RowProblem(line, f"{self._annotated.video_id}: {reason}"))


def is_background(label: str) -> bool:
    """Whether a label means that nothing happens."""
    return not label or label.casefold() == BACKGROUND


def _unknown_labels(videos: Sequence[IntervalVideo], classes: Sequence[str]) -> Iterator[RowProblem]:
    unknown: dict[str, IntervalVideo] = {}
    for video in videos:
        for label in sorted(video.labels - set(classes)):
            unknown.setdefault(label, video)
    for label, video in unknown.items():
        yield RowProblem(
            video.line,
            f"{video.video_id}: {label!r} is not one of the {len(classes)} classes. {closest(label, classes)}",
        )


def _notes(labels: set[str], num_cut: int, part: str) -> Iterator[str]:
    for first, second in lookalikes(sorted(labels))[:5]:
        yield f"classes {first!r} and {second!r} differ only in case, blanks or the form of letters"
    if num_cut:
        yield f"{num_cut} intervals of the {part} part reached beyond their videos, and are cut or left out"


def _read_clocks(paths: Sequence[Path], limits: Limits | None, allow_short: bool) -> list[_Clock | None]:
    """When the frames of many videos are shown; None for those that cannot be read."""

    def read(path: Path) -> _Clock | None:
        try:
            with VideoReader(path, limits=limits, allow_short=allow_short) as video:
                return _Clock((video.pts_seconds - video.pts_seconds[0]).tolist(), video.duration_seconds)
        except VideoError:
            return None

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(read, paths))
