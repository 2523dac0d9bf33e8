"""Nothing is defined in src that nobody names: neither the package itself, nor docs, examples and benchmarks."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
WORD = re.compile(r"[A-Za-z_]\w*")
CALLED_BY_OTHERS = {
    "_VectorModel": "numba finds it by its decorator",
    "_init_weights": "transformers calls it",
    "base_model_prefix": "transformers reads it",
    "extra_repr": "torch prints it",
    "find_class": "pickle calls it",
    "get_mask_sizes": "transformers calls it",
    "get_query_offset": "transformers calls it",
    "is_compileable": "transformers reads it",
    "main_input_name": "transformers reads it",
    "model_input_names": "transformers reads it",
    "persistent_load": "pickle calls it",
    "preprocess": "transformers calls it",
    "readinto": "io calls it",
    "seekable": "io calls it",
    "to_dict": "transformers calls it",
}
"""Names that another package asks for."""
FOR_USERS = {"num_reconnects": "of a video that is read in Python: how often it came back"}
"""Names that only users read."""


def _definitions(body: list[ast.stmt]) -> Iterator[str]:
    """Functions, classes, constants and attributes of self; fields of classes are results for their reader."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
            yield from _definitions([part for part in node.body if not isinstance(part, ast.AnnAssign)])
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for part in ast.walk(target):
                    if isinstance(part, ast.Name):
                        yield part.id
                    elif isinstance(part, ast.Attribute) and ast.unparse(part.value) == "self":
                        yield part.attr
        else:
            for name in ("body", "orelse", "finalbody", "handlers"):
                yield from _definitions([part for part in getattr(node, name, []) if isinstance(part, ast.stmt)])


def _named(tree: ast.AST) -> Iterator[str]:
    """What code loads, imports, or holds in a short text, such as the name of a recipe's key."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 80:
            yield from WORD.findall(node.value)


def _named_elsewhere() -> set[str]:
    folders = [ROOT / "docs", ROOT / "examples", ROOT / "benchmarks"]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in {".md", ".py", ".toml"}]
    files = [ROOT / "README.md", *(path for path in files if path.name != "architecture.md")]
    return {word for path in files for word in WORD.findall(path.read_text(encoding="utf-8"))}


def test_everything_that_is_defined_is_named_somewhere() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES]
    named = {name for tree in trees for name in _named(tree)} | _named_elsewhere()
    defined = {name for tree in trees for name in _definitions(tree.body)}
    unused = {name for name in defined - named if not (name.startswith("__") and name.endswith("__"))}
    listed = CALLED_BY_OTHERS.keys() | FOR_USERS.keys()
    assert sorted(unused - listed) == []
    assert sorted(listed - defined) == []
