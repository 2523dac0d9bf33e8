"""The selective scan on a GPU: a program for a block of channels, whose states never leave the registers.

Legend as in `reference.py`; `rates` is A log2(e), so that exp(Delta A) = 2**(Delta rates), stored as [S, D].
What belongs to a state is [S, BLOCK] in a program. A thread then has one channel with all its positions: sums over
positions (y, and the gradients of u and Delta) need no exchange between threads, and neighbours read neighbouring
channels. The backward pass reads the inputs alone and computes the states of a chunk of steps again before it goes back
through them. A program takes a part of the tracks, so that the gradients of A, D and the bias add up in registers;
what several programs add to is written in parts that torch sums up. There are no atomics: results are the same every
time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kinescan.ops.selective_scan.operator import Gradients, ScanInputs

LOG2E = 1.4426950408889634
LN2 = tl.constexpr(0.6931471805599453)
MAX_BLOCK = 128
"""Channels of a program: four warps."""
STATE_SIZE_OF_A_THREAD = 32
"""Where states have more positions, a channel is shared by threads, and a program has fewer channels."""
KEPT_BY_A_THREAD = 128
"""States, times their positions, that the backward pass keeps in registers; of 255 that there are."""
MAX_CHUNK = 4
"""Steps whose states the backward pass keeps. With twice the warps of the forward pass, it then spills 4 bytes on sm_80
(576 with 8 steps and as many warps) and compiles in a quarter of the time."""
TRACK_PARTS = 128
"""Shares of the tracks in the backward pass: enough programs for a large GPU, few enough parts to sum up."""


@triton.jit
def _softplus(x):  # type: ignore[no-untyped-def]
    small = tl.exp(-tl.abs(x))
    one_more = 1.0 + small
    # log(1 + small) without the error of the rounded sum
    is_lost = one_more == 1.0
    quotient = small / tl.where(is_lost, 1.0, one_more - 1.0)
    return tl.maximum(x, 0.0) + tl.where(is_lost, small, tl.log(one_more) * quotient)


@triton.jit
def _sigmoid(x):  # type: ignore[no-untyped-def]
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _read(pointer, offsets, mask):  # type: ignore[no-untyped-def]
    return tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _write(pointer, offsets, value, mask):  # type: ignore[no-untyped-def]
    tl.store(pointer + offsets, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize_on_alignment=["rates_ptr"])  # type: ignore[untyped-decorator]
def _scan(  # type: ignore[no-untyped-def]
    u_ptr, delta_ptr, rates_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, state_ptr, y_ptr, last_ptr,
    num_steps, num_channels,
    u_track, u_step, delta_track, delta_step, B_track, B_step, C_track, C_step, z_track, z_step,
    SOFTPLUS: tl.constexpr, STATE_SIZE: tl.constexpr, WIDE_STATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One track and one block of channels, step by step. `x_track` and `x_step` are strides."""
    num_blocks = tl.cdiv(num_channels, BLOCK)
    track = (tl.program_id(0) // num_blocks).to(tl.int64)
    channels = (tl.program_id(0) % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    positions = tl.arange(0, WIDE_STATE)
    is_channel, is_position = channels < num_channels, positions < STATE_SIZE
    in_state = is_position[:, None] & is_channel[None, :]
    rates = _read(rates_ptr, positions[:, None] * num_channels + channels[None, :], in_state)
    state_at = (track * num_channels + channels)[None, :] * STATE_SIZE + positions[:, None]
    h = tl.zeros((WIDE_STATE, BLOCK), tl.float32)
    if state_ptr is not None:
        h = _read(state_ptr, state_at, in_state)
    if bias_ptr is not None:
        bias = _read(bias_ptr, channels, is_channel)
    if D_ptr is not None:
        skip = _read(D_ptr, channels, is_channel)
    u_ptr += track * u_track
    delta_ptr += track * delta_track
    B_ptr += track * B_track
    C_ptr += track * C_track
    y_ptr += track * num_steps * num_channels
    if z_ptr is not None:
        z_ptr += track * z_track
    for _t in range(0, num_steps):
        u = _read(u_ptr, channels, is_channel)
        step = _read(delta_ptr, channels, is_channel)
        into = _read(B_ptr, positions, is_position)
        out_of = _read(C_ptr, positions, is_position)
        if bias_ptr is not None:
            step += bias
        if SOFTPLUS:
            step = _softplus(step)
        h = _advance(h, rates, u, step, into)
        y = tl.sum(h * out_of[:, None], 0)
        if D_ptr is not None:
            y += skip * u
        if z_ptr is not None:
            gate = _read(z_ptr, channels, is_channel)
            y *= gate * _sigmoid(gate)
            z_ptr += z_step
        _write(y_ptr, channels, y, is_channel)
        u_ptr += u_step
        delta_ptr += delta_step
        B_ptr += B_step
        C_ptr += C_step
        y_ptr += num_channels
    _write(last_ptr, state_at, h, in_state)


@triton.jit  # type: ignore[untyped-decorator]
def _step_size(delta_ptr, offsets, mask, bias, SOFTPLUS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The step size before and after softplus; one that is masked is 0, which neither decays nor writes."""
    raw = _read(delta_ptr, offsets, mask)
    if bias is not None:
        raw += bias
    step = raw
    if SOFTPLUS:
        step = _softplus(raw)
    return raw, tl.where(mask, step, 0.0)


@triton.jit
def _advance(h, rates, u, step, into):  # type: ignore[no-untyped-def]
    return tl.exp2(step[None, :] * rates) * h + (step * u)[None, :] * into[:, None]


# A batch with fewer tracks is not to be compiled anew, which takes a minute.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["num_tracks", "num_parts"],
    do_not_specialize_on_alignment=["rates_ptr", "starts_ptr", "dA_ptr"],
)
def _scan_backward(  # type: ignore[no-untyped-def]
    dy_ptr, dlast_ptr, u_ptr, delta_ptr, rates_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, state_ptr,
    du_ptr, ddelta_ptr, dBC_ptr, dz_ptr, dstate_ptr, dA_ptr, dD_ptr, dbias_ptr, starts_ptr,
    num_tracks, num_steps, num_channels, num_parts,
    dy_track, dy_step, u_track, u_step, delta_track, delta_step, B_track, B_step, C_track, C_step, z_track, z_step,
    SOFTPLUS: tl.constexpr, STATE_SIZE: tl.constexpr, WIDE_STATE: tl.constexpr, BLOCK: tl.constexpr,
    CHUNK: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """A part of the tracks (every num_parts-th) and one block of channels.

    dBC_ptr: [blocks, R, T, S, 2], gradients of B and of C; dA_ptr: [parts, S, D]; dD_ptr and dbias_ptr: [parts, D];
    starts_ptr: [parts, chunks, S, D], states before each chunk of a track, or None where there is one chunk.
    FAR: steps of a track may lie 2**31 entries or more apart, as where tracks are the inner axis; costs registers.
    """
    num_blocks = tl.cdiv(num_channels, BLOCK)
    part = (tl.program_id(0) // num_blocks).to(tl.int64)
    block = (tl.program_id(0) % num_blocks).to(tl.int64)
    channels = block * BLOCK + tl.arange(0, BLOCK)
    positions = tl.arange(0, WIDE_STATE)
    is_channel, is_position = channels < num_channels, positions < STATE_SIZE
    in_state = is_position[:, None] & is_channel[None, :]
    by_position = positions[:, None] * num_channels + channels[None, :]
    rates = _read(rates_ptr, by_position, in_state)
    bias = None
    if bias_ptr is not None:
        bias = _read(bias_ptr, channels, is_channel)
    if D_ptr is not None:
        skip = _read(D_ptr, channels, is_channel)
    if FAR:
        dy_step, u_step = tl.cast(dy_step, tl.int64), tl.cast(u_step, tl.int64)
        delta_step, z_step = tl.cast(delta_step, tl.int64), tl.cast(z_step, tl.int64)
        B_step, C_step = tl.cast(B_step, tl.int64), tl.cast(C_step, tl.int64)
    num_chunks = tl.cdiv(num_steps, CHUNK)
    part_starts = part * num_chunks
    dA = tl.zeros((WIDE_STATE, BLOCK), tl.float32)
    dD = tl.zeros((BLOCK,), tl.float32)
    dbias = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, tl.cdiv(num_tracks - part, num_parts)):
        track = part + i * num_parts
        state_at = (track * num_channels + channels)[None, :] * STATE_SIZE + positions[:, None]
        u_at, delta_at, B_at = track * u_track + channels, track * delta_track + channels, track * B_track + positions
        h = tl.zeros((WIDE_STATE, BLOCK), tl.float32)
        if state_ptr is not None:
            h = _read(state_ptr, state_at, in_state)
        if starts_ptr is not None:
            for chunk in range(0, num_chunks):
                _write(starts_ptr, (part_starts + chunk) * STATE_SIZE * num_channels + by_position, h, in_state)
                if chunk + 1 < num_chunks:
                    for t in range(chunk * CHUNK, (chunk + 1) * CHUNK):
                        u = _read(u_ptr, u_at + t * u_step, is_channel)
                        _, step = _step_size(delta_ptr, delta_at + t * delta_step, is_channel, bias, SOFTPLUS)
                        into = _read(B_ptr, B_at + t * B_step, is_position)
                        h = _advance(h, rates, u, step, into)
            # What some threads wrote, others may read.
            tl.debug_barrier()
        g = tl.zeros((WIDE_STATE, BLOCK), tl.float32)
        if dlast_ptr is not None:
            g = _read(dlast_ptr, state_at, in_state)
        for from_end in range(1, num_chunks + 1):
            chunk = num_chunks - from_end
            if starts_ptr is not None:
                h = _read(starts_ptr, (part_starts + chunk) * STATE_SIZE * num_channels + by_position, in_state)
            earlier = ()
            for j in tl.static_range(CHUNK):
                earlier = earlier + (h,)  # type: ignore[assignment]  # noqa: RUF005  (Triton knows only this)
                t = chunk * CHUNK + j
                here, in_time = is_channel & (t < num_steps), is_position & (t < num_steps)
                u = _read(u_ptr, u_at + t * u_step, here)
                _, step = _step_size(delta_ptr, delta_at + t * delta_step, here, bias, SOFTPLUS)
                into = _read(B_ptr, B_at + t * B_step, in_time)
                h = _advance(h, rates, u, step, into)
            for j in tl.static_range(CHUNK):
                t = chunk * CHUNK + CHUNK - 1 - j
                here, in_time = is_channel & (t < num_steps), is_position & (t < num_steps)
                row = (track * num_steps + t) * num_channels + channels
                before = earlier[CHUNK - 1 - j]  # type: ignore[var-annotated]
                u = _read(u_ptr, u_at + t * u_step, here)
                raw, step = _step_size(delta_ptr, delta_at + t * delta_step, here, bias, SOFTPLUS)
                into = _read(B_ptr, B_at + t * B_step, in_time)
                out_of = _read(C_ptr, track * C_track + t * C_step + positions, in_time)
                dy = _read(dy_ptr, track * dy_track + t * dy_step + channels, here)
                if z_ptr is not None:
                    gate = _read(z_ptr, track * z_track + t * z_step + channels, here)
                    opened = _sigmoid(gate)
                    y = tl.sum(h * out_of[:, None], 0)
                    if D_ptr is not None:
                        y += skip * u
                    _write(dz_ptr, row, dy * y * opened * (1.0 + gate * (1.0 - opened)), here)
                    dy *= gate * opened
                g += dy[None, :] * out_of[:, None]
                # Both sums at once: threads meet half as often.
                both = tl.join(g * (step * u)[None, :], dy[None, :] * h)
                at_step = ((block * num_tracks + track) * num_steps + t) * STATE_SIZE + positions
                _write(dBC_ptr, at_step[:, None] * 2 + tl.arange(0, 2)[None, :], tl.sum(both, 1), in_time[:, None])
                dwrite = tl.sum(g * into[:, None], 0)
                g *= tl.exp2(step[None, :] * rates)
                through = g * before
                dA += through * step[None, :]
                dstep = tl.sum(through * rates, 0) * LN2 + dwrite * u
                if SOFTPLUS:
                    dstep *= _sigmoid(raw)
                du = dwrite * step
                if D_ptr is not None:
                    du += dy * skip
                _write(du_ptr, row, du, here)
                _write(ddelta_ptr, row, dstep, here)
                dD += dy * u
                dbias += tl.where(here, dstep, 0.0)
                h = before
        if state_ptr is not None:
            _write(dstate_ptr, state_at, g, in_state)
        if starts_ptr is not None:
            tl.debug_barrier()
    _write(dA_ptr, part * STATE_SIZE * num_channels + by_position, dA, in_state)
    _write(dD_ptr, part * num_channels + channels, dD, is_channel)
    _write(dbias_ptr, part * num_channels + channels, dbias, is_channel)


def launch_sizes(num_channels: int, state_size: int) -> dict[str, int]:
    """Constants and number of warps of `_scan` for this many channels and positions of a state."""
    wide_state = triton.next_power_of_2(state_size)
    fewer = max(1, wide_state // STATE_SIZE_OF_A_THREAD)
    most = MAX_BLOCK // min(fewer, 4)
    block = min(most, max(32, triton.next_power_of_2(num_channels)))
    return {
        "STATE_SIZE": state_size,
        "WIDE_STATE": wide_state,
        "BLOCK": block,
        "num_warps": min(4, max(1, block * min(fewer, 4) // 32)),
    }


def backward_sizes(num_steps: int, num_channels: int, state_size: int) -> dict[str, int]:
    """Those of `_scan_backward`."""
    sizes = launch_sizes(num_channels, state_size)
    of_a_thread = sizes["WIDE_STATE"] * sizes["BLOCK"] // (32 * sizes["num_warps"])
    kept = max(1, KEPT_BY_A_THREAD // max(1, of_a_thread))
    chunk = min(MAX_CHUNK, kept, triton.next_power_of_2(num_steps))
    return {**sizes, "CHUNK": chunk, "num_warps": 2 * sizes["num_warps"]}


def scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """As `reference.scan`, in float32 whatever the dtypes: y in the dtype of u, the last state in float32."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, state = inputs
    num_tracks, num_steps, num_channels = u.shape
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    last_state = torch.empty(num_tracks, *A.shape, dtype=torch.float32, device=u.device)
    sizes = launch_sizes(*A.shape)
    rows = [_dense(x) for x in (u, delta, B, C, z)]
    with torch.cuda.device_of(u):
        _scan[(num_tracks * triton.cdiv(num_channels, sizes["BLOCK"]),)](
            *rows[:2], _rates(A), *rows[2:4], _flat(D), rows[4], _flat(delta_bias), _flat(state), y, last_state,
            num_steps, num_channels, *_strides(rows), SOFTPLUS=delta_softplus, **sizes,
        )  # fmt: skip
    return y, last_state


def scan_backward(grad_y: Tensor, grad_state: Tensor | None, inputs: ScanInputs) -> Gradients:
    """Gradients of `scan`, summed in float32, in the dtypes of the inputs.

    Beside them it needs room for the parts of dB and dC: 2 S / BLOCK float32 for each entry of u.
    """
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, state = inputs
    num_tracks, num_steps, num_channels = u.shape
    sizes = backward_sizes(num_steps, *A.shape)
    num_blocks = triton.cdiv(num_channels, sizes["BLOCK"])
    num_parts = min(num_tracks, TRACK_PARTS)
    num_chunks = triton.cdiv(num_steps, sizes["CHUNK"])

    def fresh(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=u.device)

    du, ddelta, dz, dstate = (
        fresh(0) if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (u, delta, z, state)
    )
    dBC, dA = fresh(num_blocks, *B.shape, 2), fresh(num_parts, A.shape[1], num_channels)
    dD, dbias = fresh(num_parts, num_channels), fresh(num_parts, num_channels)
    starts = fresh(num_parts, num_chunks, A.shape[1], num_channels) if num_chunks > 1 else None
    rows = [_dense(x) for x in (grad_y, u, delta, B, C, z)]
    strides = _strides(rows)
    is_far = max(strides[1::2]) * num_steps >= 2**31
    with torch.cuda.device_of(u):
        _scan_backward[(num_parts * num_blocks,)](
            rows[0], _flat(grad_state), *rows[1:3], _rates(A), *rows[3:5], _flat(D), rows[5], _flat(delta_bias),
            _flat(state), du, ddelta, dBC, dz, dstate, dA, dD, dbias, starts,
            num_tracks, num_steps, num_channels, num_parts, *strides, SOFTPLUS=delta_softplus, FAR=is_far, **sizes,
        )  # fmt: skip
    dB, dC = dBC.sum(0).unbind(-1)
    return (
        du,
        ddelta,
        dA.sum(0).t().contiguous().to(A.dtype),
        dB.contiguous().to(B.dtype),
        dC.contiguous().to(C.dtype),
        fresh(0) if D is None else dD.sum(0).to(D.dtype),
        dz,
        fresh(0) if delta_bias is None else dbias.sum(0).to(delta_bias.dtype),
        dstate,
    )


def _rates(A: Tensor) -> Tensor:
    return (A.float() * LOG2E).t().contiguous()


def _flat(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _dense(tensor: Tensor | None) -> Tensor | None:
    """[R, T, X] as it is where the last axis has no gaps, else a copy."""
    return tensor if tensor is None or tensor.stride(2) == 1 else tensor.contiguous()


def _strides(rows: list[Tensor | None]) -> list[int]:
    """Those of tracks and steps, one tensor after the other."""
    return [stride for x in rows for stride in ((0, 0) if x is None else x.stride()[:2])]
