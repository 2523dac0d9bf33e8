"""What the config files beside a vision encoder's weights tell about it: transformers', timm's and open_clip's."""

import re
from collections.abc import Mapping
from typing import Any

from kinescan.errors import CheckpointError
from kinescan.models.weights.checkpoint_file import Checkpoint
from kinescan.models.weights.conventions import CONVENTIONS
from kinescan.models.weights.layouts import Family
from kinescan.models.weights.published_encoders import (
    HUGGING_FACE_DEFAULTS,
    HUGGING_FACE_FAMILIES,
    HUGGING_FACE_NAMES,
    ROTARY_NAMES,
)

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")
_OTHER_NAMES = {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quickgelu": "quick_gelu",
    "gelu_python": "gelu",
}
_TIMM_POOLING = {"token": "class", "avg": "mean", "map": "attention"}


def read_settings(checkpoint: Checkpoint, layout: str, family: Family, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ViTConfig` that the config files beside the weights tell.

    Args:
        checkpoint: its `settings` are read.
        layout: whose names the tensors have.
        family: whose conventions hold.
        sizes: what the tensors tell; a config of other sizes belongs to another vision encoder.

    Raises:
        CheckpointError: a config names an encoder, an activation or a pooling that `VisionTransformer` has not, is of
            another encoder, or has a value of the wrong kind.
    """
    refuse_rotary_names(checkpoint.source, checkpoint.source.split("@")[0].rsplit("/", 1)[-1], checkpoint.file.name)
    reader = _Reader(checkpoint, sizes)
    settings = checkpoint.settings
    # A folder may hold open_clip's and transformers' files side by side.
    if layout == "hugging_face" and "model_type" in settings:
        return reader.hugging_face(family)
    if "model_cfg" in settings:
        return reader.open_clip(family)
    if "architecture" in settings:
        return reader.timm(settings, family)
    return reader.hugging_face(family) if "model_type" in settings else {}


def refuse_rotary_names(source: str, *names: str) -> None:
    """Raises an error where a name says that a vision encoder has rotary positions that its tensors do not show."""
    for name in names:
        if re.search(ROTARY_NAMES, name):
            raise CheckpointError(
                f"{source}: {name} names an encoder with rotary positions of another kind, which VisionTransformer has "
                "not. Give one with learned positions, such as CLIP's, SigLIP's or DINOv2's, or DINOv3's."
            )


class _Reader:
    """Reads one checkpoint's config files."""

    def __init__(self, checkpoint: Checkpoint, sizes: Mapping[str, Any]) -> None:
        self.source, self.settings, self.sizes = checkpoint.source, checkpoint.settings, sizes

    def hugging_face(self, family: Family) -> dict[str, Any]:
        vision = self._part(self.settings, "vision_config") or self.settings
        kind = self._text(vision, "model_type") or self._text(self.settings, "model_type")
        if kind not in HUGGING_FACE_DEFAULTS:
            raise CheckpointError(
                f"{self.source}: its config.json is of a {kind!r}, whose vision encoder is not known to be a ViT. "
                f"Known: {', '.join(sorted(HUGGING_FACE_DEFAULTS))}. Take config.json away (and give heads=...) where "
                "you know that the encoder is a plain one."
            )
        if HUGGING_FACE_FAMILIES.get(kind, family) != family:
            raise CheckpointError(
                f"{self.source}: its config.json is of a {kind!r}, its tensors are those of a "
                f"{HUGGING_FACE_NAMES[family]}. One of the two files is another model's; fetch both again."
            )
        # Hugging Face leaves out what equals its default.
        activation, norm_eps, heads = HUGGING_FACE_DEFAULTS[kind]
        told = {
            "activation": self._activation(self._text(vision, "hidden_act") or activation),
            "norm_eps": self._number(vision, "layer_norm_eps") or norm_eps,
            "heads": self._whole(vision, "num_attention_heads") or heads,
        }
        self._compare(vision, width="hidden_size", depth="num_hidden_layers")
        if family == "dinov3":
            theta = CONVENTIONS[family].rotary_theta
            told["rotary_theta"] = float(self._number(vision, "rope_theta") or theta)
            told["image_size"] = self._whole(vision, "image_size") or 224
        return told

    def open_clip(self, family: Family) -> dict[str, Any]:
        config = self._part(self.settings, "model_cfg")
        vision = self._part(config, "vision_cfg")
        told: dict[str, Any]
        if name := self._text(vision, "timm_model_name"):
            told = self.timm({"architecture": name, "global_pool": vision.get("timm_pool")}, family)
            if config.get("quick_gelu"):
                told["activation"] = "quick_gelu"
            return told
        told = {"activation": "quick_gelu" if config.get("quick_gelu") else "gelu"}
        if not config.get("quick_gelu") and self._part(vision, "act_kwargs").get("approximate") == "tanh":
            told["activation"] = "gelu_tanh"
        if eps := self._number(self._part(vision, "norm_kwargs"), "eps"):
            told["norm_eps"] = eps
        if (width := self._whole(vision, "width")) is not None:
            told["heads"] = width // (self._whole(vision, "head_width") or 64)
            self._compare(vision, width="width", depth="layers")
        pool = "avg" if vision.get("global_average_pool") else vision.get("pool_type", "tok")
        if pool == "avg":
            told["pooling"] = "mean" if vision.get("final_ln_after_pool") else "mean_after_norm"
        elif pool not in ("tok", "none"):
            self._refuse("pools by", pool, "tok and avg")
        return told

    def timm(self, settings: Mapping[str, Any], family: Family) -> dict[str, Any]:
        name = self._text(settings, "architecture") or ""
        refuse_rotary_names(self.source, name)
        arguments = self._part(settings, "model_args")
        tag = self._text(self._part(settings, "pretrained_cfg"), "tag")
        told: dict[str, Any]
        if activation := self._text(arguments, "act_layer"):
            told = {"activation": self._activation(activation)}
        elif "quickgelu" in name or tag == "openai":
            # timm keeps OpenAI's weights under names of models with GELU; they were trained with QuickGELU.
            told = {"activation": "quick_gelu"}
        else:
            # SigLIP was trained with the tanh form, whatever timm calls for.
            told = {"activation": "gelu_tanh" if family == "siglip" else "gelu"}
        if heads := self._whole(arguments, "num_heads"):
            told["heads"] = heads
        pool = arguments.get("global_pool", settings.get("global_pool"))
        if pool in ("", None):
            return told
        if pool not in _TIMM_POOLING:
            self._refuse("pools by", pool, ", ".join(_TIMM_POOLING))
        told["pooling"] = _TIMM_POOLING[pool]
        if pool == "avg" and self.sizes["pooling"] != "mean":
            # The tensors show a norm of every token, and none of their mean (fc_norm).
            told["pooling"] = "mean_after_norm"
        return told

    def _compare(self, config: Mapping[str, Any], **keys: str) -> None:
        for field, key in keys.items():
            value = self._whole(config, key)
            if value is not None and value != self.sizes[field]:
                raise CheckpointError(
                    f"{self.source}: the config beside the weights has {key} = {value}, the tensors have "
                    f"{self.sizes[field]}. It is another vision encoder's, or the file is cut; fetch both again."
                )

    def _activation(self, name: str) -> str:
        name = _OTHER_NAMES.get(name, name)
        if name not in ACTIVATIONS:
            self._refuse("asks for the activation", name, " and ".join(ACTIVATIONS))
        return name

    def _refuse(self, what: str, value: object, allowed: str) -> None:
        raise CheckpointError(
            f"{self.source}: its config {what} {value!r}; VisionTransformer has {allowed}. Give another checkpoint."
        )

    def _part(self, config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        part = self._typed(config, key, Mapping, "an object")
        return part if isinstance(part, Mapping) else {}

    def _text(self, config: Mapping[str, Any], key: str) -> str | None:
        return self._typed(config, key, str, "a text")  # type: ignore[return-value]

    def _number(self, config: Mapping[str, Any], key: str) -> float | None:
        value = self._typed(config, key, (int, float), "a number")
        if value is not None and not 0 < value < float("inf"):  # type: ignore[operator]
            self._refuse_kind(key, value, "a positive number")
        return value  # type: ignore[return-value]

    def _whole(self, config: Mapping[str, Any], key: str) -> int | None:
        value = self._typed(config, key, int, "a whole number")
        if value is not None and value < 1:  # type: ignore[operator]
            self._refuse_kind(key, value, "a whole number from 1")
        return value  # type: ignore[return-value]

    def _typed(self, config: Mapping[str, Any], key: str, kind: Any, wanted: str) -> object:
        value = config.get(key)
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            self._refuse_kind(key, value, wanted)
        return value

    def _refuse_kind(self, key: str, value: object, wanted: str) -> None:
        raise CheckpointError(
            f"{self.source}: {key} in the config beside the weights must be {wanted}, got {str(value)[:60]!r}. "
            "Fetch the config again, or take it away."
        )
