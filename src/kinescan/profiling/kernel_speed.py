"""Kernels for GPUs beside what torch makes of the same without them: compiled, in eager mode, fused attention."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from kinescan.ops import attention_mass
from kinescan.profiling.device_clock import DeviceClock, compare_in_turn
from kinescan.profiling.kernel_cases import (
    OFFSETS,
    WINDOW,
    correlate,
    correlate_with_gradient,
    plain_attention,
    sample_attention,
    sample_scan,
    scan_by_kernel,
    scan_by_loop,
    scan_with_gradients,
)


def scan_speed(device: torch.device, dtype: torch.dtype, *, repetitions: int, small: bool = False) -> dict[str, Any]:
    """The selective scan beside the loop over time under torch.compile, forward and with all gradients.

    Args:
        device: where to run.
        dtype: of what lies along time.
        repetitions: timed calls of each.
        small: sizes for Triton's interpreter, which say nothing about speed.

    Returns:
        what was run -> as `compare_in_turn` gives it.
    """
    tracks, steps, channels = (2, 2, 5) if small else (1568, 8, 1536)
    tensors = sample_scan(tracks, steps, channels, device, dtype)
    grad_y = torch.randn(tracks, steps, channels, device=device).to(dtype)
    scans = {"ours": scan_by_kernel, "compiled_loop": _compiled(scan_by_loop, small=small)}
    clock, shape = DeviceClock(device), f"{tracks} x {steps} x {channels}"
    with torch.no_grad():
        runs = {name: partial(scan, tensors) for name, scan in scans.items()}
        found = {f"forward, {shape}": compare_in_turn(clock, runs, repetitions)}
    both = {name: partial(scan_with_gradients, scan, tensors, grad_y) for name, scan in scans.items()}
    return {**found, f"forward and backward, {shape}": compare_in_turn(clock, both, repetitions)}


def correlation_speed(
    device: torch.device, dtype: torch.dtype, *, repetitions: int, small: bool = False
) -> dict[str, Any]:
    """The local correlation beside the dense product of all patches with all under torch.compile; as `scan_speed`."""
    shape = (1, 1, 2, 3, 3) if small else (16, 8, 64, 14, 14)
    features = torch.randn(shape, device=device).to(dtype)
    maps_shape = (*shape[:2], len(OFFSETS), WINDOW**2, *shape[3:])
    grad = torch.randn(maps_shape, device=device).to(dtype)
    dense = _compiled(partial(correlate, backend="dense"), small=small)
    forms = {"ours": partial(correlate, backend="triton"), "compiled_dense": dense}
    clock, name = DeviceClock(device), " x ".join(map(str, shape))
    with torch.no_grad():
        runs = {form: partial(run, features) for form, run in forms.items()}
        found = {f"forward, {name}": compare_in_turn(clock, runs, repetitions)}
    both = {form: partial(correlate_with_gradient, run, features, grad) for form, run in forms.items()}
    return {**found, f"forward and backward, {name}": compare_in_turn(clock, both, repetitions)}


def attention_speed(
    device: torch.device, dtype: torch.dtype, *, repetitions: int, small: bool = False
) -> dict[str, Any]:
    """Attention with its scores beside the blocked form in torch, and beside fused attention without it."""
    heads, key_heads, head_dim, queries, keys = shape = (2, 1, 16, 2, 5) if small else (16, 8, 128, 196, 4292)
    tensors = sample_attention(*shape, device, dtype)
    runs: dict[str, Callable[[], Any]] = {
        "ours": partial(attention_mass, *tensors, backend="triton"),
        "blockwise": partial(attention_mass, *tensors, backend="blockwise"),
        "attention_without_scores": partial(plain_attention, *tensors),
    }
    name = f"{heads} on {key_heads} heads of {head_dim}, {queries} queries, {keys} keys"
    with torch.no_grad():
        return {name: compare_in_turn(DeviceClock(device), runs, repetitions)}


SPEED = {"selective_scan": scan_speed, "local_correlation": correlation_speed, "attention_mass": attention_speed}
"""Op -> what times it."""


def _compiled(function: Callable[..., Any], *, small: bool) -> Any:
    # A rehearsal needs no C++ compiler.
    return torch.compile(function, fullgraph=True, backend="eager" if small else "inductor")
