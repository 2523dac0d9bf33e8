"""The selective scan on a GPU: a program for a block of channels, whose states never leave the registers.

Legend as in `reference.py`; `rates` is A log2(e), so that exp(Delta A) = 2**(Delta rates), stored as [S, D].
What belongs to a state is [S, BLOCK] in a program. A thread then has one channel with all its positions: sums over
positions (y, and the gradients of u and Delta) need no exchange between threads, and neighbours read neighbouring
channels. The backward pass reads the inputs alone and computes the states of a chunk of steps again before it goes back
through them. A program takes a part of the tracks, so that the gradients of A, D and the bias add up in registers;
what several programs add to is written in parts that torch sums up. There are no atomics: results are the same every
time. A long scan of few tracks is cut into splits of time (`triton_splits.py`) that are scanned as if they were tracks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kinescan.ops.selective_scan.operator import Gradients, ScanInputs
from kinescan.ops.selective_scan.triton_splits import split_gradients, split_starts, split_time
from kinescan.ops.selective_scan.triton_steps import (
    advance,
    dense,
    flat,
    launch_sizes,
    rates_of,
    read,
    read_or_none,
    sigmoid,
    step_size,
    strides_of,
    when,
    write,
)

LN2 = tl.constexpr(0.6931471805599453)
KEPT_BY_A_THREAD = 128
"""States, times their positions, that the backward pass keeps in registers; of 255 that there are."""
MAX_CHUNK = 4
"""Steps whose states the backward pass keeps. With twice the warps of the forward pass, it then spills 4 bytes on sm_80
(576 with 8 steps and as many warps) and compiles in a quarter of the time."""
TRACK_PARTS = 128
"""Groups of the tracks in the backward pass: enough programs for a large GPU, few enough parts to sum up."""


# Splits differ with the number of tracks, and are not to be compiled anew.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["num_splits", "split_steps"], do_not_specialize_on_alignment=["rates_ptr"]
)
def _scan(  # type: ignore[no-untyped-def]
    u_ptr, delta_ptr, rates_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, state_ptr, y_ptr, last_ptr,
    num_steps, num_channels, num_splits, split_steps,
    u_track, u_step, delta_track, delta_step, B_track, B_step, C_track, C_step, z_track, z_step,
    SOFTPLUS: tl.constexpr, STATE_SIZE: tl.constexpr, WIDE_STATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A split of time of one track and one block of channels, step by step. `x_track` and `x_step` are strides.

    state_ptr: [R * splits, D, S], or None where there is one split that starts from zeros.
    """
    num_blocks = tl.cdiv(num_channels, BLOCK)
    split = (tl.program_id(0) // num_blocks).to(tl.int64)
    track, first, count = when(split, num_splits, split_steps, num_steps)
    channels = (tl.program_id(0) % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    positions = tl.arange(0, WIDE_STATE)
    is_channel, is_position = channels < num_channels, positions < STATE_SIZE
    in_state = is_position[:, None] & is_channel[None, :]
    rates = read(rates_ptr, positions[:, None] * num_channels + channels[None, :], in_state)
    h = tl.zeros((WIDE_STATE, BLOCK), tl.float32)
    if state_ptr is not None:
        h = read(state_ptr, (split * num_channels + channels)[None, :] * STATE_SIZE + positions[:, None], in_state)
    bias = read_or_none(bias_ptr, channels, is_channel)
    if D_ptr is not None:
        skip = read(D_ptr, channels, is_channel)
    u_ptr += track * u_track + first * u_step
    delta_ptr += track * delta_track + first * delta_step
    B_ptr += track * B_track + first * B_step
    C_ptr += track * C_track + first * C_step
    y_ptr += (track * num_steps + first) * num_channels
    if z_ptr is not None:
        z_ptr += track * z_track + first * z_step
    for _t in range(0, count):
        u = read(u_ptr, channels, is_channel)
        _, step = step_size(delta_ptr, channels, is_channel, bias, SOFTPLUS)
        into = read(B_ptr, positions, is_position)
        out_of = read(C_ptr, positions, is_position)
        h = advance(h, rates, u, step, into)
        y = tl.sum(h * out_of[:, None], 0)
        if D_ptr is not None:
            y += skip * u
        if z_ptr is not None:
            gate = read(z_ptr, channels, is_channel)
            y *= gate * sigmoid(gate)
            z_ptr += z_step
        write(y_ptr, channels, y, is_channel)
        u_ptr += u_step
        delta_ptr += delta_step
        B_ptr += B_step
        C_ptr += C_step
        y_ptr += num_channels
    last_at = (track * num_channels + channels)[None, :] * STATE_SIZE + positions[:, None]
    write(last_ptr, last_at, h, in_state & (first + count == num_steps))


@triton.jit  # type: ignore[untyped-decorator]
def _save_starts(  # type: ignore[no-untyped-def]
    starts_ptr, h, rates, bias, u_ptr, delta_ptr, B_ptr, u_step, delta_step, B_step, num_chunks,
    part, by_position, num_channels, is_channel, is_position, in_state,
    SOFTPLUS: tl.constexpr, STATE_SIZE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Writes the state before each chunk of steps. The pointers are at the first step and channel of the program."""
    for chunk in range(0, num_chunks):
        write(starts_ptr, (part * num_chunks + chunk) * STATE_SIZE * num_channels + by_position, h, in_state)
        if chunk + 1 < num_chunks:
            for t in range(chunk * CHUNK, (chunk + 1) * CHUNK):
                u = read(u_ptr, t * u_step, is_channel)
                _, step = step_size(delta_ptr, t * delta_step, is_channel, bias, SOFTPLUS)
                h = advance(h, rates, u, step, read(B_ptr, t * B_step, is_position))


@triton.jit
def _through_gate(dy, h, u, out_of, skip, z_ptr, z_at, dz_ptr, row, mask):  # type: ignore[no-untyped-def]
    """The gradient of what a gate lets through; writes that of the gate."""
    if z_ptr is not None:
        gate = read(z_ptr, z_at, mask)
        opened = sigmoid(gate)
        y = tl.sum(h * out_of[:, None], 0)
        if skip is not None:
            y += skip * u
        write(dz_ptr, row, dy * y * opened * (1.0 + gate * (1.0 - opened)), mask)
        dy *= gate * opened
    return dy


@triton.jit  # type: ignore[untyped-decorator]
def _back_through_step(  # type: ignore[no-untyped-def]
    g, h, before, rates, u, raw, step, into, out_of, dy, skip, SOFTPLUS: tl.constexpr
):  # fmt: skip
    """Back through a step: gradients of the state before it, of A, of B and C [S, 2], of u and of the step size.

    g: that of the state after it, without what the step's own output adds.
    """
    g += dy[None, :] * out_of[:, None]
    # Both sums at once: threads meet half as often.
    dBC = tl.sum(tl.join(g * (step * u)[None, :], dy[None, :] * h), 1)
    dwrite = tl.sum(g * into[:, None], 0)
    g *= tl.exp2(step[None, :] * rates)
    through = g * before
    dstep = tl.sum(through * rates, 0) * LN2 + dwrite * u
    if SOFTPLUS:
        dstep *= sigmoid(raw)
    du = dwrite * step
    if skip is not None:
        du += dy * skip
    return g, through * step[None, :], dBC, du, dstep


@triton.jit  # type: ignore[untyped-decorator]
def _states_of_chunk(  # type: ignore[no-untyped-def]
    h, rates, bias, u_ptr, u_at, u_step, delta_ptr, delta_at, delta_step, B_ptr, B_at, B_step,
    first_step, past_step, is_channel, is_position, SOFTPLUS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The states before each step of a chunk, and the one after the last: a tuple of CHUNK + 1."""
    states = (h,)
    for j in tl.static_range(CHUNK):
        t = first_step + j
        here, in_time = is_channel & (t < past_step), is_position & (t < past_step)
        u = read(u_ptr, u_at + t * u_step, here)
        _, step = step_size(delta_ptr, delta_at + t * delta_step, here, bias, SOFTPLUS)
        h = advance(h, rates, u, step, read(B_ptr, B_at + t * B_step, in_time))
        states = states + (h,)  # type: ignore[assignment]  # noqa: RUF005  (Triton knows only this)
    return states


@triton.jit  # type: ignore[untyped-decorator]
def _step_back(  # type: ignore[no-untyped-def]
    g, h, before, rates, bias, skip, dy_ptr, dy_at, u_ptr, u_at, delta_ptr, delta_at,
    B_ptr, B_at, C_ptr, C_at, z_ptr, z_at, du_ptr, ddelta_ptr, dz_ptr, row, dBC_ptr, at_step, here, in_time,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Reads a step and goes back through it; writes the gradients of u, of the step size, of the gate, of B and C.

    Returns:
        The gradient of the state before it, and what it adds to those of A, D and the bias.
    """
    u = read(u_ptr, u_at, here)
    raw, step = step_size(delta_ptr, delta_at, here, bias, SOFTPLUS)
    into, out_of = read(B_ptr, B_at, in_time), read(C_ptr, C_at, in_time)
    dy = read(dy_ptr, dy_at, here)
    dy = _through_gate(dy, h, u, out_of, skip, z_ptr, z_at, dz_ptr, row, here)
    g, through, dBC, du, dstep = _back_through_step(g, h, before, rates, u, raw, step, into, out_of, dy, skip, SOFTPLUS)
    write(dBC_ptr, at_step[:, None] * 2 + tl.arange(0, 2)[None, :], dBC, in_time[:, None])
    write(du_ptr, row, du, here)
    write(ddelta_ptr, row, dstep, here)
    return g, through, dy * u, tl.where(here, dstep, 0.0)


# A batch with fewer tracks is not to be compiled anew, which takes a minute.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["num_tracks", "num_parts", "num_splits", "split_steps"],
    do_not_specialize_on_alignment=["rates_ptr", "starts_ptr", "dA_ptr"],
)
def _scan_backward(  # type: ignore[no-untyped-def]
    dy_ptr, dlast_ptr, u_ptr, delta_ptr, rates_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, state_ptr,
    du_ptr, ddelta_ptr, dBC_ptr, dz_ptr, dstate_ptr, dA_ptr, dD_ptr, dbias_ptr, starts_ptr,
    num_tracks, num_steps, num_channels, num_parts, num_splits, split_steps,
    dy_track, dy_step, u_track, u_step, delta_track, delta_step, B_track, B_step, C_track, C_step, z_track, z_step,
    SOFTPLUS: tl.constexpr, STATE_SIZE: tl.constexpr, WIDE_STATE: tl.constexpr, BLOCK: tl.constexpr,
    CHUNK: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """A part of the splits (every num_parts-th) and one block of channels.

    dlast_ptr and state_ptr: [R * splits, D, S]; dstate_ptr: [R, D, S] or None;
    dBC_ptr: [blocks, R, T, S, 2], gradients of B and of C; dA_ptr: [parts, S, D]; dD_ptr and dbias_ptr: [parts, D];
    starts_ptr: [parts, chunks, S, D], states before each chunk of a split, or None where there is one chunk.
    FAR: steps of a track may lie 2**31 entries or more apart, as where tracks are the inner axis; costs registers.
    """
    num_blocks = tl.cdiv(num_channels, BLOCK)
    part = (tl.program_id(0) // num_blocks).to(tl.int64)
    block = (tl.program_id(0) % num_blocks).to(tl.int64)
    channels, positions = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, WIDE_STATE)
    is_channel, is_position = channels < num_channels, positions < STATE_SIZE
    in_state = is_position[:, None] & is_channel[None, :]
    by_position = positions[:, None] * num_channels + channels[None, :]
    rates = read(rates_ptr, by_position, in_state)
    bias, skip = read_or_none(bias_ptr, channels, is_channel), read_or_none(D_ptr, channels, is_channel)
    if FAR:
        dy_step, u_step = tl.cast(dy_step, tl.int64), tl.cast(u_step, tl.int64)
        delta_step, z_step = tl.cast(delta_step, tl.int64), tl.cast(z_step, tl.int64)
        B_step, C_step = tl.cast(B_step, tl.int64), tl.cast(C_step, tl.int64)
    num_chunks = tl.cdiv(split_steps, CHUNK)
    dA = tl.zeros((WIDE_STATE, BLOCK), tl.float32)
    dD, dbias = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for i in range(0, tl.cdiv(num_tracks * num_splits - part, num_parts)):
        split = part + i * num_parts
        track, first, count = when(split, num_splits, split_steps, num_steps)
        state_at = channels[None, :] * STATE_SIZE + positions[:, None]
        u_at = track * u_track + first * u_step + channels
        delta_at = track * delta_track + first * delta_step + channels
        B_at, C_at = track * B_track + first * B_step + positions, track * C_track + first * C_step + positions
        dy_at, z_at = track * dy_track + first * dy_step + channels, track * z_track + first * z_step + channels
        track_start = track * num_steps + first
        h = tl.zeros((WIDE_STATE, BLOCK), tl.float32)
        if state_ptr is not None:
            h = read(state_ptr, split * num_channels * STATE_SIZE + state_at, in_state)
        if starts_ptr is not None:
            _save_starts(
                starts_ptr, h, rates, bias, u_ptr + u_at, delta_ptr + delta_at, B_ptr + B_at,
                u_step, delta_step, B_step, num_chunks, part, by_position, num_channels,
                is_channel, is_position, in_state, SOFTPLUS, STATE_SIZE, CHUNK,
            )  # fmt: skip
            tl.debug_barrier()  # what some threads wrote, others may read
        g = tl.zeros((WIDE_STATE, BLOCK), tl.float32)
        if dlast_ptr is not None:
            g = read(dlast_ptr, split * num_channels * STATE_SIZE + state_at, in_state)
        for from_end in range(1, num_chunks + 1):
            chunk = num_chunks - from_end
            if starts_ptr is not None:
                h = read(starts_ptr, (part * num_chunks + chunk) * STATE_SIZE * num_channels + by_position, in_state)
            states = _states_of_chunk(
                h, rates, bias, u_ptr, u_at, u_step, delta_ptr, delta_at, delta_step, B_ptr, B_at, B_step,
                chunk * CHUNK, count, is_channel, is_position, SOFTPLUS, CHUNK,
            )  # fmt: skip
            for j in tl.static_range(CHUNK):
                t = chunk * CHUNK + CHUNK - 1 - j
                at_step = (block * num_tracks * num_steps + track_start + t) * STATE_SIZE + positions
                g, through, through_skip, through_bias = _step_back(
                    g, states[CHUNK - j], states[CHUNK - 1 - j], rates, bias, skip,
                    dy_ptr, dy_at + t * dy_step, u_ptr, u_at + t * u_step, delta_ptr, delta_at + t * delta_step,
                    B_ptr, B_at + t * B_step, C_ptr, C_at + t * C_step, z_ptr, z_at + t * z_step,
                    du_ptr, ddelta_ptr, dz_ptr, (track_start + t) * num_channels + channels, dBC_ptr, at_step,
                    is_channel & (t < count), is_position & (t < count), SOFTPLUS,
                )  # fmt: skip
                dA, dD, dbias = dA + through, dD + through_skip, dbias + through_bias
        if dstate_ptr is not None:
            write(dstate_ptr, track * num_channels * STATE_SIZE + state_at, g, in_state & (first == 0))
        if starts_ptr is not None:
            tl.debug_barrier()
    write(dA_ptr, part * STATE_SIZE * num_channels + by_position, dA, in_state)
    write(dD_ptr, part * num_channels + channels, dD, is_channel)
    write(dbias_ptr, part * num_channels + channels, dbias, is_channel)


def backward_sizes(num_steps: int, num_channels: int, state_size: int) -> dict[str, int]:
    """Those of `_scan_backward`."""
    sizes = launch_sizes(num_channels, state_size)
    of_a_thread = sizes["WIDE_STATE"] * sizes["BLOCK"] // (32 * sizes["num_warps"])
    kept = max(1, KEPT_BY_A_THREAD // max(1, of_a_thread))
    chunk = min(MAX_CHUNK, kept, triton.next_power_of_2(num_steps))
    return {**sizes, "CHUNK": chunk, "num_warps": 2 * sizes["num_warps"]}


def scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """As `reference.scan`, computed in float32: y [R, T, D] in the dtype of u, the last state [R, D, S] float32."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, state = inputs
    num_tracks, num_steps, num_channels = u.shape
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    last_state = torch.empty(num_tracks, *A.shape, dtype=torch.float32, device=u.device)
    sizes = launch_sizes(*A.shape)
    num_blocks = triton.cdiv(num_channels, sizes["BLOCK"])
    num_splits, split_steps = split_time(num_tracks, num_steps, num_blocks)
    rows = [dense(x) for x in (u, delta, B, C, z)]
    rates, starts = rates_of(A), flat(state)
    with torch.cuda.device_of(u):
        if num_splits > 1:
            starts, _ = split_starts(inputs, rates, num_splits, split_steps)
        _scan[(num_tracks * num_splits * num_blocks,)](
            *rows[:2], rates, *rows[2:4], flat(D), rows[4], flat(delta_bias), starts, y, last_state,
            num_steps, num_channels, num_splits, split_steps, *strides_of(rows), SOFTPLUS=delta_softplus, **sizes,
        )  # fmt: skip
    return y, last_state


def scan_backward(grad_y: Tensor, grad_state: Tensor | None, inputs: ScanInputs) -> Gradients:
    """Gradients of `scan`, summed in float32, in shapes and dtypes of the inputs.

    Takes those of y [R, T, D] and, or None, of the last state [R, D, S].

    Beside them it needs room for the parts of dB and dC: 2 S / BLOCK float32 for each entry of u.
    """
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, state = inputs
    num_tracks, num_steps, num_channels = u.shape
    num_blocks = triton.cdiv(num_channels, launch_sizes(*A.shape)["BLOCK"])
    num_splits, split_steps = split_time(num_tracks, num_steps, num_blocks)
    sizes = backward_sizes(split_steps, *A.shape)
    num_parts = min(num_tracks * num_splits, TRACK_PARTS)
    num_chunks = triton.cdiv(split_steps, sizes["CHUNK"])

    def fresh(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=u.device)

    du, ddelta = torch.empty(u.shape, dtype=u.dtype, device=u.device), torch.empty_like(delta.contiguous())
    dz, dstate = (None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (z, state))
    dBC, dA = fresh(num_blocks, *B.shape, 2), fresh(num_parts, A.shape[1], num_channels)
    dD, dbias = fresh(num_parts, num_channels), fresh(num_parts, num_channels)
    starts = fresh(num_parts, num_chunks, A.shape[1], num_channels) if num_chunks > 1 else None
    rows = [dense(x) for x in (grad_y, u, delta, B, C, z)]
    strides = strides_of(rows)
    is_far = max(strides[1::2]) * num_steps >= 2**31
    rates, before, after = rates_of(A), flat(state), flat(grad_state)
    with torch.cuda.device_of(u):
        if num_splits > 1:
            before, sums = split_starts(inputs, rates, num_splits, split_steps)
            after = split_gradients(grad_y, grad_state, inputs, rates, sums, num_splits, split_steps)
        _scan_backward[(num_parts * num_blocks,)](
            rows[0], after, *rows[1:3], rates, *rows[3:5], flat(D), rows[5], flat(delta_bias),
            before, du, ddelta, dBC, dz, dstate, dA, dD, dbias, starts, num_tracks, num_steps, num_channels, num_parts,
            num_splits, split_steps, *strides, SOFTPLUS=delta_softplus, FAR=is_far, **sizes,
        )  # fmt: skip
    dB, dC = dBC.sum(0).unbind(-1)
    return (
        du,
        ddelta,
        dA.sum(0).t().contiguous().to(A.dtype),
        dB.contiguous().to(B.dtype),
        dC.contiguous().to(C.dtype),
        fresh(0) if D is None else dD.sum(0).to(D.dtype),
        fresh(0) if dz is None else dz,
        fresh(0) if delta_bias is None else dbias.sum(0).to(delta_bias.dtype),
        fresh(0) if dstate is None else dstate,
    )
