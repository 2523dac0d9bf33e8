"""Supported versions: what is needed to run has a lower and an upper bound, and what is tried is between them."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = PROJECT["optional-dependencies"]
NEEDED = [Requirement(line) for line in (*PROJECT["dependencies"], *OPTIONAL["vlm"], *OPTIONAL["export"])]
DECLARED = {
    canonicalize_name(Requirement(line).name)
    for lines in (PROJECT["dependencies"], *OPTIONAL.values())
    for line in lines
}


def _tried() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_every_needed_package_has_both_bounds() -> None:
    bounds = {need.name: {part.operator for part in need.specifier} for need in NEEDED}
    assert {name for name, operators in bounds.items() if operators != {">=", "<"}} == set()


def test_every_package_that_is_imported_is_declared() -> None:
    known = importlib.metadata.packages_distributions()
    missing = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"kinescan"}:
                packages = {canonicalize_name(package) for package in known.get(name, [name])}
                if not packages & DECLARED:
                    missing[name] = path.relative_to(ROOT).as_posix()
    assert missing == {}


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
