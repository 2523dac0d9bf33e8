"""A long scan of few tracks on a GPU, cut into splits of time that are scanned side by side.

Each split is run from zeros first, all at once. What a split makes of a state h that comes in is h times its decay,
which follows from the sum of its step sizes, plus this end; so the states between splits follow one after the other,
and all splits are then scanned as if they were tracks (`triton.py`). Gradients of states go back the same way.

Source: as `blockwise.py`, the passes of a blocked prefix sum (Blelloch, 1990, section 1.5).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kinescan.ops.selective_scan.operator import ScanInputs
from kinescan.ops.selective_scan.triton_steps import (
    advance,
    dense,
    flat,
    launch_sizes,
    read,
    read_or_none,
    sigmoid,
    step_size,
    strides_of,
    when,
    write,
)

PROGRAMS = 1024
"""Programs of four warps that are wanted of a long scan: some eight for each processor of a large GPU. Chosen by
arithmetic: VideoMamba's scan of 32 frames, 8 clips and 1,152 channels has 72 otherwise, each of 6,273 steps. Splits of
time cost a second pass over the inputs."""
FEWEST_STEPS = 128
"""Of a split of time."""


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["num_splits", "split_steps"], do_not_specialize_on_alignment=["rates_ptr"]
)
def _run_splits(  # type: ignore[no-untyped-def]
    u_ptr, delta_ptr, rates_ptr, B_ptr, bias_ptr, ends_ptr, sums_ptr,
    num_steps, num_channels, num_splits, split_steps, u_track, u_step, delta_track, delta_step, B_track, B_step,
    SOFTPLUS: tl.constexpr, STATE_SIZE: tl.constexpr, WIDE_STATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What a split of time makes of a state of zeros, ends_ptr [R * splits, D, S].

    sums_ptr: [R * splits, D], the sum of its step sizes, which says how much of a state is left after it.
    """
    num_blocks = tl.cdiv(num_channels, BLOCK)
    split = (tl.program_id(0) // num_blocks).to(tl.int64)
    track, first, count = when(split, num_splits, split_steps, num_steps)
    channels = (tl.program_id(0) % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    positions = tl.arange(0, WIDE_STATE)
    is_channel, is_position = channels < num_channels, positions < STATE_SIZE
    in_state = is_position[:, None] & is_channel[None, :]
    rates = read(rates_ptr, positions[:, None] * num_channels + channels[None, :], in_state)
    bias = read_or_none(bias_ptr, channels, is_channel)
    u_ptr += track * u_track + first * u_step
    delta_ptr += track * delta_track + first * delta_step
    B_ptr += track * B_track + first * B_step
    h = tl.zeros((WIDE_STATE, BLOCK), tl.float32)
    summed = tl.zeros((BLOCK,), tl.float32)
    for _t in range(0, count):
        u = read(u_ptr, channels, is_channel)
        _, step = step_size(delta_ptr, channels, is_channel, bias, SOFTPLUS)
        h = advance(h, rates, u, step, read(B_ptr, positions, is_position))
        summed += step
        u_ptr += u_step
        delta_ptr += delta_step
        B_ptr += B_step
    write(ends_ptr, (split * num_channels + channels)[None, :] * STATE_SIZE + positions[:, None], h, in_state)
    write(sums_ptr, split * num_channels + channels, summed, is_channel)


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["num_splits", "split_steps"], do_not_specialize_on_alignment=["rates_ptr"]
)
def _run_splits_back(  # type: ignore[no-untyped-def]
    dy_ptr, delta_ptr, rates_ptr, C_ptr, z_ptr, bias_ptr, ends_ptr,
    num_steps, num_channels, num_splits, split_steps,
    dy_track, dy_step, delta_track, delta_step, C_track, C_step, z_track, z_step,
    SOFTPLUS: tl.constexpr, STATE_SIZE: tl.constexpr, WIDE_STATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of the state before a split of time that its own outputs alone give, ends_ptr [R * splits, D, S]."""
    num_blocks = tl.cdiv(num_channels, BLOCK)
    split = (tl.program_id(0) // num_blocks).to(tl.int64)
    track, first, count = when(split, num_splits, split_steps, num_steps)
    channels = (tl.program_id(0) % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    positions = tl.arange(0, WIDE_STATE)
    is_channel, is_position = channels < num_channels, positions < STATE_SIZE
    in_state = is_position[:, None] & is_channel[None, :]
    rates = read(rates_ptr, positions[:, None] * num_channels + channels[None, :], in_state)
    bias = read_or_none(bias_ptr, channels, is_channel)
    dy_ptr += track * dy_track + (first + count - 1) * dy_step
    delta_ptr += track * delta_track + (first + count - 1) * delta_step
    C_ptr += track * C_track + (first + count - 1) * C_step
    if z_ptr is not None:
        z_ptr += track * z_track + (first + count - 1) * z_step
    g = tl.zeros((WIDE_STATE, BLOCK), tl.float32)
    for _t in range(0, count):
        dy = read(dy_ptr, channels, is_channel)
        if z_ptr is not None:
            gate = read(z_ptr, channels, is_channel)
            dy *= gate * sigmoid(gate)
            z_ptr -= z_step
        _, step = step_size(delta_ptr, channels, is_channel, bias, SOFTPLUS)
        g = tl.exp2(step[None, :] * rates) * (g + dy[None, :] * read(C_ptr, positions, is_position)[:, None])
        dy_ptr -= dy_step
        delta_ptr -= delta_step
        C_ptr -= C_step
    write(ends_ptr, (split * num_channels + channels)[None, :] * STATE_SIZE + positions[:, None], g, in_state)


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["num_splits"], do_not_specialize_on_alignment=["rates_ptr"]
)
def _link_splits(  # type: ignore[no-untyped-def]
    first_ptr, ends_ptr, sums_ptr, rates_ptr, starts_ptr, num_channels, num_splits,
    STATE_SIZE: tl.constexpr, WIDE_STATE: tl.constexpr, BLOCK: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """The state that each split of a track starts from, starts_ptr [R * splits, D, S].

    first_ptr: [R, D, S], of the first split, or None for zeros. BACK: from the last split to the first, for gradients.
    """
    num_blocks = tl.cdiv(num_channels, BLOCK)
    track = (tl.program_id(0) // num_blocks).to(tl.int64)
    channels = (tl.program_id(0) % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    positions = tl.arange(0, WIDE_STATE)
    is_channel, is_position = channels < num_channels, positions < STATE_SIZE
    in_state = is_position[:, None] & is_channel[None, :]
    rates = read(rates_ptr, positions[:, None] * num_channels + channels[None, :], in_state)
    in_row = channels[None, :] * STATE_SIZE + positions[:, None]
    h = tl.zeros((WIDE_STATE, BLOCK), tl.float32)
    if first_ptr is not None:
        h = read(first_ptr, track * num_channels * STATE_SIZE + in_row, in_state)
    for i in range(0, num_splits):
        split = track * num_splits + i
        if BACK:
            split = track * num_splits + num_splits - 1 - i
        at = split * num_channels * STATE_SIZE + in_row
        write(starts_ptr, at, h, in_state)
        summed = read(sums_ptr, split * num_channels + channels, is_channel)
        h = tl.exp2(summed[None, :] * rates) * h + read(ends_ptr, at, in_state)


def split_time(num_tracks: int, num_steps: int, num_blocks: int) -> tuple[int, int]:
    """In how many splits the time of a track is scanned side by side, and the steps of a split.

    One, but where a long scan of few tracks would leave most of a GPU idle.

    Args:
        num_tracks: R.
        num_steps: T.
        num_blocks: blocks of channels.
    """
    wanted = PROGRAMS // (num_tracks * num_blocks)
    num_splits = max(1, min(wanted, num_steps // FEWEST_STEPS))
    split_steps = triton.cdiv(num_steps, num_splits)
    return triton.cdiv(num_steps, split_steps), split_steps


def split_starts(inputs: ScanInputs, rates: Tensor, num_splits: int, split_steps: int) -> tuple[Tensor, Tensor]:
    """The states before all splits, [R * splits, D, S], and the sums of their step sizes, [R * splits, D].

    As in `blockwise.py`: all splits from zeros, side by side; then from split to split.
    """
    num_tracks, num_steps, num_channels = inputs.u.shape
    sizes = launch_sizes(*inputs.A.shape)
    num_blocks = triton.cdiv(num_channels, sizes["BLOCK"])
    rows = [dense(x) for x in (inputs.u, inputs.delta, inputs.B)]
    ends = rates.new_empty(num_tracks * num_splits, *inputs.A.shape)
    sums = rates.new_empty(num_tracks * num_splits, num_channels)
    _run_splits[(num_tracks * num_splits * num_blocks,)](
        *rows[:2], rates, rows[2], flat(inputs.delta_bias), ends, sums,
        num_steps, num_channels, num_splits, split_steps, *strides_of(rows), SOFTPLUS=inputs.delta_softplus, **sizes,
    )  # fmt: skip
    return _linked(inputs.state, ends, sums, rates, num_splits, sizes, back=False), sums


def split_gradients(
    grad_y: Tensor,
    grad_state: Tensor | None,
    inputs: ScanInputs,
    rates: Tensor,
    sums: Tensor,
    num_splits: int,
    split_steps: int,
) -> Tensor:
    """The gradients of the states after all splits, [R * splits, D, S]: as `split_starts`, from the end."""
    num_tracks, num_steps, num_channels = inputs.u.shape
    sizes = launch_sizes(*inputs.A.shape)
    num_blocks = triton.cdiv(num_channels, sizes["BLOCK"])
    rows = [dense(x) for x in (grad_y, inputs.delta, inputs.C, inputs.z)]
    ends = rates.new_empty(num_tracks * num_splits, *inputs.A.shape)
    _run_splits_back[(num_tracks * num_splits * num_blocks,)](
        *rows[:2], rates, *rows[2:], flat(inputs.delta_bias), ends,
        num_steps, num_channels, num_splits, split_steps, *strides_of(rows), SOFTPLUS=inputs.delta_softplus, **sizes,
    )  # fmt: skip
    return _linked(grad_state, ends, sums, rates, num_splits, sizes, back=True)


def _linked(
    first: Tensor | None,
    ends: Tensor,
    sums: Tensor,
    rates: Tensor,
    num_splits: int,
    sizes: dict[str, int],
    *,
    back: bool,
) -> Tensor:
    starts = torch.empty_like(ends)
    num_tracks, num_channels = len(ends) // num_splits, ends.shape[1]
    _link_splits[(num_tracks * triton.cdiv(num_channels, sizes["BLOCK"]),)](
        flat(first), ends, sums, rates, starts, num_channels, num_splits, BACK=back, **sizes
    )
    return starts
