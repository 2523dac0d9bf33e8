"""Text that fits the terminal: tables, paragraphs and pages; redirected output keeps its lines whole."""

import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text

from kinescan.runtime.escaping import escape_terminal

GAP = 2
NARROWEST = 6
"""A column is not made narrower than this; a table that needs more room is printed field by field."""
_LEAST_COLUMNS = 20


def line_limit() -> int | None:
    """Columns of the terminal that standard output goes to, or as COLUMNS says; None where nothing bounds a line."""
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said) > 0:
        return max(int(said), _LEAST_COLUMNS)
    try:
        columns = os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else 0
    except (OSError, ValueError):
        return None
    # a terminal that does not know its size says 0
    return max(columns, _LEAST_COLUMNS) if columns > 0 else None


class Table:
    """Columns of text, printed row by row as they come; a cell that is too long for its column is folded.

    Args:
        header: names of the columns.
        widths: how long the texts of each column are, at most; the header counts by itself.
        limit: columns of the terminal, or None.
    """

    def __init__(self, header: Sequence[str], widths: Sequence[int], *, limit: int | None) -> None:
        self._header = tuple(header)
        natural = [max(width, cell_len(name)) for name, width in zip(header, widths, strict=True)]
        self._widths = natural if limit is None else _fitted(natural, limit)
        self._limit = limit

    def print_header(self) -> None:
        """The first line; none where rows are printed field by field."""
        if self._widths:
            self.print_row(self._header)

    def print_row(self, cells: Sequence[Any]) -> None:
        """One row, written through at once."""
        texts = [escape_terminal(str(cell)) for cell in cells]
        print("\n".join(self._lines(texts)), flush=True)

    def _lines(self, texts: Sequence[str]) -> Iterator[str]:
        if not self._widths:
            for name, text in zip(self._header, texts, strict=True):
                yield from folded(f"{name}: {text}" if name else text, self._limit)
            yield ""
            return
        columns = [_wrapped(text, width) for text, width in zip(texts, self._widths, strict=True)]
        for index in range(max(map(len, columns))):
            parts = [column[index] if index < len(column) else "" for column in columns]
            padded = [part + " " * (width - cell_len(part)) for part, width in zip(parts, self._widths, strict=True)]
            yield (" " * GAP).join(padded).rstrip()


def shown_length(text: str) -> int:
    """Columns that a text takes in a table."""
    return cell_len(escape_terminal(text))


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns of text, as wide as their contents or as the terminal allows."""
    texts = [[escape_terminal(str(cell)) for cell in row] for row in rows]
    widths = [max((cell_len(row[column]) for row in texts), default=0) for column in range(len(header))]
    table = Table(header, widths, limit=line_limit())
    table.print_header()
    for row in texts:
        table.print_row(row)


def print_text(lines: Iterable[str]) -> None:
    """Lines of our own with names in them, each wrapped to the terminal behind its own indentation."""
    limit = line_limit()
    for line in lines:
        print("\n".join(folded(escape_terminal(line), limit)))


def print_page(markdown: str) -> None:
    """A page in Markdown: laid out for a terminal, as it is anywhere else."""
    limit = line_limit()
    if limit is None:
        print(markdown)
        return
    Console(file=sys.stdout, width=limit, highlight=False, emoji=False).print(Markdown(markdown, hyperlinks=False))


def folded(line: str, limit: int | None) -> list[str]:
    """The line in parts that fit; those behind the first stand two columns further in."""
    if limit is None or cell_len(line) <= limit:
        return [line]
    text = line.lstrip(" ")
    indent = min(len(line) - len(text), limit // 2)
    first, *rest = _wrapped(text, limit - indent - GAP)
    return [" " * indent + first, *(" " * (indent + GAP) + part for part in rest)]


def _fitted(widths: Sequence[int], limit: int) -> list[int]:
    """The widest columns made narrower until all fit; none where they cannot."""
    fitted = list(widths)
    room = limit - GAP * (len(widths) - 1)
    if sum(min(width, NARROWEST) for width in fitted) > room:
        return []
    while sum(fitted) > room:
        widest = max(range(len(fitted)), key=fitted.__getitem__)
        second = max((width for index, width in enumerate(fitted) if index != widest), default=0)
        excess = sum(fitted) - room
        fitted[widest] = max(fitted[widest] - excess, min(second, fitted[widest] - 1), NARROWEST)
    return fitted


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most so many columns, broken at blanks where there are some."""
    if cell_len(text) <= width:
        return [text]
    lines = Text(text).wrap(_PLAIN, width, overflow="fold")
    return [line.plain.rstrip() for line in lines] or [""]


_PLAIN = Console(file=io.StringIO(), width=10_000, color_system=None)
