"""No decision by the text of a message: what is decided by has a type, a field or a number."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import kinescan

SOURCE = Path(kinescan.__file__).parent
ALLOWED = {
    ("runtime/torch_internals.py", "lost_worker"),  # torch has no type for it; tested there
    ("runtime/torch_internals.py", "exhausted_memory"),  # of Apple's GPUs and CPUs, likewise
}
"""File and function."""
MESSAGES = {"error", "problem", "err", "exc", "exception", "warning", "message", "note", "reason", "said"}


def _is_message(node: ast.AST) -> bool:
    """Text of an error: str(error), error.args, error.message, found.note, and what is cut out of one of these."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"str", "repr", "format"}:
        return bool(node.args) and isinstance(node.args[0], ast.Name) and node.args[0].id in MESSAGES
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _is_message(node.func.value)
    if isinstance(node, ast.Subscript):
        return _is_message(node.value)
    return isinstance(node, ast.Attribute) and (
        (node.attr in {"args", "message"} and isinstance(node.value, ast.Name) and node.value.id in MESSAGES)
        or node.attr in {"note"}
    )


def _decisions(tree: ast.AST) -> Iterator[ast.AST]:
    texts = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _is_message(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def tells(node: ast.AST) -> bool:
        return _is_message(node) or (isinstance(node, ast.Name) and node.id in texts)

    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            plain = [part for part in (node.left, *node.comparators) if isinstance(part, ast.Constant | ast.Tuple)]
            if plain and any(tells(part) for part in (node.left, *node.comparators)):
                yield node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in {"startswith", "endswith", "partition", "find", "index"} and tells(node.func.value):
                yield node
            if node.func.attr in {"match", "search", "fullmatch", "findall"} and any(tells(part) for part in node.args):
                yield node


def _found(tree: ast.Module) -> set[tuple[str, int]]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {
        (function.name, decision.lineno)  # type: ignore[attr-defined]
        for function in functions
        for decision in _decisions(function)
    }


def test_no_decision_by_the_text_of_a_message() -> None:
    found = [
        f"{name}:{line}: {function}"
        for path in sorted(SOURCE.rglob("*.py"))
        for name in [path.relative_to(SOURCE).as_posix()]
        for function, line in sorted(_found(ast.parse(path.read_text(encoding="utf-8"))))
        if (name, function) not in ALLOWED
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "if 'DataLoader worker' in str(error): pass",
        "if error.args == ('none',): pass",
        "text = str(error)\n    return 'out of memory' in text",
        "return str(error).partition(': ')[2]",
        "if found.note.startswith('differs'): pass",
        "said, _, allowed = str(error.message).partition('is not one of')",
        "return re.match('a', str(problem))",
    ],
)
def test_each_way_to_decide_by_a_text_is_seen(line: str) -> None:
    tree = ast.parse(f"def f(error, problem, found):\n    {line}")
    if "error.message" in line:
        tree = ast.parse(ast.unparse(tree).replace("str(error.message)", "error.message"))
    assert _found(tree)
