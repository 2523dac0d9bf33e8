"""One trivial kernel, to find out whether Triton can compile and run here: it needs a C compiler and a driver."""

import torch
import triton
import triton.language as tl

_SIZE = 16


@triton.jit  # type: ignore[untyped-decorator]
def _double(values_ptr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Doubles numbers in place."""
    offsets = tl.arange(0, SIZE)
    tl.store(values_ptr + offsets, 2.0 * tl.load(values_ptr + offsets))


def launch(device_type: str) -> None:
    """Compiles the kernel, runs it and compares its result.

    Raises:
        Exception: whatever Triton raises where it cannot; ArithmeticError where its result is wrong.
    """
    values = torch.ones(_SIZE, device=device_type)
    _double[(1,)](values, SIZE=_SIZE)
    if values.tolist() != [2.0] * _SIZE:
        raise ArithmeticError("a kernel that doubles numbers gave others")
