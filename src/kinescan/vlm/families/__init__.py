"""The families of VLMs that a stream can run, one file each; the only door to transformers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kinescan.errors import ConfigError
from kinescan.vlm.families import door
from kinescan.vlm.families.base import Family, Features, Positions, PromptFormat, check_ready
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
    "Vlm",
    "family_class",
    "load_vlm",
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
        ConfigError: it belongs to none that is supported, or is in training mode or on several devices.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in FAMILIES:
        given = f"a model of type {kind!r}" if kind else f"a {type(model).__name__}"
        raise ConfigError(
            f"{given} is not supported. A stream runs transformers models of type {', '.join(sorted(FAMILIES))}."
        )
    check_ready(model)
    return FAMILIES[kind]


@dataclass(frozen=True, kw_only=True)
class Vlm:
    """A loaded VLM and what a stream into it wants: `open_stream(vlm.model, vlm.tokenizer, pixels=vlm.pixels)`.

    Attributes:
        model: the transformers model, in evaluation mode.
        tokenizer: its tokenizer.
        pixels: how its checkpoint says that frames are prepared.
    """

    model: nn.Module
    tokenizer: Any
    pixels: PixelSettings


def load_vlm(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
) -> Vlm:
    """A VLM of a supported family, from a folder or the Hugging Face hub.

    Args:
        name: folder or hub name.
        revision: branch, tag or commit on the hub.
        dtype: of the weights; "auto" is the checkpoint's own.
        device: where it runs.

    Raises:
        CheckpointError: it cannot be loaded.
        ConfigError: its family is not supported.
        DependencyError: transformers is not installed.
    """
    model, tokenizer = door.load_pretrained(str(name), revision=revision, dtype=dtype)
    pixels = read_pixel_settings(family_class(model), name)
    return Vlm(model=model.to(device), tokenizer=tokenizer, pixels=pixels)


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
