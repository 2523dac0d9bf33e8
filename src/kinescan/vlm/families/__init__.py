"""The families of VLMs that a stream can run, one file each; the only door to transformers."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kinescan.errors import CheckpointError, ConfigError
from kinescan.runtime.files import read_json_object
from kinescan.vlm.config import check_flag
from kinescan.vlm.families import door
from kinescan.vlm.families.base import Family, Features, Positions, PromptFormat, check_ready
from kinescan.vlm.families.folder import first_sentence
from kinescan.vlm.families.generic import Generic
from kinescan.vlm.families.internvl import InternVL
from kinescan.vlm.families.llava_next_video import LlavaNextVideo
from kinescan.vlm.families.llava_onevision import LlavaOnevision
from kinescan.vlm.families.perception_lm import PerceptionLM
from kinescan.vlm.families.pixels import PixelSettings
from kinescan.vlm.families.qwen2_5_vl import Qwen25VL
from kinescan.vlm.families.qwen2_vl import Qwen2VL
from kinescan.vlm.families.qwen3_vl import Qwen3VL, Qwen3VLMoe, Qwen35, Qwen35Moe
from kinescan.vlm.families.refused import REFUSED
from kinescan.vlm.families.smolvlm import SmolVLM
from kinescan.vlm.families.video_llama_3 import VideoLlama3

__all__ = [
    "FAMILIES",
    "Family",
    "Features",
    "Generic",
    "PixelSettings",
    "Positions",
    "PromptFormat",
    "Vlm",
    "family_class",
    "load_vlm",
    "read_pixel_settings",
]

logger = logging.getLogger(__name__)

_PIXEL_FILES = (
    ("video_preprocessor_config.json", None),
    ("processor_config.json", "video_processor"),
    ("preprocessor_config.json", None),
    ("processor_config.json", "image_processor"),
)
"""Where checkpoints say how frames are prepared, the first that does is taken, and in which part of the file."""

FAMILIES: dict[str, type[Family]] = {
    "internvl": InternVL,
    "llava_next_video": LlavaNextVideo,
    "llava_onevision": LlavaOnevision,
    "perception_lm": PerceptionLM,
    "qwen2_5_vl": Qwen25VL,
    "qwen2_vl": Qwen2VL,
    "qwen3_5": Qwen35,
    "qwen3_5_moe": Qwen35Moe,
    "qwen3_vl": Qwen3VL,
    "qwen3_vl_moe": Qwen3VLMoe,
    "smolvlm": SmolVLM,
    "video_llama_3": VideoLlama3,
}


def family_class(model: nn.Module) -> type[Family]:
    """The family of a loaded transformers model; `Generic` where it has none of its own.

    Raises:
        ConfigError: it is refused, or no VLM of transformers, or is in training mode or on several devices.
    """
    model = door.unwrapped(model)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind in REFUSED:
        raise ConfigError(f"{kind} is not supported: {REFUSED[kind]}. {closest_families()}")
    if kind not in FAMILIES and not door.is_vlm(kind):
        given = f"a model of type {kind!r}" if kind else f"a {type(model).__name__}"
        raise ConfigError(f"{given} is not supported. {closest_families()}")
    can_generate: Any = getattr(model, "can_generate", None)
    if can_generate is not None and not can_generate():
        raise ConfigError(
            f"a {type(model).__name__} has no head that makes tokens of what its decoder gives. Give the whole model "
            "(a ...ForConditionalGeneration), or load it by load_vlm."
        )
    check_ready(model)
    return FAMILIES.get(str(kind), Generic)


def closest_families() -> str:
    """A sentence that says which families run."""
    return (
        f"A stream runs transformers models of type {', '.join(sorted(FAMILIES))}, and other decoder-only VLMs that "
        "pass a check at opening."
    )


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
    merge_adapter: bool = False,
) -> Vlm:
    """A VLM of a supported family, from a folder or the Hugging Face hub.

    Args:
        name: folder or hub name.
        revision: branch, tag or commit on the hub.
        dtype: of the weights; "auto" is the checkpoint's own.
        device: where it runs.
        merge_adapter: where the folder holds an adapter of PEFT, its weights become part of its base model's. By
            default its layers stay beside them.

    Raises:
        CheckpointError: it cannot be loaded.
        ConfigError: its family is not supported.
        DependencyError: transformers is not installed.
    """
    check_flag("merge_adapter", merge_adapter)
    if revision is not None and not isinstance(revision, str):
        raise ConfigError(f"revision must be the name of a branch, tag or commit, got {revision!r:.60}.")
    usable = _usable(device)
    model, tokenizer, folder = door.load_pretrained(
        name,
        families=FAMILIES,
        revision=revision,
        dtype=_dtype_of(dtype),
        prepare=_read_pixels,
        merge_adapter=merge_adapter,
        device=usable,
    )
    pixels = read_pixel_settings(family_class(model), folder)
    # quantised weights are put on their device as they are read, and may not be moved
    moved = model if getattr(door.unwrapped(model), "is_quantized", False) else model.to(usable)
    return Vlm(model=moved, tokenizer=tokenizer, pixels=pixels)


def read_pixel_settings(family: type[Family], source: Any) -> PixelSettings:
    """The family's pixel settings, with the values that a checkpoint or processor has.

    Args:
        family: whose defaults are filled in.
        source: a model's folder, a processor of transformers, or None.

    Raises:
        CheckpointError: a file of the folder is damaged, or says something impossible.
    """
    settings = family.default_pixels
    if isinstance(source, str | Path):
        for name, part in _PIXEL_FILES:
            path = Path(source) / name
            if not path.exists():
                continue
            stored = read_json_object(path, error=CheckpointError)
            if part is not None and part not in stored:
                continue
            try:
                return settings.updated(stored if part is None else stored[part])
            except (ConfigError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise CheckpointError(f"{path} says nothing usable about pixels ({error}). Fetch it again.") from None
        logger.info("%s says nothing about pixels: the family's own settings are used", source)
        return settings
    video_processor = getattr(source, "video_processor", None)
    if video_processor is None:
        return settings
    size = dict(getattr(video_processor, "size", None) or {})
    stored = {name: getattr(video_processor, name, None) for name in ("image_mean", "image_std")}
    return settings.updated({**stored, "size": size})


def _read_pixels(folder: Path, model_type: str) -> None:
    """Before the weights are read, so that a damaged file is named at once."""
    read_pixel_settings(FAMILIES.get(model_type, Generic), folder)


def _usable(device: str | torch.device) -> torch.device:
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    # torch says in several ways that a device is not there
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise ConfigError(
            f"device {device!r} cannot be used ({first_sentence(error)}) Use cpu, or one that is there."
        ) from None
    return wanted


def _dtype_of(dtype: str | torch.dtype) -> str | torch.dtype:
    if isinstance(dtype, str) and dtype != "auto":
        found = getattr(torch, dtype.removeprefix("torch."), None)
        dtype = found if isinstance(found, torch.dtype) else dtype
    if dtype != "auto" and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConfigError(f"dtype must be auto, float32, bfloat16 or float16, got {dtype!r}.")
    return dtype
