"""Which moments of a video a compressed state still holds tokens of."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from kinescan.vlm.cache import StreamCache


def held_between(cache: StreamCache, bounds: Sequence[int]) -> Float[Tensor, " N"]:
    """How many tokens of each part of a stream the next frame may still see.

    Args:
        cache: of a stream.
        bounds: N + 1 ascending indices of tokens; part i holds the tokens from bounds[i] up to bounds[i + 1].

    Returns:
        [N], tokens of each part that the compressed state holds, a mean over layers and key heads; all tokens of
        each part where the cache has no budget.

    Example:
        >>> from kinescan.vlm.policy import KeepAll
        >>> from kinescan.vlm.store import CacheShape
        >>> shape = CacheShape(num_layers=1, key_heads=1, head_dim=2, dtype=torch.float32, device=torch.device("cpu"))
        >>> held_between(StreamCache(shape, policy=KeepAll(), budget=None), [0, 3, 5]).tolist()
        [3.0, 2.0]
    """
    if cache.budget is None:
        return torch.tensor([float(stop - start) for start, stop in pairwise(bounds)])
    edges = torch.tensor(list(bounds))
    counts = torch.zeros(len(edges) - 1)
    for layer in cache.layers:
        positions = layer.state.positions.cpu()
        # Positions ascend within each head.
        below = torch.searchsorted(positions, edges.expand(len(positions), -1).contiguous())
        counts += below.diff(dim=1).float().mean(0)
    return counts / max(1, len(cache.layers))
