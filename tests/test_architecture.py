"""docs/architecture.md: the drawing is that of the real imports, and every name in it exists."""

import importlib
import re
from collections import defaultdict
from pathlib import Path

import grimp
import pytest

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
BELOW_ALL = {"runtime", "settings", "preprocessing", "fields", "shapes", "errors", "version"}
NAMES = sorted(set(re.findall(r"`(kinescan\.[\w.]+)`", TEXT)))


def _arrows() -> dict[str, set[str]]:
    """Which room imports which, by the code."""
    graph = grimp.build_graph("kinescan", cache_dir=None)
    arrows: dict[str, set[str]] = defaultdict(set)
    for module in graph.modules - {"kinescan", "kinescan.__main__"}:
        room = module.split(".")[1]
        targets = {name.split(".")[1] for name in graph.find_modules_directly_imported_by(module) if "." in name}
        arrows[room] |= targets - BELOW_ALL - {room}
    return {room: targets for room, targets in arrows.items() if room not in BELOW_ALL}


def _below(room: str, arrows: dict[str, set[str]]) -> set[str]:
    return arrows[room].union(*(_below(target, arrows) for target in arrows[room]))


def test_drawing_shows_the_imports_less_those_that_follow_from_others() -> None:
    arrows = _arrows()
    needed = {
        (room, target)
        for room, targets in arrows.items()
        for target in targets
        if not any(target in _below(other, arrows) for other in targets - {target})
    }
    drawn = {(match[1], match[2]) for match in re.finditer(r"^    (\w+) --> (\w+)$", TEXT, re.MULTILINE)}
    assert drawn == needed


@pytest.mark.parametrize("name", NAMES)
def test_every_name_exists(name: str) -> None:
    parts = name.split(".")
    found: object = importlib.import_module(parts[0])
    for index, part in enumerate(parts[1:], start=2):
        try:
            found = importlib.import_module(".".join(parts[:index]))
        except ModuleNotFoundError:
            found = getattr(found, part)


def test_page_names_the_functions_of_each_way() -> None:
    ways = TEXT.split("\n## The way of ")[1:]
    assert len(ways) == 5
    assert all(len(re.findall(r"`kinescan\.", way)) >= 5 for way in ways)
