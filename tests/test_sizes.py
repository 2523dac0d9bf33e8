"""Files of up to 500 lines, functions of up to 80; what is longer is listed with a reason.

Lines are counted as an editor counts them: signature, docstring, comments and blank lines included.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES, MOST_OF_A_FUNCTION = 500, 80
LONG_FILES = {
    "src/kinescan/ops/selective_scan/kernels.py": "one loop in the forms that lanes, depths and directions need; the "
    "forms are read side by side",
    "benchmarks/events.py": "one benchmark from its data to its table, run in parts that share all of it",
    "benchmarks/render.py": "what was aimed at and what is said of each benchmark, beside the code that shows it",
    "tests/training/test_loop.py": "every property of the one training loop, on the same tiny model",
    "tests/vlm/test_stream.py": "every property of a VLM's stream, on the same tiny models",
}
LONG_FUNCTIONS = {
    "src/kinescan/ops/selective_scan/kernels.py: scan_backward": "one loop over steps with eleven sums in registers",
}


def _files() -> Iterator[tuple[str, str]]:
    for folder in ("src", "tests", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def _lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or 0) - function.lineno + 1


def test_files_are_short() -> None:
    assert {name for name, text in _files() if text.count("\n") > MOST_LINES} == LONG_FILES.keys()


def test_functions_are_short() -> None:
    functions = (
        (f"{name}: {node.name}", _lines_of(node))
        for name, text in _files()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert {name for name, lines in functions if lines > MOST_OF_A_FUNCTION} == LONG_FUNCTIONS.keys()
