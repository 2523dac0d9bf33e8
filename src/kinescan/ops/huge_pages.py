"""Memory for large results that the system hands over in few pieces."""

import ctypes
import functools
import mmap
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PAGE = 1 << 21
"""Bytes of a huge page on x86-64 and on most ARM64 systems; elsewhere the request is declined, which costs nothing."""


def empty_for_writing(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """`torch.empty` on the CPU, for a result that is written at once.

    Fresh memory is mapped on the first write of each page, by default in pieces of 4 KiB: for a result of 150 MB that
    takes 50 ms, longer than a kernel takes to fill it. Linux gives huge pages to who asks for them (`madvise`, the
    setting of most distributions): 9 ms. Where it does not, nothing changes.

    Args:
        shape: of the tensor.
        dtype: of the tensor.

    Returns:
        a tensor with undefined values.
    """
    tensor = torch.empty(shape, dtype=dtype)
    advise = _madvise()
    first = -(-tensor.data_ptr() // PAGE) * PAGE
    past = (tensor.data_ptr() + tensor.nbytes) // PAGE * PAGE
    if advise is not None and past > first:
        advise(first, past - first, mmap.MADV_HUGEPAGE)  # a hint: it may be declined
    return tensor


@functools.cache
def _madvise() -> Callable[[int, int, int], Any] | None:
    """The system's function, where there is one that knows huge pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_int
    return function
