"""Rows of a text list, whichever program wrote it."""

import codecs
import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kinescan.data.readers.files import is_video
from kinescan.errors import ConfigError
from kinescan.runtime.files import read_bytes

SEPARATORS = ("\t", ";", ",", "|")
"""In the order in which they are tried where a list fits several alike."""
_SAMPLE = 1000
_HEAD = 4096
_EXCEL_HINT = re.compile(r"sep=(.)", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """One line of a list.

    Attributes:
        line: its number, from 1.
        cells: texts without blanks around them; empty ones at the end are left out.
    """

    line: int
    cells: tuple[str, ...]


def read_rows(file: Path, root: Path) -> tuple[list[Row], list[Row]]:
    """The rows of a list, and the comments in it as rows.

    Cells are separated by commas, semicolons or tabs, whichever most lines hold, or else by blanks ("path label").
    Line ends of every system, quotes, a byte order mark and empty lines are understood. A line that starts with "#" is
    a comment unless it names a file that is there.

    Args:
        file: the list.
        root: the folder that paths in it are relative to.

    Raises:
        ConfigError: it cannot be read, is not text, a quote is not closed, or a cell is absurdly long.
    """
    text = read_table_text(file)
    # Where lists were joined, each brings its own byte order mark.
    lines = [line.lstrip("\ufeff") for line in re.split(r"\r\n|\r|\n", text)]
    refuse_nul(lines, file)
    first = next((line.strip() for line in lines if line.strip()), "")
    if re.match(r'\{\s*"|\[\s*(?:[\[{]|$)', first) and not _names_file(first, root):
        raise ConfigError(f"{file} looks like JSON. Write a text file of one path,label a line.")
    separator = None
    hint = _EXCEL_HINT.fullmatch(lines[0].strip())
    if hint is not None:
        separator, lines[0] = hint[1], ""
    comments = {
        number: line.strip().lstrip("#")
        for number, line in enumerate(lines, 1)
        if line.lstrip().startswith("#") and not _names_file(line, root)
    }
    kept = ["" if number in comments else line for number, line in enumerate(lines, 1)]
    separator = separator or _find_separator([line for line in kept if line.strip()][:_SAMPLE], root)
    rows = list(_split(kept, separator, file))
    return rows, [Row(number, _cells(line, separator)) for number, line in comments.items()]


def refuse_nul(lines: Sequence[str], file: Path) -> None:
    """Passes lines of text.

    Raises:
        ConfigError: some hold NUL characters; their numbers are named.
    """
    with_nul = [number for number, line in enumerate(lines, 1) if "\0" in line]
    if not with_nul:
        return
    if 2 * len(with_nul) > len(lines):
        raise ConfigError(f"{file} holds NUL characters in most lines, so it is not UTF-8 text. Save it as UTF-8.")
    others = ", ".join(map(str, with_nul[1:10])) + (", ..." if len(with_nul) > 10 else "")
    more = f"; so do {len(with_nul) - 1} more lines: {others}" if others else ""
    raise ConfigError(
        f"{file}, line {with_nul[0]}: it holds NUL characters, which no path and no label does{more}. Correct or "
        "remove them."
    )


def read_table_text(file: Path) -> str:
    """The text of a list in UTF-8 or UTF-16, with or without a byte order mark.

    Raises:
        ConfigError: it cannot be read, or is in another encoding.
    """
    content = read_bytes(file)
    encoding = "utf-8-sig"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif 3 * content[:_HEAD].count(0) > len(content[:_HEAD]):
        # of plain letters, every other byte is 0
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as problem:
        raise ConfigError(
            f"{file} is not {encoding[:6].upper().rstrip('-')} text ({problem.reason} at byte {problem.start}). Save "
            "it as UTF-8."
        ) from None


def _split(lines: Sequence[str], separator: str | None, file: Path) -> Iterator[Row]:
    """The lines that are not empty, as rows."""
    if separator is None:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield Row(number, _split_at_blanks(line, f"{file}, line {number}"))
        return
    reader = csv.reader(io.StringIO("\n".join(lines), newline=""), delimiter=separator, skipinitialspace=True)
    before = 0
    try:
        for cells in reader:
            if reader.line_num > before + 1:
                raise ConfigError(
                    f"{file}, line {before + 1}: a quote is opened and not closed on this line. Close it."
                )
            before = reader.line_num
            row = _stripped(cells)
            if row:
                yield Row(before, row)
    except csv.Error as problem:
        raise ConfigError(
            f"{file}, line {before + 1}: this is not a row of path and label ({problem}). Correct or remove the line."
        ) from None


def _cells(line: str, separator: str | None) -> tuple[str, ...]:
    return _stripped(line.split(separator))


def _stripped(cells: Sequence[str]) -> tuple[str, ...]:
    texts = [cell.strip() for cell in cells]
    while texts and not texts[-1]:
        texts.pop()
    return tuple(texts)


def _find_separator(lines: Sequence[str], root: Path) -> str | None:
    """What most lines hold; where several fit alike, the one behind which paths are that are there. None: blanks."""
    counts = {sign: sum(sign in line for line in lines) for sign in SEPARATORS}
    most = max(counts.values(), default=0)
    if not most or (2 * most < len(lines) and all(len(line.split()) > 1 for line in lines)):
        return None
    alike = [sign for sign in SEPARATORS if counts[sign] == most]
    if len(alike) > 1:
        found = {sign: sum(_is_file(root, _cells(line, sign)[0]) for line in lines[:50]) for sign in alike}
        most = max(found.values())
        alike = [sign for sign in alike if found[sign] == most]
    return alike[0]


def _split_at_blanks(line: str, where: str) -> tuple[str, ...]:
    """Path and label of "path label": both may hold blanks where the path ends like a video's."""
    if '"' in line:
        return _stripped([cell for cell in next(csv.reader([line.strip()], delimiter=" ")) if cell])
    words = line.split()
    if len(words) < 3 or is_video(line.rsplit(None, 1)[0]):
        return tuple(line.strip().rsplit(None, 1))
    for position, word in enumerate(words[:-1], 1):
        if is_video(word):
            path, label = line.split(word, 1)
            if all(re.fullmatch(r"[-+.\d]+", part) for part in words[position:]):
                raise ConfigError(
                    f"{where}: {len(words) - position} numbers stand behind the path; which is the label is not known. "
                    "Write one line of path,label for each video, or a header line that names the columns."
                )
            return f"{path}{word}".strip(), label.strip()
    return tuple(line.strip().rsplit(None, 1))


def _names_file(line: str, root: Path) -> bool:
    return any(_is_file(root, cell.strip(' "')) for cell in {line.split(sign)[0] for sign in (*SEPARATORS, None)})


def _is_file(root: Path, name: str) -> bool:
    return bool(name) and os.path.isfile(os.path.join(root, name.strip('"')))
