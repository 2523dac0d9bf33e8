import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Heads = Float[Tensor, "F h N d"]
"""Queries or keys of every head."""


@dataclass(frozen=True)
class Rotary:
    """Turns queries and keys of patches by angles that grow with their row and column; other tokens stay.

    Positions are centres of patches, from -1 to 1 along each side whatever the grid, so that nothing has to be
    interpolated for another image size.

    Attributes:
        grid: rows and columns of patches.
        theta: the slowest wave is nearly this many times as long as the quickest.

    Source: DINOv3 (arXiv 2508.10104), section 3.2; RoFormer (arXiv 2104.09864).

    Example:
        >>> query, key = Rotary((2, 2), 100.0).turn(torch.ones(1, 3, 5, 8), torch.ones(1, 3, 5, 8))
        >>> query.shape, torch.equal(query[:, :, 0], torch.ones(1, 3, 8))
        (torch.Size([1, 3, 5, 8]), True)
    """

    grid: tuple[int, int]
    theta: float

    def turn(self, query: Heads, key: Heads) -> tuple[Heads, Heads]:
        """Queries and keys [F, h, P + N, d], d a multiple of 4, the patches last, turned."""
        cos, sin = (wave.to(query.dtype) for wave in self._waves(query.shape[3], query.device))
        prefix = query.shape[2] - self.grid[0] * self.grid[1]
        turned = []
        for tokens in (query, key):
            patches = tokens[:, :, prefix:]
            first, second = patches.chunk(2, dim=3)
            patches = patches * cos + torch.cat([-second, first], dim=3) * sin
            turned.append(torch.cat([tokens[:, :, :prefix], patches], dim=2))
        return turned[0], turned[1]

    def _waves(self, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines [N, width]: a quarter of the angles by row, a quarter by column, then the same again."""
        rows, columns = ((torch.arange(n, device=device) + 0.5) / n * 2 - 1 for n in self.grid)
        positions = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=2).flatten(0, 1)  # [N, 2]
        frequencies = self.theta ** -(torch.arange(width // 4, device=device) * 4 / width)
        angles = (2 * math.pi * positions[:, :, None] * frequencies).flatten(1).repeat(1, 2)
        return angles.cos(), angles.sin()
