"""Tests mirror src: each module has its test file, or a line in where.toml that says where it is tested."""

import ast
import functools
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

TESTS = Path(__file__).resolve().parent
SOURCE = TESTS.parent / "src" / "kinescan"
WHERE: dict[str, list[str]] = tomllib.loads((TESTS / "where.toml").read_text(encoding="utf-8"))
DEFINES = (ast.FunctionDef, ast.ClassDef)


@functools.cache
def _modules() -> tuple[str, ...]:
    """Each module but packages that only name what is in them."""
    return tuple(_walk())


def _walk() -> Iterator[str]:
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.name != "__init__.py" or any(
            isinstance(node, DEFINES) and not node.name.startswith("__") for node in tree.body
        ):
            yield path.relative_to(SOURCE).as_posix()


def _own_test(module: str) -> Path:
    path = Path(module)
    path = path.parent if path.name == "__init__.py" else path
    return TESTS / path.parent / f"test_{path.stem}.py"


def _name(module: str) -> str:
    return ".".join(("kinescan", *Path(module).with_suffix("").parts)).removesuffix(".__init__")


def _imported(test: Path) -> set[str]:
    """Modules of the package that a test file imports, or a file that it uses: a conftest.py or a script beside it.

    A test of the command line has every verb, whose module the command line loads by its name.
    """
    text = test.read_text(encoding="utf-8")
    scripts = [path for path in test.parent.glob("*.py") if path.name in text or f"from .{path.stem} import" in text]
    conftests = [folder / "conftest.py" for folder in test.parents if folder.is_relative_to(TESTS)]
    names = {
        _name(module) for module in _modules() if module.startswith(("cli/", "__main__")) and test.parent.name == "cli"
    }
    for file in (test, *scripts, *conftests):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if file.is_file() else ():
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.startswith("kinescan")}


def _reached(names: set[str], graph: grimp.ImportGraph) -> set[str]:
    """The modules of these names, and all that these import in turn."""
    found, waiting = set(), list(names & graph.modules)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph.find_modules_directly_imported_by(name)
    return found


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("kinescan", cache_dir=None)


def test_every_module_has_a_test_file_or_a_line_and_not_both() -> None:
    own = {module for module in _modules() if _own_test(module).is_file()}
    assert set(_modules()) - own - set(WHERE) == set(), (
        "make a test file at the same place, or add a line to where.toml"
    )
    assert own & set(WHERE) == set(), "these have a test file of their own: remove the lines from where.toml"
    assert {module for module in WHERE if not (SOURCE / module).is_file()} == set()


def test_listed_test_files_are_there_and_reach_the_module(graph: grimp.ImportGraph) -> None:
    reached: dict[str, set[str]] = {}
    for file in {file for files in WHERE.values() for file in files}:
        assert (TESTS / file).is_file(), file
        reached[file] = _reached(_imported(TESTS / file), graph)
    assert all(WHERE.values())
    missed = {(module, file) for module, files in WHERE.items() for file in files if _name(module) not in reached[file]}
    assert missed == set()
