"""Names that other libraries call private stand in one module for each library, whose tests say what breaks."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import kinescan

SOURCE = Path(kinescan.__file__).parent
DOORS = {
    "torch": "runtime/torch_internals.py",
    "accelerate": "runtime/accelerate_internals.py",
    "transformers": "runtime/transformers_internals.py",
    "python": "runtime/python_internals.py",
    "gcsfs": "runtime/gcsfs_internals.py",
}
COMPARED = {"models/weights/torchscript.py"}
"""Compares such names with those in other people's files; calls none of them."""
PUBLIC = {("os", "_exit")}
"""Documented, whatever the name looks like."""
OF_NAMED_TUPLES = {"_replace", "_asdict", "_fields", "_make"}
"""Documented methods, whose underscore keeps them apart from fields."""
PRIVATE = re.compile(r"_(?!_)\w*[a-zA-Z]\w*")


def _own_names(trees: list[ast.Module]) -> set[str]:
    """Private names that this package itself gives: to functions, classes, methods, attributes and variables."""
    names: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _strangers(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """Private names that are none of ours: imported, or taken as attributes of what is not self."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            for alias in node.names:
                if any(PRIVATE.fullmatch(part) for part in f"{module}.{alias.name}".split(".")):
                    yield f"{module}.{alias.name}".strip(".")
        elif isinstance(node, ast.Attribute) and PRIVATE.fullmatch(node.attr):
            holder = ast.unparse(node.value)
            if (
                holder in {"self", "cls", "super()"}
                or (holder, node.attr) in PUBLIC
                or node.attr in OF_NAMED_TUPLES | own
            ):
                continue
            yield f"{holder}.{node.attr}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in STRINGS:
            yield repr(node.value)


STRINGS = {"_parameters", "_buffers", "_modules", "_forward_hooks", "_orig_mod", "_compiled_call_impl"}
"""Of torch's modules, which `vars(module)[...]` would reach."""
METHODS = {"_init_weights", "_save_to_state_dict", "_load_from_state_dict", "_processor_class"}
"""Methods and attributes that a base class of torch or transformers calls, though they are private there."""


def _overridden(tree: ast.Module) -> set[str]:
    return _own_names([tree]) & METHODS


def _files() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path.relative_to(SOURCE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def test_private_names_of_others_stand_in_the_doors_alone() -> None:
    files = {name: tree for name, tree in _files() if name not in {*DOORS.values(), *COMPARED}}
    own = _own_names(list(files.values()))
    found = {name: sorted({*_strangers(tree, own), *_overridden(tree)}) for name, tree in files.items()}
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(("library", "file"), DOORS.items())
def test_each_door_is_for_its_own_library_and_has_tests(library: str, file: str) -> None:
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]  # type: ignore[union-attr]
        for node in ast.walk(ast.parse((SOURCE / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    others = set(DOORS) - {library, "torch"}
    assert imported & others == set()
    assert (Path(__file__).parent / Path(file).with_name(f"test_{Path(file).name}")).is_file()


@pytest.mark.parametrize(
    "source",
    [
        "from torch._C import _functorch",
        "import torch._dynamo",
        "from kinescan.runtime.device import _hidden",
        "model.config._attn_implementation",
        "torch.UntypedStorage._new_shared(1)",
        "vars(module)['_modules']",
        "pool._processes",
    ],
)
def test_each_way_to_a_private_name_is_seen(source: str) -> None:
    assert list(_strangers(ast.parse(source), set()))


def _private_imports(tree: ast.AST) -> list[str]:
    """Private names of kinescan that a test imports."""
    return [
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kinescan"
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.endswith("__")
    ]


def test_tests_import_public_names_alone() -> None:
    files = sorted(Path(__file__).parent.rglob("*.py"))
    found = {path.name: names for path in files if (names := _private_imports(ast.parse(path.read_text("utf-8"))))}
    assert found == {}
    assert _private_imports(ast.parse("from kinescan.data.video.live import _Hidden, LiveVideo"))
