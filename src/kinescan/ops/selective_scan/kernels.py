"""Loops of the selective scan, compiled: float32, over blocks of channels, states recomputed in the backward pass.

Legend as in `reference.py`: u, delta, A, B, C, D, z, h; `rates` is A log2(e), so that exp(Delta A) = 2**(Delta rates).
In a kernel, r is a track, t a step, s a place in the state and j one of `LANES` neighbouring channels. What lets the
compiler make vector instructions of the loops over j: their length is a constant; arrays are flat and cut to the rows in
use before the loop (an index that might be negative would be wrapped around, lane by lane); rows that are written
beside others lie in one array at constant distances, so that few pairs remain for it to test for overlap. Where `LANES`
does not divide the channels, rows are padded with zeros.

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
_SMALLEST_LOG = np.float32(-87.3)
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
# 2**f = 1 + f (E1 + f (E2 + ...)) for f in [-1/2, 1/2]: relative error 2e-9, with rounding 8e-8.
_E1, _E2, _E3 = np.float32(0.69314718), np.float32(0.24022648), np.float32(0.055503324)
_E4, _E5, _E6 = np.float32(0.009618437), np.float32(0.0013398874), np.float32(0.00015353362)
# artanh(q) = q (1 + q^2 (L1 + q^2 (L2 + ...))) for q in [0, 1/3]: relative error 4e-9.
_L1, _L2 = np.float32(0.33333158), np.float32(0.20012455)
_L3, _L4 = np.float32(0.139803), np.float32(0.14089167)


@_compile
def _power(f, shifted):  # type: ignore[no-untyped-def]
    """2**(f + n) for f in [-1/2, 1/2], with n in the lowest bits of `shifted`."""
    p = _ONE + f * (_E1 + f * (_E2 + f * (_E3 + f * (_E4 + f * (_E5 + f * _E6)))))
    exponent = np.int32(np.float32(shifted).view(np.int32) << np.int32(23))
    return np.int32(np.float32(p).view(np.int32) + exponent).view(np.float32)


@_compile
def _exp2(x):  # type: ignore[no-untyped-def]
    """2**x: exactly 0 from -127 down, infinite from 128 up, NaN for NaN."""
    x = min(max(x, _LOWEST), _HIGHEST)
    shifted = x + _MAGIC  # its lowest bits are x rounded to an integer
    return _power(x - (shifted - _MAGIC), shifted)


@_compile
def _exp_of_minus_abs(x):  # type: ignore[no-untyped-def]
    x = max(-abs(x), _SMALLEST_LOG)
    shifted = x * _LOG2E + _MAGIC
    whole = shifted - _MAGIC
    return _power(((x - whole * _LN2_HIGH) - whole * _LN2_LOW) * _LOG2E, shifted)


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
def _load(source, start, count, row):  # type: ignore[no-untyped-def]
    """`count` channels of one step into a scratch row, padded with zeros."""
    if count == LANES:
        part = source[start : start + LANES]
        for j in range(LANES):
            row[j] = part[j]
    else:
        for j in range(count):
            row[j] = source[start + j]
        for j in range(count, LANES):
            row[j] = _ZERO


@_compile
def _store(row, count, target, start):  # type: ignore[no-untyped-def]
    if count == LANES:
        part = target[start : start + LANES]
        for j in range(LANES):
            part[j] = row[j]
    else:
        for j in range(count):
            target[start + j] = row[j]


@_compile
def _load_step(u, u_at, delta, delta_at, count, bias, softplus, rows):  # type: ignore[no-untyped-def]
    """u, Delta and Delta u of one step; leaves delta + bias, before softplus, in row Z."""
    _load(u, u_at, count, rows[_U:])
    _load(delta, delta_at, count, rows[_Z:])
    for j in range(LANES):
        rows[_Z + j] += bias[j]
    if softplus:
        for j in range(LANES):
            rows[_DT + j] = _softplus(rows[_Z + j])
            rows[_X + j] = rows[_DT + j] * rows[_U + j]
    else:
        for j in range(LANES):
            rows[_DT + j] = rows[_Z + j]
            rows[_X + j] = rows[_DT + j] * rows[_U + j]


@_compile
def _advance(h, rates, B, C, is_first, rows):  # type: ignore[no-untyped-def]
    """One step of the state; h and rates are [S, LANES], B and C [S]. Adds C h to row Y."""
    for s in range(B.size):
        b, c = B[s], C[s]
        h_row, rate_row = h[s * LANES : (s + 1) * LANES], rates[s * LANES : (s + 1) * LANES]
        if is_first:
            for j in range(LANES):
                h_row[j] = rows[_X + j] * b
                rows[_Y + j] += h_row[j] * c
        else:
            for j in range(LANES):
                h_row[j] = _exp2(rows[_DT + j] * rate_row[j]) * h_row[j] + rows[_X + j] * b
                rows[_Y + j] += h_row[j] * c


@_compile
def _read_state(state, h):  # type: ignore[no-untyped-def]
    """[channels, S] into [S, LANES], both flat; the padding is zeros."""
    num_places = h.size // LANES
    count = state.size // num_places
    for s in range(num_places):
        row = h[s * LANES : (s + 1) * LANES]
        for j in range(count):
            row[j] = state[j * num_places + s]
        for j in range(count, LANES):
            row[j] = _ZERO


@_compile
def _write_state(h, state):  # type: ignore[no-untyped-def]
    """The reverse of `_read_state`."""
    num_places = h.size // LANES
    for j in range(state.size // num_places):
        part = state[j * num_places : (j + 1) * num_places]
        for s in range(num_places):
            part[s] = h[s * LANES + j]


@_compile
def scan(tracks, blocks, sizes, u, delta, rates, B, C, D, z, bias, softplus, state, y, last_state):  # type: ignore[no-untyped-def]
    """Fills y and the last state for a range of tracks and blocks of channels.

    u, delta, B, C, z are (flat array, stride of r, stride of t); rates [blocks, S * LANES], D and bias [blocks, LANES];
    an absent D, z or state has no entries; state, y and last_state are flat.
    """
    num_steps, num_channels, num_places = sizes
    rows = np.zeros(_FORWARD_ROWS * LANES, np.float32)
    carried = np.empty((blocks[1] - blocks[0], num_places * LANES), np.float32)
    has_D, has_z, has_state = D.size > 0, z[0].size > 0, state.size > 0
    for r in range(tracks[0], tracks[1]):
        for first_step in range(0, num_steps, CHUNK):
            past_step = min(first_step + CHUNK, num_steps)
            for block in range(blocks[0], blocks[1]):
                channel = block * LANES
                count = min(LANES, num_channels - channel)
                h, state_at = carried[block - blocks[0]], (r * num_channels + channel) * num_places
                if first_step == 0 and has_state:
                    _read_state(state[state_at : state_at + count * num_places], h)
                for t in range(first_step, past_step):
                    u_at, delta_at = r * u[1] + t * u[2] + channel, r * delta[1] + t * delta[2] + channel
                    _load_step(u[0], u_at, delta[0], delta_at, count, bias[block], softplus, rows)
                    _start_output(D, block, has_D, rows)
                    B_t, C_t = _places(B, C, r, t, num_places)
                    _advance(h, rates[block], B_t, C_t, t == 0 and not has_state, rows)
                    if has_z:
                        _load(z[0], r * z[1] + t * z[2] + channel, count, rows[_Z:])
                        for j in range(LANES):
                            rows[_Y + j] *= rows[_Z + j] * _sigmoid(rows[_Z + j])
                    _store(rows[_Y:], count, y, (r * num_steps + t) * num_channels + channel)
                if past_step == num_steps:
                    _write_state(h, last_state[state_at : state_at + count * num_places])


@_compile
def _start_output(D, block, has_D, rows):  # type: ignore[no-untyped-def]
    if has_D:
        D_block = D[block]
        for j in range(LANES):
            rows[_Y + j] = D_block[j] * rows[_U + j]
    else:
        for j in range(LANES):
            rows[_Y + j] = _ZERO


@_compile
def _places(B, C, r, t, num_places):  # type: ignore[no-untyped-def]
    """B and C of one step of a track."""
    B_at, C_at = r * B[1] + t * B[2], r * C[1] + t * C[2]
    return B[0][B_at : B_at + num_places], C[0][C_at : C_at + num_places]


@_compile
def _advance_and_keep(before, after, rates, B, C, is_first, rows):  # type: ignore[no-untyped-def]
    """As `_advance`, from `before` to `after`, each [S, 2, LANES]: the state, and the decay that led to it."""
    for s in range(B.size):
        b, c = B[s], C[s]
        old, new = before[2 * s * LANES : 2 * (s + 1) * LANES], after[2 * s * LANES : 2 * (s + 1) * LANES]
        rate_row = rates[s * LANES : (s + 1) * LANES]
        if is_first:
            for j in range(LANES):
                new[j] = rows[_X + j] * b
                rows[_Y + j] += new[j] * c
        else:
            for j in range(LANES):
                decay = _exp2(rows[_DT + j] * rate_row[j])
                new[LANES + j] = decay
                new[j] = decay * old[j] + rows[_X + j] * b
                rows[_Y + j] += new[j] * c


@_compile
def _retreat(before, after, adjoint, rates, B, C, is_first, rows, dB, dC):  # type: ignore[no-untyped-def]
    """The reverse of a step: adjoint [S, 2, LANES] holds the gradient of the state and, summed up, that of A."""
    for s in range(B.size):
        b, c = B[s], C[s]
        db, dc = _ZERO, _ZERO
        old, new = before[2 * s * LANES : 2 * (s + 1) * LANES], after[2 * s * LANES : 2 * (s + 1) * LANES]
        adjoint_row, rate_row = adjoint[2 * s * LANES : 2 * (s + 1) * LANES], rates[s * LANES : (s + 1) * LANES]
        if is_first:
            for j in range(LANES):
                dh = adjoint_row[j] + rows[_GY + j] * c
                dc = _add_in_any_order(dc, rows[_GY + j] * new[j])
                db = _add_in_any_order(db, dh * rows[_X + j])
                rows[_GX + j] += dh * b
        else:
            for j in range(LANES):
                dh = adjoint_row[j] + rows[_GY + j] * c
                dc = _add_in_any_order(dc, rows[_GY + j] * new[j])
                db = _add_in_any_order(db, dh * rows[_X + j])
                rows[_GX + j] += dh * b
                dh *= new[LANES + j]
                adjoint_row[j] = dh
                dh *= old[j]  # now the gradient of Delta A
                rows[_GDT + j] += dh * rate_row[j]
                adjoint_row[LANES + j] += dh * rows[_DT + j]
        dB[s] += db
        dC[s] += dc


@_compile
def _gate_backward(rows):  # type: ignore[no-untyped-def]
    """From the gradient of y in row GY to that of C h + D u, and of z in row Y, which holds C h + D u; z in row GX."""
    for j in range(LANES):
        gate = rows[_GX + j]
        sigmoid = _sigmoid(gate)
        rows[_Y + j] *= rows[_GY + j] * sigmoid * (_ONE + gate * (_ONE - sigmoid))
        rows[_GY + j] *= gate * sigmoid


@_compile
def _step_backward(D, block, has_D, softplus, sums, rows):  # type: ignore[no-untyped-def]
    """du in row GX, ddelta in row GDT; adds to sums [2, LANES], the gradients of D and of the bias."""
    for j in range(LANES):
        rows[_GDT + j] = rows[_GDT + j] * _LN2 + rows[_GX + j] * rows[_U + j]
        rows[_GX + j] *= rows[_DT + j]
    if has_D:
        D_block = D[block]
        for j in range(LANES):
            rows[_GX + j] += rows[_GY + j] * D_block[j]
    if softplus:
        for j in range(LANES):
            rows[_GDT + j] *= _sigmoid(rows[_Z + j])
    for j in range(LANES):
        sums[j] += rows[_GY + j] * rows[_U + j]
        sums[LANES + j] += rows[_GDT + j]


@_compile
def _copy_state(source, h, stride):  # type: ignore[no-untyped-def]
    """[S, LANES] into the first row of each [S, stride]."""
    for s in range(source.size // LANES):
        row, source_row = h[s * stride : s * stride + LANES], source[s * LANES : (s + 1) * LANES]
        for j in range(LANES):
            row[j] = source_row[j]


@_compile
def _find_starts(tracks, r, blocks, sizes, u, delta, rates, B, C, bias, softplus, state, starts, rows):  # type: ignore[no-untyped-def]
    """The state before every chunk of a track, in starts [chunks, blocks, S * LANES]."""
    _, num_channels, num_places = sizes
    has_state = state.size > 0
    for block in range(blocks[0], blocks[1]):
        if has_state:
            channel = block * LANES
            state_at = (r * num_channels + channel) * num_places
            count = min(LANES, num_channels - channel)
            _read_state(state[state_at : state_at + count * num_places], starts[0, block - blocks[0]])
    for chunk in range(1, starts.shape[0]):
        for block in range(blocks[0], blocks[1]):
            channel = block * LANES
            count = min(LANES, num_channels - channel)
            h = starts[chunk, block - blocks[0]]
            _copy_state(starts[chunk - 1, block - blocks[0]], h, LANES)
            for t in range((chunk - 1) * CHUNK, chunk * CHUNK):
                u_at, delta_at = r * u[1] + t * u[2] + channel, r * delta[1] + t * delta[2] + channel
                _load_step(u[0], u_at, delta[0], delta_at, count, bias[block], softplus, rows)
                _start_output(bias, block, False, rows)
                B_t, C_t = _places(B, C, r, t, num_places)
                _advance(h, rates[block], B_t, C_t, t == 0 and not has_state, rows)


@_compile
def scan_backward(  # type: ignore[no-untyped-def]
    tracks, blocks, sizes, u, delta, rates, B, C, D, z, bias, softplus, state, dy, dlast_state,
    du, ddelta, dB, dC, dz, dstate, adjoints, sums,
):  # fmt: skip
    """All gradients for a range of tracks and blocks of channels; the arguments up to `state` as for `scan`.

    dy is as u; du, ddelta, dz, dstate are flat and written, dB and dC flat and added to; dlast_state is flat or empty.
    adjoints [blocks, S * 2 * LANES] and sums [blocks, 2 * LANES] come as zeros and leave with the gradients of A, D, bias.
    """
    num_steps, num_channels, num_places = sizes
    num_chunks, longest = (num_steps + CHUNK - 1) // CHUNK, min(CHUNK, num_steps)
    kept = np.zeros((longest, _BACKWARD_ROWS * LANES), np.float32)
    past = np.empty((longest + 1, num_places * 2 * LANES), np.float32)
    starts = np.zeros((num_chunks, blocks[1] - blocks[0], num_places * LANES), np.float32)
    zeros = np.zeros(num_places * LANES, np.float32)
    h = np.empty(num_places * LANES, np.float32)
    has_D, has_z, has_state, has_dlast = D.size > 0, z[0].size > 0, state.size > 0, dlast_state.size > 0
    for r in range(tracks[0], tracks[1]):
        _find_starts(tracks, r, blocks, sizes, u, delta, rates, B, C, bias, softplus, state, starts, kept[0])
        for chunk in range(num_chunks - 1, -1, -1):
            first_step, past_step = chunk * CHUNK, min((chunk + 1) * CHUNK, num_steps)
            for block in range(blocks[0], blocks[1]):
                channel = block * LANES
                count = min(LANES, num_channels - channel)
                state_at = (r * num_channels + channel) * num_places
                adjoint = adjoints[block - blocks[0]]
                if past_step == num_steps and has_dlast:
                    _read_state(dlast_state[state_at : state_at + count * num_places], h)
                    _copy_state(h, adjoint, 2 * LANES)
                elif past_step == num_steps:
                    _copy_state(zeros, adjoint, 2 * LANES)
                _copy_state(starts[chunk, block - blocks[0]], past[0], 2 * LANES)
                for t in range(first_step, past_step):
                    i, rows = t - first_step, kept[t - first_step]
                    u_at, delta_at = r * u[1] + t * u[2] + channel, r * delta[1] + t * delta[2] + channel
                    _load_step(u[0], u_at, delta[0], delta_at, count, bias[block], softplus, rows)
                    _start_output(D, block, has_D, rows)
                    B_t, C_t = _places(B, C, r, t, num_places)
                    _advance_and_keep(past[i], past[i + 1], rates[block], B_t, C_t, t == 0 and not has_state, rows)
                for t in range(past_step - 1, first_step - 1, -1):
                    i, rows = t - first_step, kept[t - first_step]
                    at, BC_at = (r * num_steps + t) * num_channels + channel, (r * num_steps + t) * num_places
                    _load(dy[0], r * dy[1] + t * dy[2] + channel, count, rows[_GY:])
                    if has_z:
                        _load(z[0], r * z[1] + t * z[2] + channel, count, rows[_GX:])
                        _gate_backward(rows)
                        _store(rows[_Y:], count, dz, at)
                    for j in range(LANES):
                        rows[_GX + j] = _ZERO
                        rows[_GDT + j] = _ZERO
                    B_t, C_t = _places(B, C, r, t, num_places)
                    dB_t, dC_t = dB[BC_at : BC_at + num_places], dC[BC_at : BC_at + num_places]
                    _retreat(
                        past[i], past[i + 1], adjoint, rates[block], B_t, C_t,
                        t == 0 and not has_state, rows, dB_t, dC_t,
                    )  # fmt: skip
                    _step_backward(D, block, has_D, softplus, sums[block - blocks[0]], rows)
                    _store(rows[_GX:], count, du, at)
                    _store(rows[_GDT:], count, ddelta, at)
                if first_step == 0 and has_state:
                    for s in range(num_places):
                        for j in range(LANES):
                            h[s * LANES + j] = adjoint[2 * s * LANES + j]
                    _write_state(h, dstate[state_at : state_at + count * num_places])
