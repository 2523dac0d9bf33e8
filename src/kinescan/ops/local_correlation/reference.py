"""Local correlation, equation by equation: torch only, any floating dtype, made to be read and not to be fast."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kinescan.shapes import FrameMaps

TOO_SHORT = 1e-12
"""A feature vector shorter than this counts as zero: its cosines and its gradient are 0."""


def correlate_clip(
    features: FrameMaps,
    offsets: tuple[int, ...],
    window: int,
    *,
    replicate: bool,
    epsilon: float = 0.0,
    first_frame: int = 0,
) -> Float[Tensor, "B _ K M H W"]:
    """Eq. 15 of PKS4 for the frames from `first_frame` on.

    Legend: f_t(p) the features of frame t at patch p, f^ their direction, tau a frame offset, delta = (dy, dx) a
    displacement of at most R = window // 2:

        f^_t(p) = f_t(p) / sqrt(|f_t(p)|^2 + epsilon)
        S_t(p, tau, delta) = < f^_t(p), f^_{t + tau}(p + delta) >

    with S = 0 where p + delta lies outside the frame, and, unless `replicate`, where t + tau lies outside the clip.

    Args:
        features: [B, T, C, H, W].
        offsets: the K values of tau.
        window: odd side of the square of displacements.
        replicate: look at the first or last frame instead of one outside the clip.
        epsilon: added to squared lengths.
        first_frame: first t that is wanted.

    Returns:
        [B, T - first_frame, K, window * window, H, W]; delta is channel (dy + R) * window + dx + R.

    Source: PKS4 (arXiv 2604.26461), eq. 15.
    Differs: the paper leaves the borders open; see `local_correlation`.
    """
    num_frames = features.shape[1]
    directions = normalise(features, epsilon)
    nothing = torch.zeros_like(directions[:, 0])
    rows = []
    for t in range(first_frame, num_frames):
        maps = []
        for tau in offsets:
            u = min(max(t + tau, 0), num_frames - 1) if replicate else t + tau
            other = directions[:, u] if 0 <= u < num_frames else nothing
            maps.append(correlate_frames(directions[:, t], other, window))
        rows.append(torch.stack(maps, dim=1))
    return torch.stack(rows, dim=1)


def normalise(features: FrameMaps, epsilon: float = 0.0) -> FrameMaps:
    """Features [B, T, C, H, W] as unit vectors over C; shorter than `TOO_SHORT`: zeros without gradient."""
    squares = features.square().sum(dim=2, keepdim=True) + epsilon
    is_zero = squares <= TOO_SHORT**2
    return torch.where(is_zero, 0.0, features * squares.masked_fill(is_zero, 1.0).rsqrt())


def correlate_frames(
    frame: Float[Tensor, "B C H W"], other: Float[Tensor, "B C H W"], window: int
) -> Float[Tensor, "B M H W"]:
    """S(p, delta) = < frame(p), other(p + delta) > for every delta, zero where p + delta is outside the frame.

    From two frames [B, C, H, W] to maps [B, window * window, H, W].
    """
    height, width = frame.shape[-2:]
    radius = window // 2
    padded = functional.pad(other, (radius, radius, radius, radius))
    products = [
        (frame * padded[..., y : y + height, x : x + width]).sum(dim=1) for y in range(window) for x in range(window)
    ]
    return torch.stack(products, dim=1)
