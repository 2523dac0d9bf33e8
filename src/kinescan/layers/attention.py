import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kinescan.ops.backend import plain_only, transformed

Heads = Float[Tensor, "F h _ d"]
"""Queries, keys or values of every head."""


def attend(query: Heads, key: Heads, value: Heads) -> Heads:
    """Attention of every head [F, h, Q, d] over keys and values [F, h, N, d].

    By torch's fastest kernel; by its plain operations within torch.func and in forward mode, which the kernel for CPUs
    knows neither of, and within `plain_torch` where gradients are on: the kernel has no second derivative.

    Example:
        >>> attend(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 5, 4), torch.ones(1, 2, 5, 4)).shape
        torch.Size([1, 2, 3, 4])
    """
    if not (transformed() or (plain_only() and torch.is_grad_enabled())):
        return F.scaled_dot_product_attention(query, key, value)
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value)
