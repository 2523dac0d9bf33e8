"""Intervals in a text list: one row an interval, whichever program wrote it."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kinescan.data.intervals import RowProblem
from kinescan.data.readers.annotations import AnnotatedVideo, Annotations, LabelledSpan
from kinescan.data.readers.files import is_video
from kinescan.data.readers.lists import (
    LABEL_COLUMNS,
    LONGEST_PATH,
    MOST_LETTERS,
    PART_COLUMNS,
    PATH_COLUMNS,
    column_names,
    find_group_column,
    relative_path,
)
from kinescan.data.readers.source import LabelSource
from kinescan.data.readers.split_names import held_out_name, no_training_part, part_of
from kinescan.data.readers.table import Row, read_rows
from kinescan.data.readers.times import is_time, parse_seconds
from kinescan.errors import ConfigError
from kinescan.runtime.addresses import is_read_address, is_remote
from kinescan.runtime.urls import is_url

_STARTS = (
    *("start", "begin", "start_time", "begin_time", "time_start", "t_start", "start_seconds", "start_sec", "onset"),
    *("starttime", "begintime", "from", "segment_start", "temporal_segment_start", "start_timestamp"),
)
_ENDS = (
    *("end", "stop", "end_time", "stop_time", "time_end", "t_end", "end_seconds", "end_sec", "offset", "stop_seconds"),
    *("endtime", "stoptime", "to", "segment_end", "temporal_segment_end", "end_timestamp", "finish"),
)
_LENGTHS = ("duration", "length", "dur", "duration_seconds", "length_seconds", "duration_sec")
_LABELS = (*LABEL_COLUMNS, "event", "behavior", "behaviour", "annotation", "tag", "description")
_PATHS = (*PATH_COLUMNS, "video_id", "videoid", "media", "media_file_name", "media_file", "source", "recording")
_UNITS = {"s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3}
_FRAMES = ("frame", "frames", "f", "fr")
_SAMPLE = 1000
_FORM = "Write path,start,end,label with times in seconds, one row an interval."


@dataclass(frozen=True)
class _Column:
    """A column of times: its index, and what one of its unit is in seconds."""

    index: int
    unit: float = 1.0


@dataclass(frozen=True)
class _Columns:
    """Indices of the columns."""

    path: int
    start: _Column
    end: _Column
    label: int
    ends_are_lengths: bool = False
    part: int | None = None
    group: int | None = None
    count: int = 4


def is_interval_list(file: Path, root: Path | None = None) -> bool:
    """Whether a text list holds intervals: a header names path, start and end, or every row is path,start,end,label.

    Raises:
        ConfigError: the list cannot be read.
    """
    rows, comments = _read_rows(file, root or file.parent)
    return bool(rows) and _find_columns(rows, comments, file, group="") is not None


def list_held_out(file: Path, root: Path | None = None) -> str | None:
    """What a list of intervals calls the part that it holds out, by a column split (subset, set, ...); None: no parts.

    Raises:
        ConfigError: the list cannot be read.
    """
    columns, rows = _read_table(file, root or file.parent, group="")
    names = _part_names(rows, columns)
    return held_out_name(names) if "train" in map(part_of, names) else None


def read_interval_list(source: LabelSource) -> Annotations:
    """The intervals that a text list holds, by video; a row without times and label says that nothing happens.

    Raises:
        ConfigError: the list cannot be read, or its columns are not known. Rows that are wrong are among the problems.
    """
    file, root = source.path, source.root or source.path.parent
    columns, rows = _read_table(file, root, group=source.group_column)
    rows, notes = _rows_of_part(rows, columns, source)
    reader = _RowReader(columns, root)
    for row in rows:
        reader.add(row)
    return Annotations(reader.videos(), problems=tuple(reader.problems), notes=notes)


class _RowReader:
    """Gathers rows into videos, and what is wrong with them.

    Args:
        columns: of the list.
        root: folder of the videos.
    """

    def __init__(self, columns: _Columns, root: Path) -> None:
        self.problems: list[RowProblem] = []
        self._columns, self._root = columns, root
        self._found: dict[str, _Gathered] = {}
        self._found_paths: dict[str, str | None] = {}

    def add(self, row: Row) -> None:
        """One more row."""
        columns = self._columns
        if len(row.cells) > columns.count:
            comma = " If a comma is the decimal sign, put numbers into quotes, or separate cells by semicolons."
            shown, hint = ",".join(row.cells)[:200], comma if sum(map(str.isdecimal, row.cells)) > 2 else ""
            self._wrong(row, f"{len(row.cells)} cells, and {columns.count} columns: {shown!r}.{hint}")
            return
        cells = [_cell(row, column) for column in (columns.path, columns.start.index, columns.end.index, columns.label)]
        path, start, end, label = cells
        found_path = self._find(path, row)
        if found_path is None:
            return
        video = self._found.setdefault(os.path.normpath(found_path), _Gathered(found_path, row.line))
        group = "" if columns.group is None else _cell(row, columns.group)
        if columns.group is not None and not group:
            self._wrong(row, "the group is empty. Write one in each row.")
        elif video.group not in (None, group):
            self._wrong(row, f"the video is of group {group!r} here and of {video.group!r} before.")
        else:
            video.group = group
        if not start and not end:
            if label:
                self._wrong(row, f"{path}: {label!r} has neither start nor end. Give both, or leave all three empty.")
            else:
                video.empty_lines.append(row.line)
            return
        span = self._span(row, path, start, end, label)
        if span is not None:
            video.spans.append(span)

    def videos(self) -> list[AnnotatedVideo]:
        """All videos that were named, in the order of the rows."""
        found = []
        for video in self._found.values():
            if not video.spans and not video.empty_lines:
                # all that is reported of it is wrong
                continue
            if video.spans and video.empty_lines:
                reason = (
                    f"{video.found_path} has labels in other rows (line {video.spans[0].line}), and none in this one."
                )
                self.problems += [RowProblem(line, reason) for line in video.empty_lines]
            found.append(
                AnnotatedVideo(
                    Path(video.found_path) if is_remote(video.found_path) else self._root / video.found_path,
                    Path(video.found_path).as_posix(),
                    tuple(video.spans),
                    group=video.group or "",
                    line=video.line,
                )
            )
        return found

    def _find(self, path: str, row: Row) -> str | None:
        """The path as its file spells it; None where the file is missing."""
        if path not in self._found_paths:
            self._found_paths[path] = None
            if not path:
                self._wrong(row, "the path is empty.")
            elif len(path) > LONGEST_PATH:
                self._wrong(row, f"a path has {len(path):,} letters; no file's path is so long.")
            else:
                found_path = self._elsewhere(path, row) or find_interval_video(path, self._root)
                if found_path is None and not is_url(path):
                    self._wrong(row, f"{self._root / path} is not there. Correct the path, or set data.root.")
                self._found_paths[path] = found_path
        elif self._found_paths[path] is None:
            self._wrong(row, f"{path[:200]!r} is not there, as said above." if path else "the path is empty.")
        return self._found_paths[path]

    def _elsewhere(self, path: str, row: Row) -> str | None:
        """The path for an address; None for files, and for an address that is not read, which is reported."""
        if is_url(path) and not os.path.exists(self._root / path):
            try:
                return path if is_read_address(path) else None
            except ConfigError as error:
                self._wrong(row, str(error))
                return None
        return path if is_remote(self._root) else None

    def _span(self, row: Row, path: str, start: str, end: str, label: str) -> LabelledSpan | None:
        """The interval of a row; None where something is wrong with it."""
        columns, name = self._columns, "duration" if self._columns.ends_are_lengths else "end"
        if not start or not end:
            lost = "start" if not start else name
            self._wrong(
                row, f"{path}: the {lost} is empty. Give start and end in seconds, or leave both and the label empty."
            )
            return None
        try:
            begin = parse_seconds(start) * columns.start.unit
            stop = parse_seconds(end) * columns.end.unit
        except ValueError as problem:
            self._wrong(row, f"{path}: {problem}")
            return None
        stop = begin + stop if columns.ends_are_lengths else stop
        if len(label) > MOST_LETTERS:
            self._wrong(row, f"a label has {len(label):,} letters; {MOST_LETTERS:,} are allowed.")
        elif stop < begin:
            self._wrong(row, f"{path}: the end ({end}) lies before the start ({start}).")
        elif stop == begin:
            self._wrong(row, f"{path}: start and end are both {start}: an interval needs a length.")
        elif begin < 0:
            self._wrong(row, f"{path}: the start ({start}) lies before 0.")
        else:
            return LabelledSpan(label, begin, stop, row.line)
        return None

    def _wrong(self, row: Row, reason: str) -> None:
        self.problems.append(RowProblem(row.line, reason))


@dataclass
class _Gathered:
    """What rows said so far of one video."""

    found_path: str
    line: int
    group: str | None = None

    def __post_init__(self) -> None:
        self.spans: list[LabelledSpan] = []
        self.empty_lines: list[int] = []


def find_interval_video(path: str, root: Path) -> str | None:
    """The path of a video that a list names, relative to `root`, as its file spells it; None: there is none.

    A name without its ending stands for the one video of that name. Of a full path of another computer, the last parts
    count that are there below `root`.
    """
    parts = re.split(r"[\\/]+", path)
    if re.match(r"/|[A-Za-z]:[\\/]", path) and not os.path.isfile(path):
        ends = (os.path.join(*parts[count:]) for count in range(1, len(parts)) if parts[count])
        path = next((end for end in ends if os.path.isfile(os.path.join(root, end))), path)
    relative = relative_path(path, root)
    full = os.path.join(root, relative)
    if os.path.isfile(full):
        return relative
    if not is_video(relative):
        folder, name = os.path.split(relative)
        try:
            beside = sorted(entry for entry in os.listdir(os.path.join(root, folder)) if is_video(entry))
        except OSError:
            return None
        named = [entry for entry in beside if os.path.splitext(entry)[0] == name]
        if len(named) == 1:
            return os.path.join(folder, named[0])
    return None


def _read_table(file: Path, root: Path, *, group: str) -> tuple[_Columns, list[Row]]:
    rows, comments = _read_rows(file, root)
    if not rows:
        raise ConfigError(f"{file} lists no video. {_FORM}")
    found = _find_columns(rows, comments, file, group=group)
    if found is None:
        raise ConfigError(
            f"{file}, line {rows[0].line}: {','.join(rows[0].cells)[:200]!r} is neither a row of path,start,end,label "
            f"nor a header that names a path ({', '.join(PATH_COLUMNS[:2])}, ...), start, end and label. {_FORM}"
        )
    columns, has_header = found
    rows = rows[1:] if has_header else rows
    if not rows:
        raise ConfigError(f"{file} lists no video below its header. {_FORM}")
    return columns, rows


def _read_rows(file: Path, root: Path) -> tuple[list[Row], list[Row]]:
    """The rows and the comments of a list; of one that is separated by blanks, four cells where there are times."""
    rows, comments = read_rows(file, root)
    cut = [_cut_at_blanks(row) for row in rows if len(row.cells) == 2]
    if 2 * sum(len(row.cells) == 4 for row in cut) > len(rows):
        rows = [_cut_at_blanks(row) for row in rows]
    return rows, comments


_TIMES_INSIDE = re.compile(r"(?P<path>\S.*?) (?P<start>[\d.,:]+) (?P<end>[\d.,:]+) (?P<label>\S.*)")
_TIMES_BEHIND = re.compile(r"(?P<path>\S+) (?P<label>\S.*?) (?P<start>[\d.,:]+) (?P<end>[\d.,:]+)")


def _cut_at_blanks(row: Row) -> Row:
    """The cells of "path start end label" or "path label start end"; of another row, the row itself."""
    text = " ".join(" ".join(row.cells).split())
    match = _TIMES_INSIDE.fullmatch(text) or _TIMES_BEHIND.fullmatch(text)
    if match is None or not (is_time(match["start"]) and is_time(match["end"])):
        return row
    return Row(row.line, (match["path"], match["start"], match["end"], match["label"]))


def _find_columns(
    rows: Sequence[Row], comments: Sequence[Row], file: Path, *, group: str
) -> tuple[_Columns, bool] | None:
    """The columns, and whether the first row is their header; None where the list holds no intervals."""
    columns = _header_columns(rows[0], file, group)
    if columns is not None:
        return columns, True
    for row in comments:
        if row.line < rows[0].line and (columns := _header_columns(row, file, group)) is not None:
            return columns, False
    sample = [row for row in rows[:_SAMPLE] if len(row.cells) > 1]
    for start, end, label in ((1, 2, 3), (2, 3, 1)):
        if 2 * sum(_has_times(row, start, end) for row in sample) > len(sample):
            if group:
                raise ConfigError(f"{file} has no header, so no column {group!r}. Add one: path,start,end,label,group.")
            return _Columns(0, _Column(start), _Column(end), label), False
    return None


def _has_times(row: Row, start: int, end: int) -> bool:
    return len(row.cells) == 4 and is_time(row.cells[start]) and is_time(row.cells[end])


def _header_columns(header: Row, file: Path, group: str) -> _Columns | None:
    """The columns that a header names; None where it is not a header of intervals.

    Raises:
        ConfigError: two columns have one name, times are frame numbers, or there is no label or group.
    """
    names = [_without_unit(name) for name in column_names(header)]

    def index_of(known: Sequence[str], allowed: Callable[[str], bool] = lambda _: True) -> int | None:
        for wanted in known:
            indices = [index for index, (name, unit) in enumerate(names) if name == wanted and allowed(unit)]
            if len(indices) > 1 and len({header.cells[index] for index in indices}) < len(indices):
                raise ConfigError(
                    f"{file}, line {header.line}: two columns are called {header.cells[indices[0]]!r}. Remove or "
                    "rename one."
                )
            if indices:
                return indices[0]
        return None

    def time_of(known: Sequence[str]) -> _Column | None:
        index = index_of(known, lambda unit: unit not in _FRAMES)
        return None if index is None else _Column(index, _UNITS[names[index][1] or "s"])

    path, label = index_of(_PATHS), index_of(_LABELS)
    start, end, length = time_of(_STARTS), time_of(_ENDS), time_of(_LENGTHS)
    if path is None:
        return None
    if start is None or (end or length) is None:
        framed = index_of(_STARTS, lambda unit: unit in _FRAMES)
        if framed is not None and index_of(_ENDS, lambda unit: unit in _FRAMES) is not None:
            raise ConfigError(
                f"{file}, line {header.line}: the column {header.cells[framed]!r} holds frame numbers. Give seconds, "
                "or let `kinescan data convert` write them."
            )
        return None
    if label is None:
        raise ConfigError(
            f"{file}, line {header.line}: there are columns of paths, starts and ends and none of labels. Call it "
            f"{', '.join(LABEL_COLUMNS[:3])}, ...."
        )
    column = end or length
    assert column is not None
    return _Columns(
        path,
        start,
        column,
        label,
        ends_are_lengths=end is None,
        part=index_of(PART_COLUMNS),
        group=find_group_column(header, file, group),
        count=len(header.cells),
    )


@dataclass(frozen=True)
class FrameColumns:
    """Indices of columns in a list whose times are numbers of frames."""

    path: int
    start: int
    end: int
    label: int


def find_frame_columns(header: Row) -> FrameColumns | None:
    """The columns of a header that names a path, a first and a last frame and a label; None for another one."""
    names = [_without_unit(name) for name in column_names(header)]

    def index_of(known: Sequence[str], units: Sequence[str]) -> int | None:
        return next((index for index, (name, unit) in enumerate(names) if name in known and unit in units), None)

    path, label = index_of(_PATHS, ("",)), index_of(_LABELS, ("",))
    start, end = index_of(_STARTS, _FRAMES), index_of(_ENDS, _FRAMES)
    if path is None or label is None or start is None or end is None:
        return None
    return FrameColumns(path, start, end, label)


def _without_unit(name: str) -> tuple[str, str]:
    """A column's name and the unit in it: "start_(s)" and "start_s" are ("start", "s")."""
    match = re.fullmatch(r"(.+?)_*[(\[]_*([a-z]+)_*[)\]]", name)
    if match is not None and match[2] in (*_UNITS, *_FRAMES):
        return match[1], match[2]
    for sign in ("start", "begin", "end", "stop", "duration", "length"):
        for unit in (*_UNITS, *_FRAMES):
            if name in (f"{sign}_{unit}", f"{unit}_{sign}", f"{sign}_time_{unit}"):
                return sign, unit
    return name, ""


