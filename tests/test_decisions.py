"""No decision by the text of a message: what is decided by has a type, a field or a number."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import kinescan

SOURCE = Path(kinescan.__file__).parent
ALLOWED = {
    # torch.OutOfMemoryError is for CUDA alone: allocators of CPUs and of Apple's GPUs raise a bare RuntimeError, which
    # has nothing but its text (torch 2.13); and nothing but the allocator knows beforehand.
    ("runtime/torch_internals.py", "exhausted_memory"),
    # safetensors writes in Rust, and passes errno on as a part of the text of its SafetensorError (0.8). To write by a
    # file of Python, as torch's checkpoints are, it would have to hold the whole file in memory a second time.
    ("runtime/safetensors_internals.py", "refused_by_system"),
}
"""File and function, each with what keeps it from deciding by a type or a field."""
MESSAGES = {"error", "problem", "err", "exc", "exception", "warning", "message", "note", "reason", "said"}
TEXT_FIELDS = {"args", "message", "note", "detail"}
LOOKS = {"startswith", "endswith", "partition", "rpartition", "find", "index", "count", "removeprefix"}
SEARCHES = {"match", "search", "fullmatch", "findall", "finditer"}


def _errors(tree: ast.AST) -> set[str]:
    """Names of errors: those that stand for one, of `except ... as`, and of arguments whose type is an error."""
    names = set(MESSAGES)
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
        elif isinstance(node, ast.arg) and node.annotation is not None:
            kind = ast.unparse(node.annotation)
            if any(kind.endswith(end) for end in ("Error", "Exception", "Warning", "Problem")):
                names.add(node.arg)
    return names


def _is_message(node: ast.AST, errors: set[str]) -> bool:
    """Text of an error: str(error), f"{error}", error.args, found.note, and what is cut out of one of these."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"str", "repr", "format"}:
        return bool(node.args) and isinstance(node.args[0], ast.Name) and node.args[0].id in errors
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "first_line":
        return True
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _is_message(node.func.value, errors)
    if isinstance(node, ast.JoinedStr):
        values = [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
        return len(values) == 1 == len(node.values) and isinstance(values[0], ast.Name) and values[0].id in errors
    if isinstance(node, ast.Subscript):
        return _is_message(node.value, errors)
    return isinstance(node, ast.Attribute) and (
        node.attr == "note"
        or (node.attr in TEXT_FIELDS and isinstance(node.value, ast.Name) and node.value.id in errors)
    )


def _decisions(tree: ast.AST) -> Iterator[ast.AST]:
    errors = _errors(tree)
    texts = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _is_message(node.value, errors)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def tells(node: ast.AST) -> bool:
        return _is_message(node, errors) or (isinstance(node, ast.Name) and node.id in texts)

    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = (node.left, *node.comparators)
            is_none = any(isinstance(side, ast.Constant) and side.value is None for side in sides)
            if not is_none and any(tells(side) for side in sides):
                yield node
        elif isinstance(node, ast.Match) and tells(node.subject):
            yield node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in LOOKS and tells(node.func.value):
                yield node
            if node.func.attr in SEARCHES and any(tells(part) for part in node.args):
                yield node
            if node.func.attr in {"get", "index"} and any(tells(part) for part in node.args):
                yield node


def _found(tree: ast.Module) -> set[tuple[str, int]]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {
        (function.name, getattr(decision, "lineno", getattr(decision, "subject", decision).lineno))
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
        "return any(word in str(error) for word in problem.words)",
        "try: pass\n    except OSError as caught:\n        return str(caught) == WANTED",
        "match str(error):\n        case 'none': pass",
        "return KINDS.get(str(error))",
        "return 'memory' in first_line(error)",
        "return 'memory' in f'{error}'",
    ],
)
def test_each_way_to_decide_by_a_text_is_seen(line: str) -> None:
    tree = ast.parse(f"def f(error, problem, found):\n    {line}")
    if "error.message" in line:
        tree = ast.parse(ast.unparse(tree).replace("str(error.message)", "error.message"))
    assert _found(tree)
