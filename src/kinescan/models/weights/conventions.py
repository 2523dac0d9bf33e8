"""What is usual for each family of vision encoders, where neither the tensors nor a file beside them tells it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kinescan.models.weights.layouts import Family
from kinescan.preprocessing import IMAGENET_MEAN, IMAGENET_STD

IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """What is usual for a family.

    Attributes:
        activation: of the MLPs.
        norm_eps: of the LayerNorms.
        timm_eps: the same in timm's layout.
        heads: default of transformers' config class, which its files leave out.
        rotary_theta: of rotary positions.
        pixels: mean and std of the pixels; empty where these differ within the family (CLIP's are taken then).
    """

    activation: str = "gelu"
    norm_eps: float = 1e-6
    timm_eps: float = 1e-6
    heads: int = 12
    rotary_theta: float = 100.0
    pixels: Mapping[str, Any] = field(default_factory=dict)


CONVENTIONS: dict[Family, Conventions] = {
    "clip": Conventions(activation="quick_gelu", norm_eps=1e-5),
    "siglip": Conventions(activation="gelu_tanh", pixels=HALF),
    "dinov2": Conventions(pixels=IMAGENET),
    "dinov3": Conventions(norm_eps=1e-5, timm_eps=1e-5, heads=6, pixels=IMAGENET),
    "vit": Conventions(norm_eps=1e-12),
}
