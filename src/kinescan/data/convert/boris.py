"""BORIS: aggregated events (old and new), and tabular events of starts and stops."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from kinescan.data.convert.export import Export, ExportFile, Mark
from kinescan.data.convert.sheet import Sheet, find_header, read_sheet
from kinescan.data.intervals import RowProblem
from kinescan.data.readers.table import Row
from kinescan.data.readers.times import parse_seconds
from kinescan.errors import ConfigError

_AGGREGATED = ("Behavior", "Start (s)", "Stop (s)")
_WITHOUT_UNIT = ("Behavior", "Start", "Stop")
_TABULAR = ("Behavior", "Time")
_NOTHING = ("", "na", "nan", "n/a", "none", "live")


def is_boris(file: Path) -> bool:
    """Whether a table has BORIS's columns."""
    rows = read_sheet(file)
    return any(find_header(rows, *names) is not None for names in (_AGGREGATED, _WITHOUT_UNIT, _TABULAR))


def read_boris(source: ExportFile) -> Export:
    """Events of BORIS; a label is the behavior, and may be made of subject, modifiers and category, too.

    Where several media files follow each other on one clock, the lengths of those before an event's file are taken off,
    and so is an observation's time offset, which BORIS adds to the time of the media when it notes an event.

    Raises:
        ConfigError: it is not a table of BORIS.
    """
    rows = read_sheet(source.path)
    index = find_header(rows, *_AGGREGATED)
    index = find_header(rows, *_WITHOUT_UNIT) if index is None else index
    if index is not None:
        return _Reading(rows[index], rows[:index]).aggregated(rows[index + 1 :])
    index = find_header(rows, *_TABULAR)
    if index is None:
        raise ConfigError(
            f"{source.path} has no columns {', '.join(_AGGREGATED)}. Export aggregated events as TSV or CSV."
        )
    return _Reading(rows[index], rows[:index]).tabular(rows[index + 1 :])


