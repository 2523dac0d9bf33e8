"""The selective scan, equation by equation: torch only, float32 or float64, made to be read and not to be fast."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kinescan.shapes import State, TrackMatrix, Tracks


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
    """One step after the other, for all trajectories at once.

    Legend: u_t the input, Delta_t > 0 the step size, A < 0 the decay rates, B_t what is written into the state h_t,
    C_t what is read out of it, D the way past the state, z_t the gate; r trajectory, d channel, s index in the state:

        Delta_t = softplus(delta_t + delta_bias)                  or delta_t + delta_bias without `delta_softplus`
        h_t     = exp(Delta_t A) h_{t-1} + Delta_t B_t u_t        h_0 = state
        y_t     = (C_t h_t + D u_t) silu(z_t)                     the parts with D and z only where they are given

    Args:
        u: [R, T, D].
        delta: [R, T, D].
        A: [D, S].
        B: [R, T, S].
        C: [R, T, S].
        D: [D] or None.
        z: [R, T, D] or None.
        delta_bias: [D] or None.
        delta_softplus: whether step sizes go through softplus.
        state: [R, D, S], or None for zeros.

    Returns:
        y [R, T, D] and the last state [R, D, S].

    Source: Mamba (Gu and Dao, 2024), eq. 1-2 and Algorithm 2.
    Differs: channels last. As in the published code, B is discretised as Delta B (eq. 4 has another form).
    """
    num_tracks, num_steps, num_channels = u.shape
    if delta_bias is not None:
        delta = delta + delta_bias
    if delta_softplus:
        delta = F.softplus(delta)
    h = u.new_zeros(num_tracks, num_channels, A.shape[1]) if state is None else state
    outputs = []
    for t in range(num_steps):
        decay = torch.exp(delta[:, t, :, None] * A)  # [R, D, S]
        h = decay * h + (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None, :]
        outputs.append((h * C[:, t, None, :]).sum(dim=2))
    y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + D * u
    if z is not None:
        y = y * F.silu(z)
    return y, h
