"""Tables that annotation tools write as text."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kinescan.data.readers.table import Row, read_table_text
from kinescan.errors import ConfigError

_SIGNS = ("\t", ";", ",")


def read_sheet(file: Path) -> list[Row]:
    """All rows with anything in them, cells without blanks around them; quoted cells may hold line ends.

    Raises:
        ConfigError: it is not a text in UTF-8 or UTF-16, or no table.
    """
    text = read_table_text(file).lstrip("\ufeff")
    if "\0" in text:
        raise ConfigError(f"{file} is not a text. Export a table as TSV or CSV.")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")][:50]
    sign = max(_SIGNS, key=lambda sign: sum(line.count(sign) for line in lines))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=sign)
    rows, line = [], 1
    try:
        for cells in reader:
            stripped = tuple(cell.strip() for cell in cells)
            if any(stripped):
                rows.append(Row(line, stripped))
            line = reader.line_num + 1
    except csv.Error as problem:
        raise ConfigError(f"{file}, line {line}: this is not a row of a table ({problem}). Export it again.") from None
    return rows


class Sheet:
    """Rows below a header, read by the names of its columns.

    Args:
        header: names of the columns, in any case.
    """

    def __init__(self, header: Row) -> None:
        self.header = header
        self._places: dict[str, int] = {}
        for place, name in enumerate(header.cells):
            self._places.setdefault(name.strip().lower(), place)

    def has(self, *names: str) -> bool:
        """Whether all these columns are there."""
        return all(name.lower() in self._places for name in names)

    def place(self, *names: str) -> int | None:
        """The place of the first of these columns that is there."""
        return next((self._places[name.lower()] for name in names if name.lower() in self._places), None)

    def get(self, row: Row, *names: str) -> str:
        """The cell in the first of these columns that is there; empty where none is."""
        place = self.place(*names)
        return row.cells[place] if place is not None and place < len(row.cells) else ""

    def matching(self, fits: Callable[[str], bool]) -> Mapping[str, int]:
        """Columns whose names, in small letters, fit."""
        return {name: place for name, place in self._places.items() if fits(name)}


def find_header(rows: Sequence[Row], *names: str, within: int = 200) -> int | None:
    """The place of the first row that has cells of all these names; None: there is none."""
    wanted = {name.lower() for name in names}
    return next(
        (place for place, row in enumerate(rows[:within]) if wanted <= {cell.lower() for cell in row.cells}), None
    )
