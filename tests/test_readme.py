"""Every number that README says was measured stands in the result that its row points to."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROW = re.compile(
    r"^\|(?P<what>[^|]*\((?P<file>benchmarks/results/[\w-]+\.json)\)[^|]*)\|(?P<cells>.*)\|$", re.MULTILINE
)
NUMBER = re.compile(r"(?<![\w.])(?P<digits>\d[\d,]*(?:\.\d+)?) ?(?P<unit>µs|ms|s|GiB|MiB|GB|MB|x|%)?(?![\w.])")
UNITS = {
    **{"s": ("seconds", 1.0), "ms": ("seconds", 1e-3), "µs": ("seconds", 1e-6)},
    **{"GiB": ("bytes", 2.0**30), "MiB": ("bytes", 2.0**20), "GB": ("bytes", 1e9), "MB": ("bytes", 1e6)},
    **{"x": ("", 1.0), "%": ("", 0.01), None: ("", 1.0)},
}


def numbers(values: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a result with the key that it stands under."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from numbers(value, f"{key} {name}" if key else name)
    elif isinstance(values, list):
        for value in values:
            yield from numbers(value, key)
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield key, float(values)


def is_said(text: str, unit: str | None, found: list[tuple[str, float]]) -> bool:
    """Whether a number of the right kind, rounded as the text is, is among those found."""
    kind, scale = UNITS[unit]
    places = len(text.partition(".")[2])
    wanted = float(text.replace(",", ""))
    # Half of the last place, and a hair for values that lie in its middle.
    slack = 0.5001 * 10.0**-places
    return any(kind in key and math.isclose(value / scale, wanted, rel_tol=0, abs_tol=slack) for key, value in found)


def measured_rows() -> list[tuple[str, str, str]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [(match["what"].strip(), match["file"], match["cells"]) for match in ROW.finditer(text)]


def test_readme_has_a_table_of_measured_numbers_and_each_row_points_to_its_result() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = next(block for block in text.split("\n\n") if block.startswith("| measured"))
    assert len(table.splitlines()) - 2 == len(ROW.findall(table)) >= 3


@pytest.mark.parametrize(("what", "file", "cells"), measured_rows())
def test_numbers_of_readme_stand_in_the_result_that_they_point_to(what: str, file: str, cells: str) -> None:
    document = json.loads((ROOT / file).read_text(encoding="utf-8"))
    found = list(numbers(document["results"]))
    claimed = [(match["digits"], match["unit"]) for match in NUMBER.finditer(cells)]
    assert claimed, f"{what}: no number"
    missing = [f"{digits} {unit or ''}" for digits, unit in claimed if not is_said(digits, unit, found)]
    assert missing == [], f"{what}: not in {file}"


def test_a_wrong_number_would_be_found() -> None:
    found = [("times ours cpu_seconds", 0.48175), ("times_faster_than loop", 7.79), ("peak_bytes", 2.5 * 2**30)]
    assert is_said("482", "ms", found)
    assert is_said("7.8", "x", found)
    assert is_said("2.5", "GiB", found)
    assert not is_said("483", "ms", found)
    assert not is_said("7.7", "x", found)
    assert not is_said("7.8", "ms", found)
    assert [match.groups() for match in NUMBER.finditer("3753 ms, loop of 2 | 7.8x | AVX2")] == [
        ("3753", "ms"),
        ("2", None),
        ("7.8", "x"),
    ]
