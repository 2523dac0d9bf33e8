"""ELAN: its own files (.eaf), and tables exported as tab-delimited text."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element

from kinescan.data.convert.export import Export, ExportFile, Mark
from kinescan.data.convert.sheet import read_sheet
from kinescan.data.convert.xml import read_xml, text_of
from kinescan.data.intervals import RowProblem
from kinescan.data.readers.files import is_video
from kinescan.data.readers.table import Row
from kinescan.data.readers.times import is_time, parse_seconds
from kinescan.errors import ConfigError

_MILLISECONDS = "milliseconds"
_DEEPEST = 100
"""So many annotations may refer to each other, one to the next; in a file that ELAN wrote they are a few."""


def is_eaf(file: Path) -> bool:
    """Whether a file is called like ELAN's own."""
    return file.suffix.lower() == ".eaf"


def read_eaf(source: ExportFile) -> Export:
    """Annotations of all tiers; a label is the text, or the tier where there is none.

    Annotations that refer to others have the times of those, or equal parts of them where several follow each other;
    points in time without a value lie evenly between those that have one.

    Raises:
        ConfigError: it is not a file of ELAN, or its times are in other units than milliseconds.
    """
    root = read_xml(source.path)
    header = root.find("HEADER")
    if root.tag != "ANNOTATION_DOCUMENT" or header is None:
        raise ConfigError(f"{source.path} is not a file of ELAN: its root is {root.tag!r}, not 'ANNOTATION_DOCUMENT'.")
    units = header.get("TIME_UNITS", _MILLISECONDS)
    if units != _MILLISECONDS:
        raise ConfigError(f"{source.path} has times in {units!r}; {_MILLISECONDS} are read. Save it by a newer ELAN.")
    video, origin, notes = _media(header, source.path)
    slots, num_guessed = _slots(root)
    if num_guessed:
        notes.append(f"{num_guessed} points in time have no value, and are put evenly between those that have one")
    problems: list[RowProblem] = []
    marks = []
    for tier, annotation, start, end in _annotations(root, slots, problems):
        fields = {
            "text": text_of(annotation, "ANNOTATION_VALUE"),
            "tier": tier.get("TIER_ID", ""),
            "participant": tier.get("PARTICIPANT", ""),
        }
        marks.append(Mark(video, start + origin, end + origin, fields))
    return Export((video,), tuple(marks), problems=tuple(problems), notes=tuple(notes))


def _media(header: Element, file: Path) -> tuple[str, float, list[str]]:
    """The video's name, what is added to times so that they are on its clock, and notes."""
    found = header.findall("MEDIA_DESCRIPTOR")
    # the first versions of ELAN named the file here
    older = header.get("MEDIA_FILE", "").strip()
    if not found and older:
        return _path_in(older), 0.0, []

    def name_of(media: Element) -> str:
        return _path_in(media.get("RELATIVE_MEDIA_URL") or media.get("MEDIA_URL") or "")

    videos = [media for media in found if media.get("MIME_TYPE", "").startswith("video") or is_video(name_of(media))]
    whole = next((name for media in found if is_video(name := _path_in(media.get("EXTRACTED_FROM") or ""))), "")
    if not videos and whole:
        # only the sound was opened, which was taken out of the video
        return whole, 0.0, []
    videos = videos or found
    if not videos:
        return file.stem, 0.0, ["no media file is named: the video is looked for by the file's own name"]
    notes = [f"{len(videos)} videos belong to it: the first, {name_of(videos[0])}, is taken"] if len(videos) > 1 else []
    origin = videos[0].get("TIME_ORIGIN", "0")
    return name_of(videos[0]) or file.stem, (float(origin) if re.fullmatch(r"-?\d+", origin) else 0.0) / 1000, notes


def _path_in(address: str) -> str:
    """The path of a file in an address."""
    try:
        return unquote(urlsplit(address).path if "://" in address else address)
    except ValueError:
        return address


def _slots(root: Element) -> tuple[dict[str, float], int]:
    """Seconds of each time slot, and how many have none of their own."""
    names: list[str] = []
    known: dict[int, float] = {}
    for index, slot in enumerate(root.iterfind("TIME_ORDER/TIME_SLOT")):
        names.append(slot.get("TIME_SLOT_ID", ""))
        if re.fullmatch(r"\d{1,15}", slot.get("TIME_VALUE", "")):
            known[index] = int(slot.get("TIME_VALUE", "")) / 1000
    seconds = {}
    for index, name in enumerate(names):
        before = max((other for other in known if other <= index), default=None)
        behind = min((other for other in known if other >= index), default=None)
        if before is None or behind is None:
            continue
        fraction = (index - before) / (behind - before) if behind > before else 0.0
        seconds[name] = known[before] + (known[behind] - known[before]) * fraction
    return seconds, len(names) - len(known)


