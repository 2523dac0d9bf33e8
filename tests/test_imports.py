"""No import hides: neither in a function nor in a string, beyond the lists below; with them, imports make no circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import grimp
import networkx
import pytest

import kinescan

SOURCE = Path(kinescan.__file__).parent
OURS = "kinescan"

OPTIONAL = {
    "kinescan.inference.export_formats": {"kinescan.inference.transformers_classes"},  # extra vlm
    "kinescan.inference.registration": {"kinescan.inference.transformers_classes"},  # extra vlm
    "kinescan.ops.attention_mass": {"kinescan.ops.attention_mass.triton"},
    "kinescan.ops.backend": {"kinescan.ops.triton_probe"},
    "kinescan.ops.local_correlation": {"kinescan.ops.local_correlation.triton"},
    "kinescan.ops.selective_scan": {"kinescan.ops.selective_scan.triton"},
    "kinescan.web.serving": {"kinescan.web.app", "kinescan.web.connections", "kinescan.web.page"},  # extras
}
"""Modules of ours that need an optional package, and who loads them when they are needed."""
LISTS = {
    "kinescan",
    "kinescan.cli.main",
    "kinescan.data",
    "kinescan.evaluation",
    "kinescan.inference",
    "kinescan.inference.drawing",
    "kinescan.models",
    "kinescan.runs",
    "kinescan.studies",
    "kinescan.training",
    "kinescan.web",
}
"""Packages that load what is below them when it is first used: their strings name modules below their own package."""
LOADERS = {
    *("kinescan", "kinescan.cli.main", "kinescan.runtime.lazy", "kinescan.runtime.optional_package"),
    *("kinescan.runtime.own_modules", "kinescan.ops.backend"),
    *("kinescan.inference.export_formats", "kinescan.inference.registration", "kinescan.web.serving"),
    "kinescan.runs.ray_cluster",
}
"""Who imports by a string at all; the last two, kinescan.inference.transformers_classes and OpenVINO's parts."""
PLAIN_TEXT = {("kinescan.models.catalog", "kinescan.models")}
"""Strings that only look like a module: the group of entry points."""


def _name(path: Path) -> str:
    parts = [OURS, *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


def _imported(node: ast.AST) -> Iterator[str]:
    """Modules of ours that an import statement may mean; the packages of others by their first name."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        inner = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [name if name in TREES else str(node.module) for name in inner]
    else:
        return
    yield from (name if name.partition(".")[0] == OURS else name.partition(".")[0] for name in names)


def _inside_functions(tree: ast.Module) -> Iterator[str]:
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for node in ast.walk(function):
                yield from _imported(node)


def _strings(name: str, tree: ast.Module) -> set[str]:
    """Strings that name a module of ours."""
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {text for text in texts if text in TREES and text != OURS and (name, text) not in PLAIN_TEXT}


def _hidden() -> dict[str, set[str]]:
    """What each module loads of ours without an import statement at its top."""
    found = {name: _strings(name, tree) | set(_inside_functions(tree)) for name, tree in TREES.items()}
    return {name: targets for name, targets in found.items() if targets}


def test_hidden_imports_are_of_optional_packages_or_of_what_lies_below() -> None:
    others = {name: targets for name, targets in _hidden().items() if name not in LISTS}
    assert others == OPTIONAL


@pytest.mark.parametrize("name", sorted(LISTS))
def test_lists_name_what_lies_below_them(name: str) -> None:
    package = "kinescan.cli" if name == "kinescan.cli.main" else name
    assert {target for target in _hidden().get(name, set()) if not target.startswith(f"{package}.")} == set()
    assert set(_inside_functions(TREES[name])) == set()


def test_modules_for_optional_packages_are_reached_through_the_list_alone() -> None:
    targets = set().union(*OPTIONAL.values())
    graph = grimp.build_graph(OURS, cache_dir=None)
    seen = {target: graph.find_modules_that_directly_import(target) for target in targets}
    allowed = {target: {name for name, opened in OPTIONAL.items() if target in opened} for target in targets}
    assert {target: names - allowed[target] for target, names in seen.items()} == {target: set() for target in targets}


def _ways_to_import(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if name in {"import_module", "__import__", "exec", "eval", "run_module", "spec_from_file_location"}:
                # model.eval() is no import; the builtin is called by its bare name
                if name in {"eval", "exec"} and isinstance(node, ast.Attribute):
                    continue
                return True
    return False


def test_few_import_by_a_string() -> None:
    assert {name for name, tree in TREES.items() if _ways_to_import(tree)} == LOADERS


def test_imports_make_no_circle_and_point_downward_with_the_hidden_ones() -> None:
    graph = networkx.DiGraph()
    found = grimp.build_graph(OURS, cache_dir=None)
    for name in found.modules:
        graph.add_edges_from((name, target) for target in found.find_modules_directly_imported_by(name))
    graph.add_edges_from((name, target) for name, targets in OPTIONAL.items() for target in targets)
    # Python loads the packages that a module lies in before it.
    for name, target in list(graph.edges):
        package = target.rpartition(".")[0]
        while package and not f"{name}.".startswith(f"{package}."):
            graph.add_edge(name, package)
            package = package.rpartition(".")[0]
    circles = [sorted(part) for part in networkx.strongly_connected_components(graph) if len(part) > 1]
    assert circles == []
    # import-linter holds the order of the rooms for what is found; the hidden ones stay in their own room
    assert all(name.split(".")[1] == target.split(".")[1] for name in OPTIONAL for target in OPTIONAL[name])


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    from kinescan.runs import train",
        "def f():\n    import kinescan.runs.train as t",
        "x = optional_package('kinescan.runs.train')",
        "lambda: importlib.import_module('kinescan.runs.train')",
        "class A:\n    def f(self):\n        from kinescan.runs.train import train",
    ],
)
def test_each_way_to_hide_an_import_is_seen(source: str) -> None:
    tree = ast.parse(source)
    assert {*_strings("x", tree), *_inside_functions(tree)} == {"kinescan.runs.train"}
