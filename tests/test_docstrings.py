"""Docstrings say what a caller has to know: errors that are raised, and shapes of tensors."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import kinescan
from kinescan import errors

SOURCE = Path(kinescan.__file__).parent
OUR_ERRORS = {name for name in vars(errors) if name.endswith("Error")} | {"TrainingInterrupted", "RequestProblem"}
NO_CALLERS = {"cli"}
"""Rooms whose public functions the command line calls: errors become exit codes there."""
WITH_SHAPES = ("ops", "layers", "models", "training", "profiling")
"""Rooms whose functions take tensors of a shape. A whole checkpoint, a dict of tensors, has none."""
ANY_SHAPE = {
    ("ops/backend.py", "choose_backend"),
    ("ops/backend.py", "without_autocast"),
    ("ops/backend.py", "triton_obstacle"),
    ("ops/local_correlation/numba.py", "obstacle"),
    ("ops/selective_scan/numba.py", "obstacle"),
    ("ops/selective_scan/triton_steps.py", "in_interpreter"),
    ("ops/huge_pages.py", "empty_for_writing"),
    ("ops/selective_scan/operator.py", "tensors"),
    ("models/vit/vit.py", "check_dtype"),
    ("models/vit/vit_block.py", "forward"),
    ("models/weights/tensor_file.py", "check_tensor"),
    ("profiling/kernel_cases.py", "relative_error"),
}
"""File and function: only device and dtype matter, or every shape is taken."""


def _functions(source: str) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Public functions and methods of public classes, each with its docstring and that of its class."""
    tree = ast.parse(source)
    found: list[tuple[ast.AST, str]] = [(tree, "")]
    for node, above in found:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
                found.append((child, ast.get_docstring(child) or ""))
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
                yield child, (ast.get_docstring(child) or "") + above


def _untold_errors(source: str) -> list[str]:
    untold = []
    for function, docstring in _functions(source):
        raised = {
            node.exc.func.id
            for node in ast.walk(function)
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
        }
        if docstring and raised & OUR_ERRORS and "Raises" not in docstring:
            untold.append(f"{function.name}: {', '.join(sorted(raised & OUR_ERRORS))}")
    return untold


def _without_shapes(source: str) -> list[str]:
    """Functions with an argument or a result that is a tensor, whose docstring names no [..]: a shape in letters.

    A method that says nothing has the docstring of the class above, as methods marked by `override` have; annotations
    such as Float[Tensor, "B T"] hold the shape themselves.
    """
    missing = []
    for function, _ in _functions(source):
        docstring = ast.get_docstring(function)
        arguments = [*function.args.args, *function.args.kwonlyargs]
        kinds = [ast.unparse(kind) for kind in (function.returns, *(one.annotation for one in arguments)) if kind]
        plain = [kind for kind in kinds if kind.removesuffix(" | None") in ("Tensor", "torch.Tensor")]
        if docstring and plain and "[" not in docstring:
            missing.append(function.name)
    return missing


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_docstrings_name_the_errors_that_are_raised(path: Path) -> None:
    if path.relative_to(SOURCE).parts[0] not in NO_CALLERS:
        assert _untold_errors(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "path",
    sorted(path for room in WITH_SHAPES for path in (SOURCE / room).rglob("*.py")),
    ids=lambda path: path.relative_to(SOURCE).as_posix(),
)
def test_docstrings_give_the_shapes_of_tensors(path: Path) -> None:
    name = path.relative_to(SOURCE).as_posix()
    allowed = {function for file, function in ANY_SHAPE if file == name}
    assert set(_without_shapes(path.read_text(encoding="utf-8"))) - allowed == set()


def test_what_is_missing_is_found() -> None:
    source = '''
def f(x: Tensor) -> Tensor:
    """The sum."""
    raise ShapeError("x")

class Sum:
    """A sum.

    Raises:
        ShapeError: always.
    """

    def forward(self, x: Tensor) -> None:
        """[B, T] -> [B]."""
        raise ShapeError("x")
'''
    assert _untold_errors(source) == ["f: ShapeError"]
    assert _without_shapes(source) == ["f"]