def _annotations(
    root: Element, slots: Mapping[str, float], problems: list[RowProblem]
) -> Iterator[tuple[Element, Element, float, float]]:
    """(tier, annotation, start, end) of each; those whose times are not known are among the problems."""
    all_of = [(tier, found) for tier in root.iterfind("TIER") for found in tier.iterfind("ANNOTATION/*")]
    parts = _parts(all_of)
    by_id = {found.get("ANNOTATION_ID", ""): found for _, found in all_of}

    def times_of(annotation: Element, depth: int = 0) -> tuple[float, float] | None:
        if annotation.tag != "REF_ANNOTATION":
            ends = annotation.get("TIME_SLOT_REF1", ""), annotation.get("TIME_SLOT_REF2", "")
            return (slots[ends[0]], slots[ends[1]]) if all(end in slots for end in ends) else None
        parent = by_id.get(annotation.get("ANNOTATION_REF", ""))
        whole = None if parent is None or depth > _DEEPEST else times_of(parent, depth + 1)
        if whole is None:
            return None
        index, count = parts.get(annotation.get("ANNOTATION_ID", ""), (0, 1))
        length = (whole[1] - whole[0]) / count
        return whole[0] + index * length, whole[0] + (index + 1) * length

    for tier, annotation in all_of:
        times = times_of(annotation)
        if times is not None:
            yield tier, annotation, *times
        else:
            name = annotation.get("ANNOTATION_ID", "?")
            problems.append(RowProblem(0, f"annotation {name} of tier {tier.get('TIER_ID', '?')!r} has no times."))


def _parts(annotations: Sequence[tuple[Element, Element]]) -> dict[str, tuple[int, int]]:
    """Id of an annotation -> (index, count), of those that follow each other within one parent (PREVIOUS_ANNOTATION).

    ELAN calls this a symbolic subdivision, and shows them as equal parts of the parent's time.
    """
    following: dict[str, str] = {}
    referring = [found for _, found in annotations if found.tag == "REF_ANNOTATION"]
    for found in referring:
        if found.get("PREVIOUS_ANNOTATION"):
            following[found.get("PREVIOUS_ANNOTATION", "")] = found.get("ANNOTATION_ID", "")
    parts: dict[str, tuple[int, int]] = {}
    for found in referring:
        if found.get("PREVIOUS_ANNOTATION"):
            continue
        name: str | None = found.get("ANNOTATION_ID", "")
        chain: dict[str, int] = {}
        while name is not None and name not in chain:
            chain[name] = len(chain)
            name = following.get(name)
        parts |= {name: (index, len(chain)) for name, index in chain.items()}
    return parts


def is_elan_table(file: Path) -> bool:
    """Whether a table has ELAN's columns, with or without a header."""
    rows = [row for row in read_sheet(file) if not row.cells[0].startswith("#")]
    return bool(rows) and _find_columns(rows) is not None


def read_elan_table(source: ExportFile) -> Export:
    """ELAN's tab-delimited text, with a column for the tier and one for the text, or a column for each tier.

    Raises:
        ConfigError: no columns of times are found.
    """
    everything = read_sheet(source.path)
    remarks = [" ".join(row.cells).lstrip("#") for row in everything if row.cells[0].startswith("#")]
    rows = [row for row in everything if not row.cells[0].startswith("#")]
    columns = _find_columns(rows) if rows else None
    if columns is None:
        raise ConfigError(f"{source.path} has no columns of begin and end times, as ELAN's tables do.")
    named = [name for text in remarks for name in re.split(r"\s+--\s+|\t|,\s", text) if is_video(name.strip())]
    video = _plain_name(named[0]) if named else source.path.stem
    notes = (
        []
        if named or columns.file is not None
        else ["no media file is named: the video is looked for by the file's own name"]
    )
    marks, problems, videos = [], [], dict.fromkeys([] if columns.file is not None else [video])
    for row in rows[columns.has_header :]:
        own = _cell(row, columns.file)
        name = _plain_name(own) if own else video
        name = Path(name).stem if name.lower().endswith(".eaf") else name
        try:
            start = parse_seconds(_cell(row, columns.begin)) * columns.unit
            end = parse_seconds(_cell(row, columns.end)) * columns.unit
        except ValueError as problem:
            problems.append(RowProblem(row.line, str(problem)))
            continue
        videos.setdefault(name)
        for tier, index in columns.texts:
            text = _cell(row, index)
            if text or len(columns.texts) == 1:
                fields = {
                    "text": text,
                    "tier": tier or _cell(row, columns.tier),
                    "participant": _cell(row, columns.participant),
                }
                marks.append(Mark(name, start, end, fields, row.line))
    return Export(tuple(videos), tuple(marks), problems=tuple(problems), notes=tuple(notes))


