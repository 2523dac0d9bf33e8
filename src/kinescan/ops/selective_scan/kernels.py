"""Loops of the selective scan, compiled: float32, over blocks of channels, states recomputed in the backward pass.

Legend as in `reference.py`: u, delta, A, B, C, D, z, h; `rates` is A log2(e), so that exp(Delta A) = 2**(Delta rates).
In a kernel, r is a track, t a step, s a place in the state and j one of `LANES` neighbouring channels: the inner loops
run over j with a length that the compiler knows, which makes vector instructions of them. Where `LANES` does not divide
the channels, the scratch rows are padded with zeros. The scratch rows of a kernel lie in one array at distances that
the compiler knows, too: it need not ask whether they overlap.

Fast-math is limited to `contract` (fused multiply-add). `reassoc` would allow to simplify (x + 1.5 * 2**23) -
1.5 * 2**23, which rounds x to an integer, to x: then `_exp2` is wrong and so is every gradient. The only additions that
may be reordered are those by `_add_in_any_order`, which sums and does nothing else.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

LANES = 64
"""Channels that an inner loop takes: 8 vectors of 8, or 4 of 16."""
CHUNK = 16
"""Steps whose states the backward pass holds at once; of longer sequences it keeps one state per chunk."""


def _compile(function: Callable[..., Any], extra: frozenset[str] = frozenset()) -> Any:
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", *extra}}
    try:
        return numba.njit(cache=True, **options)(function)
    except (RuntimeError, OSError):  # nowhere to keep compiled code: compile again in every process
        return numba.njit(**options)(function)


_MAGIC = np.float32(1.5 * 2**23)
_LOG2E = np.float32(1.4426950408889634)
_LN2 = np.float32(0.6931471805599453)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_LOWEST, _HIGHEST = np.float32(-127), np.float32(128)
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
# 2**f = 1 + f (E1 + f (E2 + ...)) for f in [-1/2, 1/2]: relative error 2e-9, with rounding 8e-8.
_E1, _E2, _E3 = np.float32(0.69314718), np.float32(0.24022648), np.float32(0.055503324)
_E4, _E5, _E6 = np.float32(0.009618437), np.float32(0.0013398874), np.float32(0.00015353362)
# artanh(q) = q (1 + q^2 (L1 + q^2 (L2 + ...))) for q in [0, 1/3]: relative error 4e-9.
_L1, _L2 = np.float32(0.33333158), np.float32(0.20012455)
_L3, _L4 = np.float32(0.139803), np.float32(0.14089167)


@_compile
def _exp2(x):  # type: ignore[no-untyped-def]
    """2**x: exactly 0 from -127 down, infinite from 128 up, NaN for NaN."""
    x = min(max(x, _LOWEST), _HIGHEST)
    shifted = x + _MAGIC  # its lowest bits are x rounded to an integer
    f = x - (shifted - _MAGIC)
    p = _ONE + f * (_E1 + f * (_E2 + f * (_E3 + f * (_E4 + f * (_E5 + f * _E6)))))
    exponent = np.int32(np.float32(shifted).view(np.int32) << np.int32(23))
    return np.int32(np.float32(p).view(np.int32) + exponent).view(np.float32)


@_compile
def _exp_of_minus_abs(x):  # type: ignore[no-untyped-def]
    x = -abs(x)
    whole = (x * _LOG2E + _MAGIC) - _MAGIC
    rest = (x - whole * _LN2_HIGH) - whole * _LN2_LOW
    return _exp2(whole) * _exp2(rest * _LOG2E)


@_compile
def _softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + exp(x)) without overflow, right also where it is tiny."""
    w = _exp_of_minus_abs(x)
    q = w / (_TWO + w)
    square = q * q
    log1p = _TWO * q * (_ONE + square * (_L1 + square * (_L2 + square * (_L3 + square * _L4))))
    return max(x, _ZERO) + log1p


@_compile
def _sigmoid(x):  # type: ignore[no-untyped-def]
    w = _exp_of_minus_abs(x)
    return (_ONE if x >= _ZERO else w) / (_ONE + w)


def _plain_sum(a, b):  # type: ignore[no-untyped-def]
    return a + b


_add_in_any_order = _compile(_plain_sum, frozenset({"reassoc"}))

