"""VIA 3 (VGG Image Annotator): its csv of temporal segments."""

import json
import re
from pathlib import Path
from typing import Any

from kinescan.data.convert.export import Export, ExportFile, Mark
from kinescan.data.convert.sheet import Sheet, read_sheet
from kinescan.data.intervals import RowProblem
from kinescan.data.readers.table import Row, read_table_text
from kinescan.errors import ConfigError

_HEADER = re.compile(r'^"?#\s*CSV_HEADER\s*=\s*(.+?)"?$', re.MULTILINE)
_ATTRIBUTES = re.compile(r"^#\s*ATTRIBUTES?\s*=\s*(\{.*\})\s*$", re.MULTILINE)


def is_via(file: Path) -> bool:
    """Whether a table has VIA's columns, which are in a comment."""
    return _HEADER.search(read_table_text(file)) is not None


def read_via(source: ExportFile) -> Export:
    """Temporal segments; a label is the text of their attributes, or of the one that is named.

    Raises:
        ConfigError: it is not a csv of VIA 3.
    """
    text = read_table_text(source.path)
    header = _HEADER.search(text)
    if header is None:
        raise ConfigError(f"{source.path} has no line CSV_HEADER, as csv files of VIA 3 do.")
    names = tuple(name.strip() for name in header[1].split(",") if name.strip())
    sheet, attributes = Sheet(Row(0, names)), _attributes(text)
    problems, marks = [], []
    videos: dict[str, None] = {}
    for row in read_sheet(source.path):
        if row.cells[0].lstrip('"').startswith("#"):
            continue
        try:
            files = json.loads(sheet.get(row, "file_list"))
            times = [float(time) for time in json.loads(_times(sheet, row))]
            metadata = json.loads(sheet.get(row, "metadata") or "{}")
            video = str(files[0] if isinstance(files, list) else files)
            named = {
                attributes.get(key, {}).get("name", key): _option(attributes, key, value)
                for key, value in metadata.items()
            }
        except (ValueError, TypeError, IndexError, AttributeError, RecursionError):
            problems.append(
                RowProblem(row.line, f"a file, times and attributes are needed, got {','.join(row.cells)[:120]!r}.")
            )
            continue
        videos.setdefault(video)
        if not times:
            continue
        if source.attribute and source.attribute not in named:
            continue
        label = named[source.attribute] if source.attribute else " ".join(text for text in named.values() if text)
        fields = {"label": label, **{f"attribute:{name}": text for name, text in named.items()}}
        marks.append(Mark(video, times[0], times[-1], fields, row.line))
    return Export(tuple(videos), tuple(marks), problems=tuple(problems))


def _times(sheet: Sheet, row: Row) -> str:
    if sheet.has("temporal_coordinates"):
        return sheet.get(row, "temporal_coordinates") or "[]"
    start, end = (sheet.get(row, f"temporal_segment_{name}") for name in ("start", "end"))
    return f"[{','.join(time for time in (start, end) if time)}]"


def _attributes(text: str) -> dict[str, dict[str, Any]]:
    """Id of each attribute -> its name and options."""
    match = _ATTRIBUTES.search(text)
    try:
        found = json.loads(match[1]) if match is not None else {}
    except (ValueError, RecursionError):
        return {}
    return {
        key: {"name": value.get("aname", key), "options": value.get("options", {})}
        if isinstance(value, dict)
        else {"name": str(value), "options": {}}
        for key, value in found.items()
    }


def _option(attributes: dict[str, dict[str, Any]], key: str, value: Any) -> str:
    options = attributes.get(key, {}).get("options")
    text = str(value).strip()
    return str(options.get(text, text)).strip() if isinstance(options, dict) else text