class _Reading:
    """Reads the rows below a header.

    Args:
        header: names of the columns.
        above: rows above it, in which tabular events name the observation and its media file.
    """

    def __init__(self, header: Row, above: Sequence[Row]) -> None:
        self._sheet = Sheet(header)
        self._above = {row.cells[0].lower(): row.cells[1] for row in above if len(row.cells) > 1 and row.cells[1]}
        self._problems: list[RowProblem] = []
        self._notes: dict[str, None] = {}
        self._marks: list[Mark] = []
        self._videos: dict[str, None] = {}

    def aggregated(self, rows: Sequence[Row]) -> Export:
        """A row for each event, with start and stop."""
        for row in rows:
            video, offset = self._media(row)
            if video is None:
                continue
            try:
                start = parse_seconds(self._sheet.get(row, "Start (s)", "Start")) - offset
                kind = self._sheet.get(row, "Behavior type").upper()
                stop = self._sheet.get(row, "Stop (s)", "Stop")
                ends_itself = kind == "POINT" or stop.lower() in _NOTHING
                end = start if ends_itself else parse_seconds(stop) - offset
            except ValueError as problem:
                self._problems.append(RowProblem(row.line, str(problem), video))
                continue
            if stop.lower() in _NOTHING and kind == "STATE":
                self._problems.append(RowProblem(row.line, "a STATE event has no stop. Close it in BORIS.", video))
                continue
            self._add(video, start, end, row)
        return self._export()

    def tabular(self, rows: Sequence[Row]) -> Export:
        """A row for each start and each stop."""
        begun: dict[tuple[str, ...], list[tuple[float, Row]]] = defaultdict(list)
        for row in rows:
            video, offset = self._media(row)
            if video is None:
                continue
            try:
                time = parse_seconds(self._sheet.get(row, "Time")) - offset
            except ValueError as problem:
                self._problems.append(RowProblem(row.line, str(problem), video))
                continue
            status = self._sheet.get(row, "Status", "Behavior type").upper()
            fields = self._fields(row)
            observation = self._sheet.get(row, "Observation id")
            key = (observation, video, fields["behavior"], fields["subject"], fields["modifiers"])
            if status == "START":
                begun[key].append((time, row))
            elif status == "STOP" and begun[key]:
                started, first = begun[key].pop(0)
                self._add(video, started, time, first)
            elif status == "POINT":
                self._add(video, time, time, row)
            elif status == "STOP":
                self._problems.append(RowProblem(row.line, f"{fields['behavior']!r} stops and was not started.", video))
            else:
                self._problems.append(
                    RowProblem(row.line, f"status {status!r} is none of START, STOP and POINT.", video)
                )
        for left in begun.values():
            for _, row in left:
                behavior = self._sheet.get(row, "Behavior")
                self._problems.append(
                    RowProblem(row.line, f"{behavior!r} starts and does not stop. Close it in BORIS.")
                )
        return self._export()

    def _export(self) -> Export:
        marks = sorted(self._marks, key=lambda mark: mark.line)
        return Export(tuple(self._videos), tuple(marks), problems=tuple(self._problems), notes=tuple(self._notes))

    def _add(self, video: str, start: float, end: float, row: Row) -> None:
        self._marks.append(Mark(video, start, end, self._fields(row), row.line))

    def _fields(self, row: Row) -> dict[str, str]:
        sheet = self._sheet
        # newer versions name a column after each set: ('eat', 'food')
        columns = sheet.matching(lambda name: bool(re.match(r"modifiers?\b|\('", name)))
        modifiers = [row.cells[index] for index in columns.values() if index < len(row.cells)]
        named = [text for text in modifiers if text.lower() not in (*_NOTHING, "none")]
        return {
            "behavior": sheet.get(row, "Behavior"),
            "subject": sheet.get(row, "Subject"),
            "modifiers": " ".join(named),
            "category": sheet.get(row, "Behavioral category"),
        }

    def _media(self, row: Row) -> tuple[str | None, float]:
        """The video of a row, and what to take off its times: BORIS adds an observation's offset, and files before."""
        try:
            offset = self._time_offset(row)
        except ValueError as problem:
            self._problems.append(RowProblem(row.line, f"time offset: {problem}"))
            return None, 0.0
        video, passed = self._media_on_clock(row)
        return video, offset + passed

    def _time_offset(self, row: Row) -> float:
        """What the observation adds to the time of its media.

        Raises:
            ValueError: it is not a time.
        """
        text = self._sheet.get(row, "Time offset (s)", "Time offset")
        text = text or self._above.get("time offset (s)", "") or self._above.get("time offset", "")
        offset = 0.0 if text.lower() in _NOTHING else parse_seconds(text)
        if offset:
            self._notes.setdefault(f"an observation has a time offset of {offset:g} s, which is taken off its times")
        return offset

    def _media_on_clock(self, row: Row) -> tuple[str | None, float]:
        """The video of a row, and how many seconds of its clock passed before that file began."""
        sheet = self._sheet
        listed = sheet.get(row, "Source", "Media file", "Media file path") or self._above_media()
        names = _media_names(listed)
        own = _media_names(sheet.get(row, "Media file name"))
        chosen = own[0] if own else names[0] if names else ""
        if not chosen:
            observation = sheet.get(row, "Observation id") or self._above.get("observation id", "")
            if not observation:
                self._problems.append(RowProblem(row.line, "the row names neither a media file nor an observation."))
                return None, 0.0
            self._notes.setdefault("no media file is named: videos are looked for by the observation's id")
            chosen = observation
        self._videos.setdefault(chosen)
        bases = [_base(name) for name in names]
        index = bases.index(_base(chosen)) if own and _base(chosen) in bases else 0
        if not index:
            if len(names) > 1 and not own:
                self._notes.setdefault(
                    "an observation has several media files, and rows do not say which: the first is taken"
                )
            return chosen, 0.0
        lengths = re.split(r"[;\s]+", sheet.get(row, "Media duration (s)", "Total length").strip())
        try:
            return chosen, sum(parse_seconds(text) for text in lengths[:index]) if len(lengths) > index else 1 / 0
        except (ValueError, ZeroDivisionError):
            self._problems.append(
                RowProblem(row.line, f"{chosen} follows other files on one clock, and their lengths are not given.")
            )
            return None, 0.0

    def _above_media(self) -> str:
        return next((text for name, text in self._above.items() if re.match(r"media file|player|file name", name)), "")


def _media_names(text: str) -> list[str]:
    """The files in cells like "player #1:a.mp4;b.mp4"; those of the first player."""
    first = re.split(r"player\s*#?[2-9]\d*\s*:", text, flags=re.IGNORECASE)[0]
    first = re.sub(r"player\s*#?1\s*:", "", first, flags=re.IGNORECASE)
    return [name.strip() for name in re.split(r"[;\n|]", first) if name.strip().lower() not in _NOTHING]


def _base(name: str) -> str:
    return re.split(r"[\\/]", name)[-1]
