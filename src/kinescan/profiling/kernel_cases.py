"""Inputs of the ops with kernels for GPUs, and plain forms of the same in torch, to compare with and to time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from kinescan.ops import local_correlation, selective_scan
from kinescan.ops.selective_scan import reference
from kinescan.runtime.backend_names import Backend

ORDER = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
OFFSETS, WINDOW = (-2, -1, 0, 1, 2), 9
STATE_SIZE = 16

Tensors = dict[str, Tensor]
Scan = Callable[[Tensors], tuple[Tensor, Tensor]]


def sample_scan(
    tracks: int,
    steps: int,
    channels: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    generator: torch.Generator | None = None,
    state_size: int = STATE_SIZE,
) -> Tensors:
    """Inputs of a scan as a Mamba block makes them at the start: A = -(1 .. S), step sizes around 0.03.

    Args:
        tracks: R.
        steps: T.
        channels: D.
        device: where they are.
        dtype: of what lies along time; the rest is float32.
        generator: of the CPU, for the same numbers on every device.
        state_size: S.
    """

    def tokens(width: int) -> Tensor:
        if generator is None:
            return torch.randn(tracks, steps, width, device=device, dtype=dtype)
        return torch.randn(tracks, steps, width, generator=generator).to(device, dtype)

    return {
        "u": tokens(channels),
        "delta": tokens(channels),
        "A": -torch.arange(1.0, state_size + 1, device=device).repeat(channels, 1),
        "B": tokens(state_size),
        "C": tokens(state_size),
        "D": torch.ones(channels, device=device),
        "z": tokens(channels),
        "delta_bias": torch.full((channels,), -3.5, device=device),
    }


def scan_by_kernel(tensors: Tensors) -> tuple[Tensor, Tensor]:
    """Output [R, T, D] and last state [R, D, S] by the Triton kernel, whatever else could run."""
    return selective_scan(**tensors, backend="triton")  # type: ignore[arg-type]


def scan_by_loop(tensors: Tensors) -> tuple[Tensor, Tensor]:
    """Output [R, T, D] and last state [R, D, S] by the reference, step by step, in float32 (float64 for float64)."""
    wide = torch.float64 if tensors["u"].dtype == torch.float64 else torch.float32
    whole: dict[str, Any] = {name: tensors[name].to(wide) if name in tensors else None for name in ORDER}
    y, state = reference.scan(**whole, delta_softplus=True, state=tensors.get("state"))
    return y.to(tensors["u"].dtype), state


def scan_with_gradients(scan: Scan, tensors: Tensors, grad_y: Tensor) -> tuple[Tensor, ...]:
    """Output [R, T, D], and the gradients of all inputs through it, in the inputs' shapes."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    y, _ = scan(leaves)
    return (y.detach(), *torch.autograd.grad(y, list(leaves.values()), grad_y.to(y.dtype)))


def correlate(features: Tensor, backend: Backend) -> Tensor:
    """Maps [B, T, K, M, H, W] of features [B, T, C, H, W], with PKS4's offsets and window."""
    return local_correlation(features, OFFSETS, WINDOW, backend=backend)


def correlate_with_gradient(run: Callable[[Tensor], Tensor], features: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Maps [B, T, K, M, H, W], and the gradient of the features [B, T, C, H, W] through them."""
    leaf = features.detach().requires_grad_()
    maps = run(leaf)
    return maps.detach(), torch.autograd.grad(maps, leaf, grad.to(maps.dtype))[0]


def sample_attention(
    heads: int,
    key_heads: int,
    head_dim: int,
    queries: int,
    keys: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [1, heads, queries, head_dim], keys and values [1, key_heads, keys, head_dim]."""
    shapes = ((heads, queries), (key_heads, keys), (key_heads, keys))
    sampled = (
        torch.randn(1, *shape, head_dim, device=device)
        if generator is None
        else torch.randn(1, *shape, head_dim, generator=generator)
        for shape in shapes
    )
    query, key, value = (x.to(device, dtype) for x in sampled)
    return query, key, value


def plain_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Fused attention without scores, for its cost: queries [1, H, Q, D] are the newest of the keys [1, Hkv, L, D]."""
    causal = causal_lower_right(queries.shape[2], keys.shape[2])
    output: Tensor = scaled_dot_product_attention(queries, keys, values, attn_mask=causal, enable_gqa=True)
    return output


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest entry; NaN where anything found is NaN."""
    largest = exact.double().abs().max().item() if exact.numel() else 0.0
    difference = (found.double() - exact.double()).abs().max().item() if exact.numel() else 0.0
    return difference / (largest or 1.0)
