from collections.abc import Callable

import torch
from torch import Tensor

CHUNK_VALUES = 2_500_000
"""Values of the widest tensor of a chunk: 10 MB in float32, which a CPU's cache and its allocator keep at hand."""


def in_chunks(part: Callable[[Tensor], Tensor], rows: Tensor, values_per_row: int) -> Tensor:
    """What `part` gives for all rows, on a CPU without gradients computed for a few rows at a time.

    Tensors of hundreds of megabytes are handed back to the system after each use, and taking them up again, page by
    page, costs a long clip a tenth of its time; small ones are used again. Elsewhere all rows go at once.

    Args:
        part: treats every row by itself: [F, ...] -> [F, ...].
        rows: [F, ...].
        values_per_row: values of the widest tensor inside `part` for each row.

    Example:
        >>> rows = torch.randn(5, 3)
        >>> with torch.no_grad():
        ...     torch.equal(in_chunks(torch.exp, rows, values_per_row=1_250_000), rows.exp())
        True
    """
    chunks = chunks_of(rows, values_per_row)
    return part(rows) if len(chunks) == 1 else torch.cat([part(chunk) for chunk in chunks])


def chunks_of(rows: Tensor, values_per_row: int) -> tuple[Tensor, ...]:
    """The rows [F, ...] as views to be taken one after the other; all of them in one where `in_chunks` says so."""
    if torch.is_grad_enabled() or rows.device.type != "cpu" or torch.compiler.is_compiling():
        return (rows,)
    length = max(1, CHUNK_VALUES // values_per_row)
    return (rows,) if rows.shape[0] <= length else rows.split(length)
