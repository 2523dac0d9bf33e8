"""The selective scan on a CPU as an operator that torch can differentiate, compile and export."""

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kinescan.ops.selective_scan import kernels
from kinescan.ops.selective_scan.kernels import LANES
from kinescan.shapes import State, TrackMatrix, Tracks

MIN_WORK = 1 << 18
"""Exponentials that make a thread worth its start."""
_LOG2E = 1.4426950408889634


def obstacle(like: Tensor) -> str | None:
    """What keeps these kernels from running on tensors like this one."""
    if like.device.type != "cpu":
        return "its kernels are for CPU tensors"
    if like.dtype == torch.float64:
        return "its kernels compute in float32"
    return None


def scan(
    u: Tracks,
    delta: Tracks,
    A: Tensor,
    B: TrackMatrix,
    C: TrackMatrix,
    D: Tensor | None,
    z: Tracks | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    state: State | None,
) -> tuple[Tracks, State]:
    """As `reference.scan`, but half types are computed in float32: y in the dtype of u, the last state in float32."""
    y, last_state = _scan_op(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state)
    return y, last_state


@torch.library.custom_op("kinescan::selective_scan", mutates_args=())
def _scan_op(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    arrays = _arrays(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state)
    y = torch.empty(u.shape, dtype=torch.float32)
    last_state = torch.empty((u.shape[0], *A.shape), dtype=torch.float32)
    outputs = (y.view(-1).numpy(), last_state.view(-1).numpy())

    def run(part: _Part) -> None:
        kernels.scan(part.tracks, part.blocks, (*u.shape[1:], A.shape[1]), *arrays, *outputs)

    _run(run, list(_parts(u.shape, A.shape[1])))
    return y.to(u.dtype), last_state


@_scan_op.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), u.new_empty((u.shape[0], *A.shape), dtype=torch.float32)