@dataclass(frozen=True)
class _Columns:
    """Positions of columns; `texts` are pairs of a tier's name, where the column is one tier's, and its position."""

    begin: int
    end: int
    unit: float
    texts: tuple[tuple[str, int], ...]
    tier: int | None = None
    participant: int | None = None
    file: int | None = None
    has_header: bool = False


_BEGIN = re.compile(
    r"(begin time|start time|temps de d.part|anfangszeit|beginn|tiempo de inicio|tiempo inicial)\b", re.I
)
_END = re.compile(r"(end time|temps de fin|endzeit|ende|tiempo final|tiempo de fin)\b", re.I)
_LENGTH = re.compile(r"(duration|dur.e|dauer|duraci.n)\b", re.I)
_FORMS = ("ss.msec", "hh:mm:ss.ms", "msec")


def _find_columns(rows: Sequence[Row]) -> _Columns | None:
    head = rows[0].cells
    begins, ends = ([index for index, name in enumerate(head) if form.match(name)] for form in (_BEGIN, _END))
    if begins and ends:
        return _named_columns(head, begins, ends)
    return _columns_by_content(rows)


def _named_columns(head: Sequence[str], begins: Sequence[int], ends: Sequence[int]) -> _Columns | None:
    def form_of(name: str) -> str:
        return next((form for form in _FORMS if name.lower().rstrip(" )]").endswith(form)), "")

    shared = [form for form in (*_FORMS, "") for index in begins if form_of(head[index]) == form]
    form = next((form for form in shared if any(form_of(head[index]) == form for index in ends)), None)
    if form is None:
        return None
    begin, end = (next(index for index in indices if form_of(head[index]) == form) for indices in (begins, ends))
    low = [name.lower() for name in head]
    tier = next((index for index, name in enumerate(low) if name in ("tier", "tier name", "acteur", "zeile")), None)
    person = next((index for index, name in enumerate(low) if name in ("participant", "teilnehmer")), None)
    file = next((index for index, name in enumerate(low) if name in ("file path", "file", "file name")), None)
    timed = [index for index, name in enumerate(head) if any(f.match(name) for f in (_BEGIN, _END, _LENGTH))]
    left = [index for index in range(len(head)) if index not in (*timed, tier, person, file)]
    texts = [index for index in left if low[index] in ("text", "annotation", "value", "label", "")]
    if tier is not None or (len(left) == 1 and texts):
        chosen = [("", index) for index in (texts or left)[:1]]
    else:
        chosen = [(head[index], index) for index in left if head[index]]
    if not chosen:
        return None
    unit = 1e-3 if form == "msec" else 1.0
    return _Columns(begin, end, unit, tuple(chosen), tier, person, file, has_header=True)


def _columns_by_content(rows: Sequence[Row]) -> _Columns | None:
    """Of a table without a header: begin, end and length are in this order, each in the same forms."""
    width = max(len(row.cells) for row in rows)
    timed = [
        index
        for index in range(width)
        if all(is_time(_cell(row, index)) for row in rows) and any(_cell(row, index) for row in rows)
    ]
    for groups in (3, 2):
        size, left = divmod(len(timed), groups)
        if left or not size or timed != list(range(timed[0], timed[0] + len(timed))):
            continue
        for form in range(size):
            indices = [timed[group * size + form] for group in range(groups)]
            times = [[parse_seconds(_cell(row, index)) for index in indices] for row in rows]
            if all(row[1] >= row[0] for row in times) and (
                groups == 2 or all(abs(row[1] - row[0] - row[2]) < 0.01 * max(1.0, row[1]) for row in times)
            ):
                break
        else:
            continue
        behind = [index for index in range(timed[-1] + 1, width) if any(_cell(row, index) for row in rows)]
        if not behind and not timed[0]:
            continue
        plain = all(_cell(row, indices[0]).isdecimal() and _cell(row, indices[1]).isdecimal() for row in rows)
        unit = 1e-3 if plain and max(row[1] for row in times) >= 1000 else 1.0
        tier = 0 if timed[0] else None
        texts = (("", behind[0]),) if behind else (("", width),)
        return _Columns(indices[0], indices[1], unit, texts, tier, 1 if timed[0] > 1 else None)
    return None


def _cell(row: Row, index: int | None) -> str:
    return row.cells[index] if index is not None and index < len(row.cells) else ""


def _plain_name(text: str) -> str:
    text = text.strip().strip('"')
    return unquote(text.removeprefix("file://")) if text.startswith("file:") else text
