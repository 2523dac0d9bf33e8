"""The vision transformer, block by block."""

from kinescan.models.vit.vit import VisionTransformer
from kinescan.models.vit.vit_config import ViTConfig

__all__ = ["ViTConfig", "VisionTransformer"]
