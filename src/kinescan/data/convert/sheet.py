"""Tables that annotation tools write as text."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kinescan.data.readers.table import Row, read_table_text, refuse_nul
from kinescan.errors import ConfigError

_SIGNS = ("\t", ";", ",")


def read_sheet(file: Path) -> list[Row]:
    """All rows with anything in them, cells without blanks around them; quoted cells may hold line ends.

    Raises:
        ConfigError: it is not a text in UTF-8 or UTF-16, or no table.
    """
    text = read_table_text(file).lstrip("\ufeff")
    refuse_nul(text.split("\n"), file)
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
        self._indices: dict[str, int] = {}
        for index, name in enumerate(header.cells):
            self._indices.setdefault(name.strip().lower(), index)

    def has(self, *names: str) -> bool:
        """Whether all these columns are there."""
        return all(name.lower() in self._indices for name in names)

    def index(self, *names: str) -> int | None:
        """The index of the first of these columns that is there."""
        return next((self._indices[name.lower()] for name in names if name.lower() in self._indices), None)

    def get(self, row: Row, *names: str) -> str:
        """The cell in the first of these columns that is there; empty where none is."""
        index = self.index(*names)
        return row.cells[index] if index is not None and index < len(row.cells) else ""

    def matching(self, fits: Callable[[str], bool]) -> Mapping[str, int]:
        """Columns whose names, in small letters, fit."""
        return {name: index for name, index in self._indices.items() if fits(name)}


def find_header(rows: Sequence[Row], *names: str, within: int = 200) -> int | None:
    """The index of the first row that has cells of all these names; None: there is none."""
    wanted = {name.lower() for name in names}
    return next(
        (index for index, row in enumerate(rows[:within]) if wanted <= {cell.lower() for cell in row.cells}), None
    )
