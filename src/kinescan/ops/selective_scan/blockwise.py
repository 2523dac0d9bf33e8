"""The selective scan for long sequences in plain torch: chunks of time side by side, on any device and dtype."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kinescan.shapes import State, TrackMatrix, Tracks

LONG = 256
"""Steps from which on this form is chosen before the reference."""


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
    """As `reference.scan`, in about 3 sqrt(T) steps instead of T; the sums are made in another order.

    Takes u, delta, z [R, T, D], A [D, S], B and C [R, T, S], D and delta_bias [D] and the state [R, D, S]; gives y
    [R, T, D] and the last state [R, D, S].

    Legend as in `reference.py`; the sequence is cut into K chunks of L steps, k a chunk, j a step inside it:

        g_kj = exp(Delta_kj A) g_k(j-1) + Delta_kj B_kj u_kj       g_k0 = 0, all chunks at once
        s_kj = Delta_k1 + ... + Delta_kj                           exp(s_kj A) is the decay since the chunk began
        H_k  = exp(s_(k-1)L A) H_(k-1) + g_(k-1)L                  H_1 = h_0, one chunk after the other
        y_kj = C_kj (g_kj + exp(s_kj A) H_k)                       all chunks at once

    Source: the passes of a blocked prefix sum (Blelloch, 1990, section 1.5), with Mamba's recurrence as the operator.
    """
    num_tracks, num_steps, num_channels = u.shape
    if delta_bias is not None:
        delta = delta + delta_bias
    if delta_softplus:
        delta = F.softplus(delta)
    length = math.isqrt(num_steps - 1) + 1
    # A step size of 0, as at the end that is padded, neither decays nor writes.
    steps, writes, into, out_of = (_cut(x, length) for x in (delta, delta * u, B, C))
    h = u.new_zeros(num_tracks, num_channels, A.shape[1]) if state is None else state
    g = h.new_zeros(num_tracks, steps.shape[1], num_channels, A.shape[1])
    own = []
    for j in range(length):
        decay = torch.exp(steps[:, :, j, :, None] * A)  # [R, K, D, S]
        g = decay * g + writes[:, :, j, :, None] * into[:, :, j, None, :]
        own.append((g * out_of[:, :, j, None, :]).sum(dim=3))
    since = steps.cumsum(dim=2)
    chunk_decay = torch.exp(since[:, :, -1, :, None] * A)
    before = []
    for k in range(steps.shape[1]):
        before.append(h)
        h = chunk_decay[:, k] * h + g[:, k]
    starts = torch.stack(before, dim=1)
    outputs = []
    for j in range(length):
        left = torch.exp(since[:, :, j, :, None] * A) * starts
        outputs.append(own[j] + (left * out_of[:, :, j, None, :]).sum(dim=3))
    y = torch.stack(outputs, dim=2).flatten(1, 2)[:, :num_steps]
    if D is not None:
        y = y + D * u
    if z is not None:
        y = y * F.silu(z)
    return y, h


def _cut(x: Tensor, length: int) -> Tensor:
    """[R, T, X] -> [R, K, length, X], zeros at the end."""
    return F.pad(x, (0, 0, 0, -x.shape[1] % length)).unflatten(1, (-1, length))