def _part_names(rows: Sequence[Row], columns: _Columns) -> set[str]:
    return set() if columns.part is None else {_cell(row, columns.part).lower() for row in rows}


def _rows_of_part(rows: list[Row], columns: _Columns, source: LabelSource) -> tuple[list[Row], tuple[str, ...]]:
    """The rows on the side that is asked for, and what is to be reported about others.

    Raises:
        ConfigError: there is none to train on.
    """
    names = _part_names(rows, columns)
    if columns.part is None or not any(map(part_of, names)):
        return rows, ()
    held_out = held_out_name(names) if "train" in map(part_of, names) else None
    if "train" not in map(part_of, names):
        if source.part == "train":
            raise no_training_part(source.path, names)
        return rows, ()
    if held_out is None:
        return rows, ()
    column = columns.part
    strange = sorted(name for name in names if part_of(name) is None)
    if strange:
        raise ConfigError(f"{source.path}: {strange[0]!r} is not a part of a data set. Write train, val or test.")

    def is_wanted(name: str) -> bool:
        return part_of(name) == "train" if source.part == "train" else name == held_out

    kept = [row for row in rows if is_wanted(_cell(row, column).lower())]
    others = sum(part_of(name) != "train" and name != held_out for row in rows for name in [_cell(row, column).lower()])
    said = f"{others} rows of other parts than train and {held_out} are not used"
    return kept, ((said,) if others else ())


def _cell(row: Row, column: int) -> str:
    return row.cells[column] if column < len(row.cells) else ""