@torch.library.custom_op("kinescan::selective_scan_backward", mutates_args=())
def _backward_op(
    grad_y: Tensor,
    grad_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients in the order of the inputs; that of an absent one has no entries."""
    num_tracks, num_steps, num_channels = u.shape
    num_places = A.shape[1]
    arrays = _arrays(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state)
    dy = _rows(grad_y)
    dlast = np.empty(0, np.float32) if grad_state is None else _flat(grad_state)
    parts = list(_parts(u.shape, num_places))
    num_track_parts = 1 + max(part.track_part for part in parts)
    num_block_parts = 1 + max(part.block_part for part in parts)
    du, ddelta = torch.empty(u.shape), torch.empty(u.shape)
    dz = torch.empty(u.shape if z is not None else 0)
    dstate = torch.empty((num_tracks, num_channels, num_places) if state is not None else 0)
    dB, dC = torch.zeros(2, num_block_parts, num_tracks, num_steps, num_places)
    # The gradients of A, D and the bias, one copy for each share of the tracks: [..., block, S, 2, LANES].
    adjoints = torch.zeros(num_track_parts, _num_blocks(num_channels), num_places, 2, LANES)
    sums = torch.zeros(num_track_parts, _num_blocks(num_channels), 2, LANES)
    outputs = (du.view(-1).numpy(), ddelta.view(-1).numpy())
    more_outputs = (dz.view(-1).numpy(), dstate.view(-1).numpy())

    def run(part: _Part) -> None:
        dB_part, dC_part = dB[part.block_part].view(-1).numpy(), dC[part.block_part].view(-1).numpy()
        own = slice(*part.blocks)
        kernels.scan_backward(
            part.tracks,
            part.blocks,
            (num_steps, num_channels, num_places),
            *arrays,
            dy,
            dlast,
            *outputs,
            dB_part,
            dC_part,
            *more_outputs,
            adjoints[part.track_part, own].flatten(1).numpy(),
            sums[part.track_part, own].flatten(1).numpy(),
        )

    _run(run, parts)
    dA = adjoints[:, :, :, 1].sum(dim=0).movedim(1, 2).reshape(-1, num_places)[:num_channels]  # [D, S]
    dD, dbias = sums.sum(dim=0).movedim(1, 0).reshape(2, -1)[:, :num_channels]
    empty = dA.new_empty(0)
    return (
        du.to(u.dtype),
        ddelta.to(delta.dtype),
        dA.to(A.dtype, copy=True),
        dB.sum(dim=0).to(B.dtype),
        dC.sum(dim=0).to(C.dtype),
        empty if D is None else dD.to(D.dtype, copy=True),
        dz if z is None else dz.to(z.dtype),
        empty.clone() if delta_bias is None else dbias.to(delta_bias.dtype, copy=True),
        dstate if state is None else dstate.to(state.dtype),
    )


@_backward_op.register_fake
def _(
    grad_y: Tensor,
    grad_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return tuple(  # type: ignore[return-value]
        A.new_empty(0, dtype=torch.float32) if x is None else x.new_empty(x.shape)
        for x in (u, delta, A, B, C, D, z, delta_bias, state)
    )


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.delta_softplus, state = inputs
    ctx.save_for_backward(*tensors, state)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_y: Tensor | None, grad_state: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, state = ctx.saved_tensors
    if grad_y is None:
        grad_y = torch.zeros_like(tensors[0])
    *grads, grad_of_state = _backward_op(grad_y, grad_state, *tensors, ctx.delta_softplus, state)
    found = [None if x is None else grad for x, grad in zip(tensors, grads, strict=True)]
    return *found, None, None if state is None else grad_of_state


_scan_op.register_autograd(_differentiate, setup_context=_save_inputs)


class _Part(NamedTuple):
    """One thread's share: tracks and blocks from the first to before the last, and which share of each that is."""

    tracks: tuple[int, int]
    blocks: tuple[int, int]
    track_part: int
    block_part: int


def _parts(shape: torch.Size, num_places: int) -> Iterator[_Part]:
    """Shares of the tracks, and where there are fewer tracks than threads, of the channels too."""
    num_tracks, num_steps, num_channels = shape
    work = num_tracks * num_steps * num_channels * num_places
    num_threads = max(1, min(torch.get_num_threads(), work // MIN_WORK))
    num_blocks = _num_blocks(num_channels)
    track_parts = min(num_tracks, num_threads)
    block_parts = min(num_blocks, -(-num_threads // track_parts)) if track_parts else 1
    for i in range(track_parts):
        tracks = (num_tracks * i // track_parts, num_tracks * (i + 1) // track_parts)
        for k in range(block_parts):
            blocks = (num_blocks * k // block_parts, num_blocks * (k + 1) // block_parts)
            yield _Part(tracks, blocks, i, k)


def _run(function: Callable[[_Part], None], parts: list[_Part]) -> None:
    """Kernels hold no lock and share no output, so plain threads do: safe from any thread and after a fork."""
    if len(parts) == 1:
        function(parts[0])
        return
    for _ in _pool(os.getpid(), len(parts)).map(function, parts):
        pass


@functools.lru_cache(maxsize=4)
def _pool(process_id: int, num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="selective_scan")


def _num_blocks(num_channels: int) -> int:
    return -(-num_channels // LANES)


def _arrays(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    state: Tensor | None,
) -> tuple[Any, ...]:
    """The arguments `u` to `state` of the kernels."""
    absent = torch.empty(0)
    rates = _blocks(A.detach().float() * _LOG2E).movedim(1, 2).flatten(1).contiguous().numpy()  # [blocks, S * LANES]
    bias = torch.zeros(u.shape[2]) if delta_bias is None else delta_bias
    return (
        _rows(u),
        _rows(delta),
        rates,
        _rows(B),
        _rows(C),
        (absent.view(0, 0) if D is None else _blocks(D)).numpy(),
        (absent.numpy(), 0, 0) if z is None else _rows(z),
        _blocks(bias).numpy(),
        delta_softplus,
        absent.numpy() if state is None else _flat(state),
    )


def _blocks(per_channel: Tensor) -> Tensor:
    """[D, ...] as [blocks, LANES, ...], padded with zeros."""
    num_channels = per_channel.shape[0]
    rows = per_channel.detach().float().reshape(num_channels, -1)
    padded = F.pad(rows, (0, 0, 0, -num_channels % LANES))
    return padded.reshape(-1, LANES, *per_channel.shape[1:])


def _rows(tensor: Tensor) -> tuple[np.ndarray[Any, Any], int, int]:
    """[R, T, X] as (flat array, stride of r, stride of t): views along the last axis are read without a copy."""
    tensor = tensor.detach().float()
    if tensor.stride(2) != 1:
        tensor = tensor.contiguous()
    (num_tracks, num_steps, width), (by_track, by_step, _) = tensor.shape, tensor.stride()
    if tensor.numel() == 0:
        return np.empty(0, np.float32), 0, 0
    extent = (num_tracks - 1) * by_track + (num_steps - 1) * by_step + width
    return tensor.as_strided((extent,), (1,)).numpy(), by_track, by_step


def _flat(tensor: Tensor) -> np.ndarray[Any, Any]:
    flat: np.ndarray[Any, Any] = tensor.detach().float().contiguous().view(-1).numpy()
    return flat
