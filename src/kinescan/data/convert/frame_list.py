"""Lists of path, start_frame, end_frame, label: times in frames instead of seconds."""

from pathlib import Path

from kinescan.data.convert.export import Export, ExportFile, Mark
from kinescan.data.convert.sheet import read_sheet
from kinescan.data.intervals import RowProblem
from kinescan.data.readers.interval_lists import FrameColumns, find_frame_columns
from kinescan.data.readers.table import Row
from kinescan.errors import ConfigError


def is_frame_list(file: Path) -> bool:
    """Whether a table has columns of paths, first frames, last frames and labels."""
    return _columns(file)[0] is not None


def read_frame_list(source: ExportFile) -> Export:
    """A mark a row: frames are counted from 0, and both ends belong to it; a row with a path alone has none.

    Raises:
        ConfigError: it has no such columns.
    """
    columns, rows = _columns(source.path)
    if columns is None:
        raise ConfigError(f"{source.path} has no columns path, start_frame, end_frame and label.")
    marks, problems = [], []
    videos: dict[str, None] = {}
    for row in rows:
        path, start, end, label = (
            row.cells[column] if column < len(row.cells) else ""
            for column in (columns.path, columns.start, columns.end, columns.label)
        )
        if not path:
            # of no video that could be called empty
            problems.append(RowProblem(row.line, "the path is empty.", "?"))
            continue
        videos.setdefault(path)
        if not start and not end and not label:
            continue
        if not (start.isdecimal() and end.isdecimal() and int(start) <= int(end)):
            reason = f"{path}: frames {start!r} to {end!r}; 0 <= start <= end is needed."
            problems.append(RowProblem(row.line, reason, path))
            continue
        marks.append(Mark(path, int(start), int(end) + 1, {"label": label}, row.line))
    return Export(tuple(videos), tuple(marks), unit="frames", problems=tuple(problems))


def _columns(file: Path) -> tuple[FrameColumns | None, list[Row]]:
    rows = [row for row in read_sheet(file) if not row.cells[0].startswith("#")]
    return (find_frame_columns(rows[0]), rows[1:]) if rows else (None, [])