# Where the rows of a step lie in the scratch array, LANES floats each: Delta, Delta u, u, y, and z or delta + bias;
# in the backward pass also the gradients of C h + D u, of Delta u and of Delta.
_DT, _X, _U, _Y, _Z = 0 * LANES, 1 * LANES, 2 * LANES, 3 * LANES, 4 * LANES
_GY, _GX, _GDT = 5 * LANES, 6 * LANES, 7 * LANES
_FORWARD_ROWS, _BACKWARD_ROWS = 5, 8


@_compile
def _load(source, start, count, rows, at):  # type: ignore[no-untyped-def]
    """Channels of one step into a scratch row, padded with zeros."""
    for j in range(count):
        rows[at + j] = source[start + j]
    for j in range(count, LANES):
        rows[at + j] = _ZERO


@_compile
def _load_step(u, u_at, delta, delta_at, count, bias, softplus, rows):  # type: ignore[no-untyped-def]
    """u, Delta and Delta u of one step; leaves delta + bias, before softplus, in row Z."""
    _load(u, u_at, count, rows, _U)
    _load(delta, delta_at, count, rows, _Z)
    for j in range(LANES):
        rows[_Z + j] += bias[j]
    if softplus:
        for j in range(LANES):
            rows[_DT + j] = _softplus(rows[_Z + j])
    else:
        for j in range(LANES):
            rows[_DT + j] = rows[_Z + j]
    for j in range(LANES):
        rows[_X + j] = rows[_DT + j] * rows[_U + j]


@_compile
def _advance(h, rates, B, B_at, C, C_at, is_first, rows):  # type: ignore[no-untyped-def]
    """One step of the state, h and rates [S, LANES]; adds C h to row Y."""
    for s in range(rates.shape[0]):
        b, c = B[B_at + s], C[C_at + s]
        if is_first:
            for j in range(LANES):
                h[s, j] = rows[_X + j] * b
                rows[_Y + j] += h[s, j] * c
        else:
            for j in range(LANES):
                h[s, j] = _exp2(rows[_DT + j] * rates[s, j]) * h[s, j] + rows[_X + j] * b
                rows[_Y + j] += h[s, j] * c


@_compile
def _read_state(state, at, count, h):  # type: ignore[no-untyped-def]
    """[count, S] of a flat array into h [S, LANES]."""
    num_places = h.shape[0]
    for s in range(num_places):
        for j in range(count):
            h[s, j] = state[at + j * num_places + s]
        for j in range(count, LANES):
            h[s, j] = _ZERO


@_compile
def _write_state(h, count, state, at):  # type: ignore[no-untyped-def]
    num_places = h.shape[0]
    for j in range(count):
        for s in range(num_places):
            state[at + j * num_places + s] = h[s, j]


@_compile
def scan(tracks, blocks, sizes, u, delta, rates, B, C, D, z, bias, softplus, state, y, last_state):  # type: ignore[no-untyped-def]
    """Fills y and the last state for a range of tracks and blocks of channels.

    u, delta, B, C, z are (flat array, stride of r, stride of t); rates [blocks, S, LANES], D and bias [blocks, LANES];
    an absent D, z or state has no entries; y and last_state are flat.
    """
    num_steps, num_channels, num_places = sizes
    rows = np.zeros(_FORWARD_ROWS * LANES, np.float32)
    carried = np.empty((blocks[1] - blocks[0], num_places, LANES), np.float32)
    has_D, has_z, has_state = D.size > 0, z[0].size > 0, state.size > 0
    for r in range(tracks[0], tracks[1]):
        for first_step in range(0, num_steps, CHUNK):
            past_step = min(first_step + CHUNK, num_steps)
            for block in range(blocks[0], blocks[1]):
                channel = block * LANES
                count = min(LANES, num_channels - channel)
                h, block_rates = carried[block - blocks[0]], rates[block]
                state_at = (r * num_channels + channel) * num_places
                if first_step == 0 and has_state:
                    _read_state(state, state_at, count, h)
                for t in range(first_step, past_step):
                    u_at, delta_at = r * u[1] + t * u[2] + channel, r * delta[1] + t * delta[2] + channel
                    _load_step(u[0], u_at, delta[0], delta_at, count, bias[block], softplus, rows)
                    for j in range(LANES):
                        rows[_Y + j] = D[block, j] * rows[_U + j] if has_D else _ZERO
                    is_first = t == 0 and not has_state
                    _advance(h, block_rates, B[0], r * B[1] + t * B[2], C[0], r * C[1] + t * C[2], is_first, rows)
                    if has_z:
                        _load(z[0], r * z[1] + t * z[2] + channel, count, rows, _Z)
                        for j in range(LANES):
                            rows[_Y + j] *= rows[_Z + j] * _sigmoid(rows[_Z + j])
                    y_at = (r * num_steps + t) * num_channels + channel
                    for j in range(count):
                        y[y_at + j] = rows[_Y + j]
                if past_step == num_steps:
                    _write_state(h, count, last_state, state_at)


