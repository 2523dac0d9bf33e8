"""Local correlation as one product of all patches with all patches, of which the window is kept: plain torch."""

import torch
from jaxtyping import Float
from torch import Tensor

from kinescan.ops.local_correlation.reference import normalise
from kinescan.shapes import FrameMaps

MOST_PATCHES = 32 * 32
"""On larger maps the product would be mostly thrown away."""


def obstacle(features: Tensor) -> str | None:
    """Why this form should not run on features [..., H, W]; None where it may."""
    patches = features.shape[-2] * features.shape[-1]
    if patches > MOST_PATCHES:
        return f"it compares all {patches} patches with each other, which is wasteful from {MOST_PATCHES} on"
    return None


def correlate_clip(
    features: FrameMaps,
    offsets: tuple[int, ...],
    window: int,
    *,
    replicate: bool,
    epsilon: float = 0.0,
    first_frame: int = 0,
) -> Float[Tensor, "B _ K M H W"]:
    """As `reference.correlate_clip`, in a handful of operations, whatever the window: what exporters want.

    Args:
        features: [B, T, C, H, W].
        offsets: the K frame offsets.
        window: odd side of the square of displacements.
        replicate: look at the first or last frame instead of one outside the clip.
        epsilon: added to squared lengths.
        first_frame: first t that is wanted.

    Returns:
        [B, T - first_frame, K, window * window, H, W].

    Source: PKS4 (arXiv 2604.26461), eq. 15.
    Differs: the sums over channels are made by a matrix product.
    """
    num_frames, (height, width) = features.shape[1], features.shape[-2:]
    directions = normalise(features, epsilon).flatten(3)  # [B, T, C, N]
    nothing = torch.zeros_like(directions[:, 0])
    rows = []
    for t in range(first_frame, num_frames):
        # Frames are told apart here, where they are numbers: an exported model has a fixed number of them.
        sources = [min(max(t + tau, 0), num_frames - 1) if replicate else t + tau for tau in offsets]
        rows.append(torch.stack([directions[:, u] if 0 <= u < num_frames else nothing for u in sources], dim=1))
    others = torch.stack(rows, dim=1)  # [B, T', K, C, N]
    products = directions[:, first_frame:, None].transpose(3, 4) @ others  # [B, T', K, N, N]
    indices_of_window, inside = _window(height, width, window, features.device)
    picked = products.flatten(3).index_select(3, indices_of_window)
    return torch.where(inside, picked, 0.0).unflatten(3, (window * window, height, width))


def _window(height: int, width: int, window: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For every displacement and patch, its index in a flat [N, N] product, and whether it lies inside the frame."""
    reach = torch.arange(window, device=device) - window // 2
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    other_rows = reach[:, None, None, None] + rows[:, None]  # [window, 1, H, 1]
    other_columns = reach[:, None, None] + columns  # [window, 1, W]
    inside = (other_rows >= 0) & (other_rows < height) & (other_columns >= 0) & (other_columns < width)
    own = rows[:, None] * width + columns  # [H, W]
    indices = own * (height * width) + other_rows * width + other_columns
    return torch.where(inside, indices, 0).flatten(), inside.flatten()
