"""The selective scan on a CPU: parts of tracks and channels for threads, addresses for the kernels."""

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kinescan.errors import ShapeError
from kinescan.ops.huge_pages import empty_for_writing
from kinescan.ops.selective_scan import kernels
from kinescan.ops.selective_scan.kernels import LANES, LINE, STATE_SIZE
from kinescan.ops.selective_scan.operator import Gradients, ScanInputs, register_scan, register_scan_into

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


def _scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """As `reference.scan`, but half types are computed in float32: y in the dtype of u, the last state in float32."""
    y, last_state = _fresh(*inputs.u.shape), _fresh(inputs.u.shape[0], *inputs.A.shape)
    _fill(inputs, y, last_state)
    return y.to(inputs.u.dtype), last_state


def _scan_into(inputs: ScanInputs, y: Tensor, last_state: Tensor) -> None:
    """As `_scan`, into memory of the caller's: float32, without gaps."""
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "state")
    read = {name: _extent(x) for name, x in zip(names, inputs.tensors, strict=True) if x is not None}
    written = {"y": _extent(y), "the last state": _extent(last_state)}
    if inputs.state is not None and inputs.state.is_contiguous() and read["state"] == written["the last state"]:
        del read["state"]  # continues in place
    pairs = [(result, name) for result in written for name in read if _meet(written[result], read[name])]
    if _meet(written["y"], written["the last state"]):
        pairs.append(("y", "the last state"))
    if pairs:
        result, name = pairs[0]
        raise ShapeError(
            f"out: {result} shares memory with {name}. Give it memory of its own; only the state that comes in may be "
            "the one that is written, whole."
        )
    _fill(inputs, y, last_state)


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The memory from the first to behind the last entry of a tensor."""
    first = tensor.data_ptr()
    if tensor.is_contiguous():
        return first, first + tensor.nbytes
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (last + 1) * tensor.element_size()


def _meet(first: tuple[int, int], second: tuple[int, int]) -> bool:
    return first[0] < second[1] and second[0] < first[1]


def _fill(inputs: ScanInputs, y: Tensor, last_state: Tensor) -> None:
    u, state_size = inputs.u, inputs.A.shape[1]
    is_step = (u.shape[1], u.shape[2] % LANES, state_size) == (1, 0, STATE_SIZE)
    as_it_lies = is_step and last_state.data_ptr() % LINE == 0
    if as_it_lies and inputs.state is None:
        # A stream then needs one kernel, not two, one of which takes seven seconds to compile. Rates that grow may
        # overflow, and zero times infinity is not the zero that a start from nothing gives.
        as_it_lies = bool((inputs.A <= 0).all())
        if as_it_lies:
            inputs = inputs._replace(state=torch.zeros(u.shape[0], u.shape[2], state_size))
    memory = _Memory(inputs, grouped_rates=not as_it_lies)

    def run(part: _Part) -> None:
        if as_it_lies:
            kernels.step_as_it_lies(part.tracks, memory.sizes, *memory.addresses, y.data_ptr(), last_state.data_ptr())
            return
        room = torch.empty(kernels.scan_room(part.num_groups, state_size), dtype=torch.float32)
        outputs = (y.data_ptr(), last_state.data_ptr(), room.data_ptr())
        kernels.scan(part.tracks, part.groups, memory.sizes, *memory.addresses, *outputs)

    _run(run, list(_parts(u.shape, state_size, whole_tracks=as_it_lies)))


def _scan_backward(grad_y: Tensor, grad_state: Tensor | None, inputs: ScanInputs) -> Gradients:
    u, delta, A, B, C, D, z, delta_bias, _, state = inputs
    memory = _Memory(inputs)
    num_steps, num_channels, state_size = memory.sizes
    dy, dlast_state = memory.rows(grad_y), memory.flat(grad_state)
    parts = list(_parts(u.shape, state_size))
    num_track_parts, num_group_parts = parts[-1].track_part + 1, parts[-1].group_part + 1
    du, ddelta, dz, dstate = (_fresh(*(0,) if x is None else x.shape) for x in (u, delta, z, state))
    # Each part of the groups has its dB and dC, each part of the tracks its gradients of A, D and the bias.
    dB, dC = (torch.empty(num_group_parts, *B.shape, dtype=torch.float32) for _ in "BC")
    adjoints = torch.zeros(num_track_parts, _num_groups(num_channels), state_size, 2, LANES)
    sums = torch.zeros(num_track_parts, _num_groups(num_channels), 2, LANES)

    def run(part: _Part) -> None:
        room = torch.empty(kernels.backward_room(part.num_groups, num_steps, state_size), dtype=torch.float32)
        own = (part.track_part, part.groups[0])
        shared = (du, ddelta, dB[part.group_part], dC[part.group_part], dz, dstate, adjoints[own], sums[own], room)
        outputs = (x.data_ptr() for x in shared)
        kernels.scan_backward(part.tracks, part.groups, memory.sizes, *memory.addresses, dy, dlast_state, *outputs)

    _run(run, parts)
    dA = adjoints[:, :, :, 1].sum(dim=0).movedim(1, 2).reshape(-1, state_size)[:num_channels]  # [D, S]
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


class _Part(NamedTuple):
    """A thread's part: tracks and groups of channels, from the first to before the last; which part of each it is."""

    tracks: tuple[int, int]
    groups: tuple[int, int]
    track_part: int
    group_part: int

    @property
    def num_groups(self) -> int:
        return self.groups[1] - self.groups[0]


def _parts(shape: torch.Size, state_size: int, *, whole_tracks: bool = False) -> Iterator[_Part]:
    """Parts of the tracks, and, but for `whole_tracks`, of the channels too where threads outnumber the tracks."""
    num_tracks, num_steps, num_channels = shape
    work = num_tracks * num_steps * num_channels * state_size
    num_threads = max(1, min(torch.get_num_threads(), work // MIN_WORK))
    num_groups = _num_groups(num_channels)
    track_parts = min(num_tracks, num_threads)
    group_parts = 1 if whole_tracks else min(num_groups, -(-num_threads // track_parts))
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
    return empty_for_writing(shape, torch.float32)


class _Memory:
    """The arguments `sizes` and `u` to `state` of the kernels; keeps the memory behind the addresses alive."""

    def __init__(self, inputs: ScanInputs, *, grouped_rates: bool = True) -> None:
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, state = inputs
        self._kept: list[Tensor] = []
        self.sizes = (u.shape[1], u.shape[2], A.shape[1])
        bias = torch.zeros(u.shape[2]) if delta_bias is None else delta_bias
        rates = A.detach().float() * _LOG2E
        # A step as it lies is as fast as memory, whatever the rates.
        is_looked_up = delta_softplus and grouped_rates
        kind = kernels.kind_of_rates(self.flat(A), *A.shape) if is_looked_up else kernels.ANY
        if grouped_rates:
            rates = _groups(rates).movedim(1, 2)  # [groups, S, LANES]
        self.addresses = (
            self.rows(u),
            self.rows(delta),
            self.flat(rates),
            self.rows(B),
            self.rows(C),
            0 if D is None else self.flat(_groups(D)),
            (0, 0, 0) if z is None else self.rows(z),
            self.flat(_groups(bias)),
            delta_softplus,
            self.flat(state),
            kind,
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


scan = register_scan("selective_scan", _scan, _scan_backward)
scan_into = register_scan_into("selective_scan_into", _scan_into)