@_compile
def _advance_and_keep(past, rates, B, B_at, C, C_at, is_first, rows):  # type: ignore[no-untyped-def]
    """As `_advance`, from past[0] to past[1], each [S, 2, LANES]: the state, and the decay that led to it."""
    for s in range(rates.shape[0]):
        b, c = B[B_at + s], C[C_at + s]
        if is_first:
            for j in range(LANES):
                past[1, s, 0, j] = rows[_X + j] * b
                rows[_Y + j] += past[1, s, 0, j] * c
        else:
            for j in range(LANES):
                past[1, s, 1, j] = _exp2(rows[_DT + j] * rates[s, j])
                past[1, s, 0, j] = past[1, s, 1, j] * past[0, s, 0, j] + rows[_X + j] * b
                rows[_Y + j] += past[1, s, 0, j] * c


@_compile
def _retreat(past, adjoint, rates, B, B_at, C, C_at, is_first, rows, dB, dC, at):  # type: ignore[no-untyped-def]
    """The reverse of a step: adjoint [S, 2, LANES] holds the gradient of the state and, summed up, that of A."""
    for s in range(rates.shape[0]):
        b, c = B[B_at + s], C[C_at + s]
        db, dc = _ZERO, _ZERO
        if is_first:
            for j in range(LANES):
                dh = adjoint[s, 0, j] + rows[_GY + j] * c
                dc = _add_in_any_order(dc, rows[_GY + j] * past[1, s, 0, j])
                db = _add_in_any_order(db, dh * rows[_X + j])
                rows[_GX + j] += dh * b
        else:
            for j in range(LANES):
                dh = adjoint[s, 0, j] + rows[_GY + j] * c
                dc = _add_in_any_order(dc, rows[_GY + j] * past[1, s, 0, j])
                db = _add_in_any_order(db, dh * rows[_X + j])
                rows[_GX + j] += dh * b
                dh *= past[1, s, 1, j]
                adjoint[s, 0, j] = dh
                dh *= past[0, s, 0, j]  # now the gradient of Delta A
                rows[_GDT + j] += dh * rates[s, j]
                adjoint[s, 1, j] += dh * rows[_DT + j]
        dB[at + s] += db
        dC[at + s] += dc


@_compile
def _gate_backward(z, z_at, count, dz, at, rows):  # type: ignore[no-untyped-def]
    """From the gradient of y in row GY to that of C h + D u, and dz; row Y holds C h + D u."""
    for j in range(count):
        gate = z[z_at + j]
        sigmoid = _sigmoid(gate)
        dz[at + j] = rows[_GY + j] * rows[_Y + j] * sigmoid * (_ONE + gate * (_ONE - sigmoid))
        rows[_GY + j] *= gate * sigmoid


@_compile
def _step_backward(count, D, has_D, softplus, du, ddelta, at, sums, rows):  # type: ignore[no-untyped-def]
    """Writes du and ddelta of a step from its rows; adds to sums [2, LANES], the gradients of D and of the bias."""
    for j in range(LANES):
        rows[_GDT + j] = rows[_GDT + j] * _LN2 + rows[_GX + j] * rows[_U + j]
        rows[_GX + j] *= rows[_DT + j]
        sums[0, j] += rows[_GY + j] * rows[_U + j]
    if has_D:
        for j in range(LANES):
            rows[_GX + j] += rows[_GY + j] * D[j]
    if softplus:
        for j in range(LANES):
            rows[_GDT + j] *= _sigmoid(rows[_Z + j])
    for j in range(LANES):
        sums[1, j] += rows[_GDT + j]
    for j in range(count):
        du[at + j] = rows[_GX + j]
    for j in range(count):
        ddelta[at + j] = rows[_GDT + j]


