"""Runs the CHECKS of a test file in Triton's interpreter, in a process of its own; prints what each of them says.

Triton decides between compiler and interpreter when a kernel is defined, for good: python interpreter.py FILE.
"""

import importlib.util
import json
import random
import sys
import traceback
import warnings
from pathlib import Path

import torch


def keep_truth_values() -> None:
    """Triton 3.9.0's interpreter makes 32-bit integers of a truth value that it spreads over a block, and refuses them
    as a mask; its compiler does not."""
    from triton.runtime.interpreter import InterpreterBuilder

    spread = InterpreterBuilder.create_splat

    def create_splat(self, kind, given):
        made = spread(self, kind, given)
        if given.data.dtype == bool:
            made.data = made.data.astype(bool)
        return made

    InterpreterBuilder.create_splat = create_splat


def main() -> None:
    keep_truth_values()
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    # as in pyproject.toml
    warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)  # torch 2.14
    warnings.filterwarnings(
        "ignore", category=UserWarning, module=r"torch\._subclasses\.meta_utils"
    )  # torch 2.14: .grad
    warnings.filterwarnings("ignore", message="Guards may run slower on Python 3.13.0", category=RuntimeWarning)
    # Fresh memory holds NaN, so that a value that nobody wrote shows.
    torch.use_deterministic_algorithms(True)
    path = Path(sys.argv[1])
    spec = importlib.util.spec_from_file_location(path.stem, path)
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    said = {}
    for name, check in tests.CHECKS.items():
        random.seed(0)
        torch.manual_seed(0)
        try:
            check("cpu")
            said[name] = None
        except Exception:
            said[name] = traceback.format_exc()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
