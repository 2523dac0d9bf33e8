"""Supported versions: what is needed to run has a lower and an upper bound, and what is tried is between them."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = PROJECT["optional-dependencies"]
NEEDED = [Requirement(line) for line in (*PROJECT["dependencies"], *OPTIONAL["vlm"], *OPTIONAL["export"])]


def _tried() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_every_needed_package_has_both_bounds() -> None:
    bounds = {need.name: {part.operator for part in need.specifier} for need in NEEDED}
    assert {name for name, operators in bounds.items() if operators != {">=", "<"}} == set()


def test_versions_that_are_tried_are_supported() -> None:
    tried = _tried()
    everything = [*NEEDED, *(Requirement(line) for line in (*OPTIONAL["test"], *OPTIONAL["dev"]))]
    everything = [need for need in everything if need.name != PROJECT["name"]]
    outside = [str(need) for need in everything if tried[canonicalize_name(need.name)] not in need.specifier]
    assert outside == []


def test_page_of_versions_says_what_pyproject_and_constraints_say() -> None:
    text = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    supported = {need.name: {part.operator: part.version for part in need.specifier} for need in NEEDED}
    for name in ("torch", "transformers"):
        row = re.search(rf"^\| {name} \| (\S+) up to, but not including, (\S+) \|", text, re.MULTILINE)
        assert row, name
        assert {">=": row[1], "<": row[2]} == supported[name]
    [tried] = [line for line in text.splitlines() if "constraints.txt](" in line and line.startswith("| with")]
    assert f"| {_tried()['torch']} | {_tried()['transformers']} |" in tried
    assert f"| Python | {PROJECT['requires-python'].removeprefix('>=')} and newer |" in text