@_compile
def scan_backward(  # type: ignore[no-untyped-def]
    tracks, blocks, sizes, u, delta, rates, B, C, D, z, bias, softplus, state, dy, dlast_state,
    du, ddelta, dB, dC, dz, dstate, adjoints, sums,
):  # fmt: skip
    """All gradients for a range of tracks and blocks of channels; the arguments up to `state` as for `scan`.

    dy is as u; du, ddelta, dz, dstate are flat and written, dB and dC flat and added to; dlast_state is flat or empty.
    adjoints [blocks, S, 2, LANES] and sums [blocks, 2, LANES] come as zeros and leave with the gradients of A, D, bias.
    """
    num_steps, num_channels, num_places = sizes
    num_chunks = (num_steps + CHUNK - 1) // CHUNK
    kept = np.zeros((min(CHUNK, num_steps), _BACKWARD_ROWS * LANES), np.float32)
    past = np.empty((min(CHUNK, num_steps) + 1, num_places, 2, LANES), np.float32)
    starts = np.zeros((num_chunks, blocks[1] - blocks[0], num_places, LANES), np.float32)
    has_D, has_z, has_state, has_dlast = D.size > 0, z[0].size > 0, state.size > 0, dlast_state.size > 0
    for r in range(tracks[0], tracks[1]):
        for chunk in range(num_chunks):
            for block in range(blocks[0], blocks[1]):
                channel = block * LANES
                count = min(LANES, num_channels - channel)
                h = starts[chunk, block - blocks[0]]
                if chunk == 0:
                    if has_state:
                        _read_state(state, (r * num_channels + channel) * num_places, count, h)
                    continue
                before = starts[chunk - 1, block - blocks[0]]
                for s in range(num_places):
                    for j in range(LANES):
                        h[s, j] = before[s, j]
                rows = kept[0]
                for t in range((chunk - 1) * CHUNK, chunk * CHUNK):
                    u_at, delta_at = r * u[1] + t * u[2] + channel, r * delta[1] + t * delta[2] + channel
                    _load_step(u[0], u_at, delta[0], delta_at, count, bias[block], softplus, rows)
                    is_first = t == 0 and not has_state
                    _advance(h, rates[block], B[0], r * B[1] + t * B[2], C[0], r * C[1] + t * C[2], is_first, rows)
        for chunk in range(num_chunks - 1, -1, -1):
            first_step, past_step = chunk * CHUNK, min((chunk + 1) * CHUNK, num_steps)
            for block in range(blocks[0], blocks[1]):
                channel = block * LANES
                count = min(LANES, num_channels - channel)
                state_at = (r * num_channels + channel) * num_places
                adjoint, h = adjoints[block - blocks[0]], starts[chunk, block - blocks[0]]
                if past_step == num_steps:
                    for s in range(num_places):
                        for j in range(LANES):
                            adjoint[s, 0, j] = _ZERO
                        if has_dlast:
                            for j in range(count):
                                adjoint[s, 0, j] = dlast_state[state_at + j * num_places + s]
                for s in range(num_places):
                    for j in range(LANES):
                        past[0, s, 0, j] = h[s, j]
                for t in range(first_step, past_step):
                    i, rows = t - first_step, kept[t - first_step]
                    u_at, delta_at = r * u[1] + t * u[2] + channel, r * delta[1] + t * delta[2] + channel
                    _load_step(u[0], u_at, delta[0], delta_at, count, bias[block], softplus, rows)
                    for j in range(LANES):
                        rows[_Y + j] = D[block, j] * rows[_U + j] if has_D else _ZERO
                    B_at, C_at = r * B[1] + t * B[2], r * C[1] + t * C[2]
                    is_first = t == 0 and not has_state
                    _advance_and_keep(past[i : i + 2], rates[block], B[0], B_at, C[0], C_at, is_first, rows)
                for t in range(past_step - 1, first_step - 1, -1):
                    i, rows = t - first_step, kept[t - first_step]
                    at = (r * num_steps + t) * num_channels + channel
                    _load(dy[0], r * dy[1] + t * dy[2] + channel, count, rows, _GY)
                    if has_z:
                        _gate_backward(z[0], r * z[1] + t * z[2] + channel, count, dz, at, rows)
                    for j in range(LANES):
                        rows[_GX + j] = _ZERO
                        rows[_GDT + j] = _ZERO
                    B_at, C_at = r * B[1] + t * B[2], r * C[1] + t * C[2]
                    BC_at, is_first = (r * num_steps + t) * num_places, t == 0 and not has_state
                    _retreat(
                        past[i : i + 2], adjoint, rates[block], B[0], B_at, C[0], C_at, is_first, rows, dB, dC, BC_at
                    )
                    D_block = D[block] if has_D else bias[block]
                    _step_backward(count, D_block, has_D, softplus, du, ddelta, at, sums[block - blocks[0]], rows)
                if first_step == 0 and has_state:
                    for j in range(count):
                        for s in range(num_places):
                            dstate[state_at + j * num_places + s] = adjoint[s, 0, j]
