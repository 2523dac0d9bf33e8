"""Parameter-efficient peers of PKS4 on the same CLIP ViT, rebuilt from their papers to count what their training costs.

They hold the structure and the sizes of the published ones, not their weights or recipes: what is trained, what needs a
gradient and what is kept for it. Not part of the package.
"""

from collections.abc import Callable, Mapping

from kinescan.models.vit.vit_config import ViTConfig
from peers.aim import AIM
from peers.evl import EVL
from peers.frozen import FrozenViT
from peers.side4video import Side4Video
from peers.st_adapter import STAdapter

PEERS: Mapping[str, Callable[..., FrozenViT]] = {
    "ST-Adapter": STAdapter,
    "AIM": AIM,
    "EVL": EVL,
    "Side4Video": Side4Video,
}

__all__ = ["PEERS", "FrozenViT", "ViTConfig"]
