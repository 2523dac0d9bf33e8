"""BORIS: aggregated events (old and new), and tabular events of starts and stops."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
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
_LEAST_PART_SECONDS = 0.01
"""An event reaches into the next file by at least this: lengths are rounded to milliseconds."""


@dataclass(frozen=True)
class _Media:
    """The media file of a row, among those that follow each other on one clock.

    Attributes:
        video: the file.
        offset: what the observation adds to the time of its media.
        files: all files in their order; by default the first one alone.
        begins: when each of them begins on their common clock, and when the last one ends; empty where lengths are
            not known.
    """

    video: str
    offset: float
    files: tuple[str, ...]
    begins: tuple[float, ...] = ()

    @property
    def passed(self) -> float:
        """How much of the clock passed before the row's file began."""
        return self.begins[self.files.index(self.video)] if self.begins else 0.0

    def parts(self, start: float, end: float) -> Iterator[tuple[str, float, float]]:
        """(file, start, end) of what happens from `start` to `end` of the clock, by each file's own clock.

        Where no file is reached into, as by an end before the start, it belongs to the row's file.
        """
        found = [
            (file, max(start - begin, 0.0), (end if file == self.files[-1] else min(end, stop)) - begin)
            for file, begin, stop in zip(self.files, self.begins, self.begins[1:], strict=False)
            if min(end, stop) - max(start, begin) >= _LEAST_PART_SECONDS
        ]
        yield from found or [(self.video, start - self.passed, end - self.passed)]


def is_boris(file: Path) -> bool:
    """Whether a table has BORIS's columns."""
    rows = read_sheet(file)
    return any(find_header(rows, *names) is not None for names in (_AGGREGATED, _WITHOUT_UNIT, _TABULAR))


