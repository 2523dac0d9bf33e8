"""Names of the models that come with kinescan, and the settings that each stands for; loads no torch."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

_L14 = {
    "width": 1024,
    "depth": 24,
    "heads": 16,
    "mlp_dim": 4096,
    "embed_dim": 768,
    "patch_size": 14,
    "insert_after": 16,
}
_TI16 = {"width": 192, "heads": 3, "mlp_dim": 768, "embed_dim": 192}
_AVERAGING = {"scanner": False, "correlation": False, "variation": False, "class_token_route": "none"}

_VIDEOMAMBA: dict[str, dict[str, Any]] = {
    "videomamba_tiny": {"width": 192, "depth": 24},
    "videomamba_small": {"width": 384, "depth": 24},
    "videomamba_middle": {"width": 576, "depth": 32},
}

TUNER_NAMES = ("ssp", "full", "linear_probe", "adapter", "st_adapter", "vpt", "lora", "state_offset")
"""What may be trained of, or on top of, a VideoMamba; each gives the models TUNER_videomamba_SIZE."""

OLD_MODEL_NAMES = {f"head_only_{name}": f"linear_probe_{name}" for name in _VIDEOMAMBA}
"""Earlier names of models, which are still accepted, and what they are called now."""

IMAGE_MODELS: dict[str, Mapping[str, Any]] = {
    "vit_ti16": _TI16 | _AVERAGING,
    "vit_b16": _AVERAGING,
    "vit_l14": _L14 | _AVERAGING,
    "pks4_vit_ti16": _TI16,
    "pks4_vit_b16": {},
    "pks4_vit_l14": _L14,
}
"""PKS4 models: name -> fields of the config that differ from their defaults; so below."""

VIDEOMAMBAS: dict[str, Mapping[str, Any]] = dict(_VIDEOMAMBA)
TUNED: dict[str, dict[str, Mapping[str, Any]]] = {
    tuner: {f"{tuner}_{name}": sizes for name, sizes in _VIDEOMAMBA.items()} for tuner in TUNER_NAMES
}
"""By tuner."""

CATALOG: dict[str, Mapping[str, Any]] = {
    **IMAGE_MODELS,
    **VIDEOMAMBAS,
    **{name: sizes for models in TUNED.values() for name, sizes in models.items()},
}
"""All of them; `kinescan.models.registry.MODELS` adds their classes."""

REGISTERED: dict[str, Any] = {}
"""Models of somebody's own, as `kinescan.models.registry.register_model` adds them."""
ENTRY_POINTS = "kinescan.models"
"""Group of entry points by which an installed package offers models: NAME = "module that registers NAME"."""


def current_model_name(name: str) -> str:
    """What a model is called now.

    Example:
        >>> current_model_name("head_only_videomamba_tiny"), current_model_name("pks4_vit_b16")
        ('linear_probe_videomamba_tiny', 'pks4_vit_b16')
    """
    return OLD_MODEL_NAMES.get(name, name)


def offered_models() -> tuple[EntryPoint, ...]:
    """What installed packages offer; none is imported."""
    return tuple(entry_points(group=ENTRY_POINTS))
