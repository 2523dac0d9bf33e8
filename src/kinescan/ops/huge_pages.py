"""Memory for large results that the system hands over in few blocks."""

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

    Fresh memory is mapped on the first write of each page, by default in pages of 4 KiB, which for a large result
    takes longer than a kernel takes to fill it. Linux gives huge pages to who asks for them (`madvise`, the setting of
    most distributions), much sooner. Where none is free, it moves small ones together first, and that takes about as
    long as small ones would.

    Not always sooner: a virtual machine gets memory from its host when it first writes to it. Huge pages come from the
    large free blocks, which it may never have written to, small ones from those freed last. There the first results are
    slow, slower than with small pages, until the machine has its memory; and where the host is short of memory and
    takes it back, every large result is. Callers who keep their results' memory (`out=`) are spared all of it.

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
