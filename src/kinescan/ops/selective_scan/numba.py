"""The selective scan on a CPU as an operator that torch can differentiate, compile and export."""

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

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
    inputs = _Inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state)
    y, last_state = _fresh(*u.shape), _fresh(u.shape[0], *A.shape)

    def run(part: _Part) -> None:
        room = torch.empty(kernels.scan_room(part.num_groups, A.shape[1]), dtype=torch.float32)
        outputs = (y.data_ptr(), last_state.data_ptr(), room.data_ptr())
        kernels.scan(part.tracks, part.groups, inputs.sizes, *inputs.addresses, *outputs)

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
    inputs = _Inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state)
    num_steps, num_channels, num_places = inputs.sizes
    dy, dlast_state = inputs.rows(grad_y), inputs.flat(grad_state)
    parts = list(_parts(u.shape, num_places))
    num_track_parts, num_group_parts = parts[-1].track_part + 1, parts[-1].group_part + 1
    du, ddelta, dz, dstate = (_fresh(*(0,) if x is None else x.shape) for x in (u, delta, z, state))
    # Each share of the groups has its dB and dC, each share of the tracks its gradients of A, D and the bias.
    dB, dC = (torch.empty(num_group_parts, *B.shape, dtype=torch.float32) for _ in "BC")
    adjoints = torch.zeros(num_track_parts, _num_groups(num_channels), num_places, 2, LANES)
    sums = torch.zeros(num_track_parts, _num_groups(num_channels), 2, LANES)

    def run(part: _Part) -> None:
        room = torch.empty(kernels.backward_room(part.num_groups, num_steps, num_places), dtype=torch.float32)
        own = (part.track_part, part.groups[0])
        shared = (du, ddelta, dB[part.group_part], dC[part.group_part], dz, dstate, adjoints[own], sums[own], room)
        outputs = (x.data_ptr() for x in shared)
        kernels.scan_backward(part.tracks, part.groups, inputs.sizes, *inputs.addresses, dy, dlast_state, *outputs)

    _run(run, parts)
    dA = adjoints[:, :, :, 1].sum(dim=0).movedim(1, 2).reshape(-1, num_places)[:num_channels]  # [D, S]
    dD, dbias = sums.sum(dim=0).movedim(1, 0).reshape(2, -1)[:, :num_channels]
    dA, dD, dbias = (x.clone(memory_format=torch.contiguous_format) for x in (dA, dD, dbias))
    return (
        du.to(u.dtype),
        ddelta.to(delta.dtype),
        dA.to(A.dtype),
        dB.sum(dim=0).to(B.dtype),
        dC.sum(dim=0).to(C.dtype),
        dA.new_empty(0) if D is None else dD.to(D.dtype),
        dz if z is None else dz.to(z.dtype),
        dA.new_empty(0) if delta_bias is None else dbias.to(delta_bias.dtype),
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
    """A thread's share: tracks and groups of channels, from the first to before the last; which share of each it is."""

    tracks: tuple[int, int]
    groups: tuple[int, int]
    track_part: int
    group_part: int

    @property
    def num_groups(self) -> int:
        return self.groups[1] - self.groups[0]


def _parts(shape: torch.Size, num_places: int) -> Iterator[_Part]:
    """Shares of the tracks, and where there are fewer tracks than threads, of the channels too."""
    num_tracks, num_steps, num_channels = shape
    work = num_tracks * num_steps * num_channels * num_places
    num_threads = max(1, min(torch.get_num_threads(), work // MIN_WORK))
    num_groups = _num_groups(num_channels)
    track_parts = min(num_tracks, num_threads)
    group_parts = min(num_groups, -(-num_threads // track_parts))
    for i in range(track_parts):
        tracks = (num_tracks * i // track_parts, num_tracks * (i + 1) // track_parts)
        for k in range(group_parts):
            groups = (num_groups * k // group_parts, num_groups * (k + 1) // group_parts)
            yield _Part(tracks, groups, i, k)


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


def _num_groups(num_channels: int) -> int:
    return -(-num_channels // LANES)


def _fresh(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32)


class _Inputs:
    """The arguments `sizes` and `u` to `state` of the kernels; keeps the memory behind the addresses alive."""

    def __init__(
        self,
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
    ) -> None:
        self._kept: list[Tensor] = []
        self.sizes = (u.shape[1], u.shape[2], A.shape[1])
        bias = torch.zeros(u.shape[2]) if delta_bias is None else delta_bias
        self.addresses = (
            self.rows(u),
            self.rows(delta),
            self.flat(_groups(A.detach().float() * _LOG2E).movedim(1, 2)),  # [groups, S, LANES]
            self.rows(B),
            self.rows(C),
            0 if D is None else self.flat(_groups(D)),
            (0, 0, 0) if z is None else self.rows(z),
            self.flat(_groups(bias)),
            delta_softplus,
            self.flat(state),
        )

    def rows(self, tensor: Tensor) -> tuple[int, int, int]:
        """[R, T, X] as (address, stride of r, stride of t): a view with a dense last axis is read without a copy."""
        tensor = tensor.detach().float()
        tensor = tensor if tensor.stride(2) == 1 else tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr(), tensor.stride(0), tensor.stride(1)

    def flat(self, tensor: Tensor | None) -> int:
        """The address of a tensor without gaps; 0 for None."""
        if tensor is None:
            return 0
        self._kept.append(tensor.detach().float().contiguous())
        return self._kept[-1].data_ptr()


def _groups(per_channel: Tensor) -> Tensor:
    """[D, ...] as [groups, LANES, ...], padded with zeros."""
    num_channels = per_channel.shape[0]
    rows = per_channel.detach().float().reshape(num_channels, -1)
    padded = F.pad(rows, (0, 0, 0, -num_channels % LANES))
    return padded.reshape(-1, LANES, *per_channel.shape[1:])
