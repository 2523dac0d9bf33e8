"""The families of VLMs that a stream can run, one file each; the only door to transformers."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from kinescan.errors import ConfigError
from kinescan.vlm.families import door
from kinescan.vlm.families.base import Family, Features, Positions, PromptFormat, check_evaluation_mode
from kinescan.vlm.families.internvl import InternVL
from kinescan.vlm.families.llava_onevision import LlavaOnevision
from kinescan.vlm.families.pixels import PixelSettings
from kinescan.vlm.families.qwen2_5_vl import Qwen25VL
from kinescan.vlm.families.qwen3_vl import Qwen3VL

__all__ = [
    "FAMILIES",
    "Family",
    "Features",
    "PixelSettings",
    "Positions",
    "PromptFormat",
    "family_class",
    "read_pixel_settings",
]

FAMILIES: dict[str, type[Family]] = {
    "internvl": InternVL,
    "llava_onevision": LlavaOnevision,
    "qwen2_5_vl": Qwen25VL,
    "qwen3_vl": Qwen3VL,
}


def family_class(model: nn.Module) -> type[Family]:
    """The family of a loaded transformers model.

    Raises:
        ConfigError: it belongs to none that is supported, or is in training mode.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in FAMILIES:
        given = f"a model of type {kind!r}" if kind else f"a {type(model).__name__}"
        raise ConfigError(
            f"{given} is not supported. A stream runs transformers models of type {', '.join(sorted(FAMILIES))}."
        )
    check_evaluation_mode(model)
    return FAMILIES[kind]


def read_pixel_settings(family: type[Family], source: Any) -> PixelSettings:
    """The family's pixel settings, with what a checkpoint or processor says in their place.

    Args:
        family: whose defaults are filled in.
        source: a folder or hub name, a processor of transformers, or None.
    """
    settings = family.default_pixels
    if isinstance(source, str | Path):
        for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
            if (path := door.find_file(str(source), name)) is not None:
                return settings.updated(json.loads(Path(path).read_text()))
        return settings
    video_processor = getattr(source, "video_processor", None)
    if video_processor is None:
        return settings
    size = dict(getattr(video_processor, "size", None) or {})
    stored = {name: getattr(video_processor, name, None) for name in ("image_mean", "image_std")}
    return settings.updated({**stored, "size": size})
