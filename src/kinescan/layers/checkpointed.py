from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kinescan.ops.backend import transformed

Inputs = TypeVarTuple("Inputs")
Result = TypeVar("Result")


def checkpointed(part: Callable[[*Inputs], Result], *inputs: *Inputs) -> Result:
    """What `part` gives; for the backward pass its inputs are kept, and what it computes inside is computed again.

    For parts that cost little beside what they would keep, such as a normalisation before a product: a product that
    comes last is not computed again, since its inputs are all that its gradient needs. Values and gradients are the
    same bit for bit. Without gradients, and under torch.compile and torch.export (which decide for themselves), `part`
    is simply called.

    Args:
        part: samples no random numbers and changes nothing, as it runs twice.
        inputs: of `part`; the graph is kept for those tensors among them that want gradients.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> checkpointed(torch.exp, x).sum().backward()
        >>> torch.equal(x.grad, x.exp())
        True
    """
    wanted = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
    # torch.func refuses the hooks by which tensors are computed again.
    if not wanted or torch.compiler.is_compiling() or transformed():
        return part(*inputs)
    return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