def read_boris(source: ExportFile) -> Export:
    """Events of BORIS; a label is the behavior, and may be made of subject, modifiers and category, too.

    Where several media files follow each other on one clock, the lengths of those before an event's file are taken off,
    and so is an observation's time offset, which BORIS adds to the time of the media when it notes an event. An event
    that continues in the next file is divided between them.

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
            media = self._media(row)
            if media is None:
                continue
            try:
                start = parse_seconds(self._sheet.get(row, "Start (s)", "Start")) - media.offset
                kind = self._sheet.get(row, "Behavior type").upper()
                stop = self._sheet.get(row, "Stop (s)", "Stop")
                ends_itself = kind == "POINT" or stop.lower() in _NOTHING
                end = start if ends_itself else parse_seconds(stop) - media.offset
            except ValueError as problem:
                self._problems.append(RowProblem(row.line, str(problem), media.video))
                continue
            if stop.lower() in _NOTHING and kind == "STATE":
                reason = "a STATE event has no stop. Close it in BORIS."
                self._problems.append(RowProblem(row.line, reason, media.video))
                continue
            self._add(media, start, end, row)
        return self._export()

    def tabular(self, rows: Sequence[Row]) -> Export:
        """A row for each start and each stop."""
        begun: dict[tuple[str, ...], list[tuple[float, Row, _Media]]] = defaultdict(list)
        for row in rows:
            media = self._media(row)
            if media is None:
                continue
            try:
                time = parse_seconds(self._sheet.get(row, "Time")) - media.offset
            except ValueError as problem:
                self._problems.append(RowProblem(row.line, str(problem), media.video))
                continue
            status = self._sheet.get(row, "Status", "Behavior type").upper()
            fields = self._fields(row)
            observation = self._sheet.get(row, "Observation id")
            # an event may stop in another file than it started in, where their clock is one
            clock = "/".join(map(_base, media.files)) if media.begins else media.video
            key = (observation, clock, fields["behavior"], fields["subject"], fields["modifiers"])
            if status == "START":
                begun[key].append((time, row, media))
            elif status == "STOP" and begun[key]:
                started, first, where = begun[key].pop(0)
                self._add(where, started, time, first)
            elif status == "POINT":
                self._add(media, time, time, row)
            elif status == "STOP":
                reason = f"{fields['behavior']!r} stops and was not started."
                self._problems.append(RowProblem(row.line, reason, media.video))
            else:
                reason = f"status {status!r} is not one of START, STOP and POINT."
                self._problems.append(RowProblem(row.line, reason, media.video))
        for left in begun.values():
            for _, row, _ in left:
                behavior = self._sheet.get(row, "Behavior")
                self._problems.append(
                    RowProblem(row.line, f"{behavior!r} starts and does not stop. Close it in BORIS.")
                )
        return self._export()

    def _export(self) -> Export:
        marks = sorted(self._marks, key=lambda mark: mark.line)
        return Export(tuple(self._videos), tuple(marks), problems=tuple(self._problems), notes=tuple(self._notes))

    def _add(self, media: _Media, start: float, end: float, row: Row) -> None:
        parts = list(media.parts(start, end))
        if len(parts) > 1:
            self._notes.setdefault("an event continues in the next media file: it is divided between them")
            self._videos |= dict.fromkeys(video for video, _, _ in parts)
        self._marks += [Mark(*part, self._fields(row), row.line) for part in parts]

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

    def _media(self, row: Row) -> _Media | None:
        """The video of a row and its clock: BORIS adds an observation's offset, and the lengths of files before."""
        try:
            offset = self._time_offset(row)
        except ValueError as problem:
            self._problems.append(RowProblem(row.line, f"time offset: {problem}"))
            return None
        return self._media_on_clock(row, offset)

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

    def _media_on_clock(self, row: Row, offset: float) -> _Media | None:
        """The video of a row, and when it and its neighbours begin on their clock."""
        sheet = self._sheet
        listed = sheet.get(row, "Source", "Media file", "Media file path") or self._above_media()
        names = _media_names(listed)
        own = _media_names(sheet.get(row, "Media file name"))
        chosen = own[0] if own else names[0] if names else ""
        if not chosen:
            observation = sheet.get(row, "Observation id") or self._above.get("observation id", "")
            if not observation:
                self._problems.append(RowProblem(row.line, "the row names neither a media file nor an observation."))
                return None
            self._notes.setdefault("no media file is named: videos are looked for by the observation's id")
            chosen = observation
        self._videos.setdefault(chosen)
        bases = [_base(name) for name in names]
        if len(names) < 2 or not own or _base(chosen) not in bases:
            if len(names) > 1 and not own:
                self._notes.setdefault(
                    "an observation has several media files, and rows do not say which: the first is taken"
                )
            return _Media(chosen, offset, (chosen,))
        index = bases.index(_base(chosen))
        files = (*names[:index], chosen, *names[index + 1 :])
        lengths = self._lengths(row)
        if len(lengths) >= len(files):
            return _Media(chosen, offset, files, (0.0, *accumulate(lengths[: len(files)])))
        if not index:
            return _Media(chosen, offset, (chosen,))
        self._problems.append(
            RowProblem(row.line, f"{chosen} follows other files on one clock, and their lengths are not given.")
        )
        return None

    def _lengths(self, row: Row) -> list[float]:
        """Seconds of each media file; empty where they are not given."""
        listed = re.split(r"[;\s]+", self._sheet.get(row, "Media duration (s)", "Total length").strip())
        try:
            return [parse_seconds(text) for text in listed if text]
        except ValueError:
            return []

    def _above_media(self) -> str:
        return next((text for name, text in self._above.items() if re.match(r"media file|player|file name", name)), "")


def _media_names(text: str) -> list[str]:
    """The files in cells like "player #1:a.mp4;b.mp4"; those of the first player."""
    first = re.split(r"player\s*#?[2-9]\d*\s*:", text, flags=re.IGNORECASE)[0]
    first = re.sub(r"player\s*#?1\s*:", "", first, flags=re.IGNORECASE)
    return [name.strip() for name in re.split(r"[;\n|]", first) if name.strip().lower() not in _NOTHING]


def _base(name: str) -> str:
    return re.split(r"[\\/]", name)[-1]
