"""One name, one address: what is public is imported from the module that makes it, or by a package's door."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import kinescan

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"
FILES = [path for folder in ("src", "tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
INTERNALS = "_internals"
"""Doors to other libraries, whose names are imported from there on purpose (tests/test_private_names.py)."""


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _module(name: str) -> Path | None:
    """The file of a module of kinescan that is not a package."""
    path = SRC / Path(*name.split(".")).with_suffix(".py")
    return path if path.is_file() and not path.stem.endswith(INTERNALS) else None


def _is_module(name: str) -> bool:
    path = SRC / Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def _imports(tree: ast.Module) -> Iterator[tuple[int, str, ast.alias]]:
    """Line, module and name of each `from kinescan... import name`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "kinescan":
            yield from ((node.lineno, node.module or "", alias) for alias in node.names)


def _second_addresses(tree: ast.Module) -> Iterator[str]:
    """Names that are imported from a module that has imported them itself."""
    for line, module, alias in _imports(tree):
        path = _module(module)
        if path is None:
            continue
        theirs = {found.asname or found.name: origin for _, origin, found in _imports(_tree(path))}
        if alias.name in theirs and not _is_module(f"{theirs[alias.name]}.{alias.name}"):
            yield f"line {line}: {alias.name} of {module}, which has it from {theirs[alias.name]}"


def _offered_again(tree: ast.Module) -> Iterator[str]:
    """Names of other modules that a module offers as its own: `import x as x`, in `__all__`, or under a second name."""
    imported = {alias.asname or alias.name: module for _, module, alias in _imports(tree)}
    for line, _, alias in _imports(tree):
        if alias.asname == alias.name:
            yield f"line {line}: {alias.name} as {alias.name}"
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        if node.targets[0].id == "__all__":
            offered = {part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant)}
            yield from (f"line {node.lineno}: {name} in __all__" for name in sorted(imported.keys() & offered))
        elif isinstance(node.value, ast.Name) and node.value.id in imported:
            yield f"line {node.lineno}: {node.targets[0].id} is {node.value.id}"


def test_names_are_imported_from_where_they_are_made() -> None:
    found = {path.relative_to(ROOT).as_posix(): list(_second_addresses(_tree(path))) for path in FILES}
    assert not {path: lines for path, lines in found.items() if lines}


def test_no_module_offers_the_names_of_another() -> None:
    """Packages' `__init__` are doors: that is what they are for."""
    ours = [path for path in FILES if SRC in path.parents and path.name != "__init__.py" and INTERNALS not in path.stem]
    found = {path.relative_to(SRC).as_posix(): list(_offered_again(_tree(path))) for path in ours}
    assert not {path: lines for path, lines in found.items() if lines}


def test_a_second_address_is_found() -> None:
    assert len(list(_second_addresses(ast.parse("from kinescan.models.zoo import VideoClassifier")))) == 1
    assert not list(_second_addresses(ast.parse("from kinescan.models import VideoClassifier")))
    offered = "__all__ = ['ConfigError']\nOther = ConfigError"
    offered = f"from kinescan.errors import ConfigError, ShapeError as ShapeError\n{offered}"
    assert len(list(_offered_again(ast.parse(offered)))) == 3


def test_every_name_that_a_package_offers_can_be_loaded() -> None:
    packages = [info.name for info in pkgutil.walk_packages(kinescan.__path__, "kinescan.") if info.ispkg]
    assert len(packages) > 20
    for package in map(importlib.import_module, ["kinescan", *packages]):
        missing = [name for name in getattr(package, "__all__", ()) if not hasattr(package, name)]
        assert not missing, package.__name__
