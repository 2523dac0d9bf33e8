import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinescan.errors import CheckpointError
from kinescan.models.checkpoint_file import Checkpoint, open_checkpoint, read_checkpoint
from kinescan.models.conventions import CONVENTIONS
from kinescan.models.layouts import Family, describe_layouts, detect_layout, translate
from kinescan.models.load_report import LoadReport
from kinescan.models.vit import ViTConfig

__all__ = [
    "Checkpoint",
    "LoadReport",
    "Pretrained",
    "infer_vit_config",
    "load_pretrained",
    "open_checkpoint",
    "read_checkpoint",
    "read_vision_tower",
    "resize_positions",
]

logger = logging.getLogger(__name__)

_HEAD_WIDTH = 64
_SIGLIP_HEADS = {1152: 16}
"""Width -> heads of the tower ("so400m") whose heads are not 64 wide."""
_BLOCKS = "transformer.resblocks."
_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")
_HUGGING_FACE_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Weights under a model's own names, with what they say about its config.

    Attributes:
        source: where they came from.
        layout: whose names they had.
        tensors: parameter name in the model -> tensor.
        unexpected: names in the checkpoint that were left out already.
        sizes: config fields that the weights or the files beside them tell; other values contradict them.
        conventions: config fields that are usual for such weights; other values may be asked for.
        preprocessing: fields of `Preprocessing` that the files beside them tell.
        labels: class names of its head, or None if it has no head or no names for it.
        model: name in the zoo that it was saved under, or None.
    """

    source: str
    layout: str
    tensors: dict[str, Tensor]
    unexpected: tuple[str, ...] = ()
    sizes: dict[str, Any] = field(default_factory=dict)
    conventions: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    model: str | None = None


def read_vision_tower(checkpoint: Checkpoint, *, prefix: str = "vit.") -> Pretrained:
    """The vision tower of a checkpoint, under the names it has inside a model.

    Layouts: OpenAI CLIP, open_clip (also with a timm tower), Hugging Face CLIP, SigLIP, ViT, ViTMAE, DINOv2 (also with
    registers) and DINOv3, timm VisionTransformer, the own files of DINOv2, DINOv3 and MAE, kinescan.

    Args:
        checkpoint: as `open_checkpoint` gives it.
        prefix: the tower's place in the model.

    Raises:
        CheckpointError: no layout fits, or the tower has parts that `VisionTransformer` has not.
    """
    layout = detect_layout(checkpoint.tensors)
    if layout is None:
        held = list(checkpoint.tensors)
        raise CheckpointError(
            f"{checkpoint.source} fits no layout of a vision transformer. It holds {len(held)} tensors: "
            f"{', '.join(held[:5])}{', ...' if len(held) > 5 else ''}. Expected one of:\n{describe_layouts()}"
        )
    if layout == "kinescan":
        return _read_own(checkpoint, prefix)
    tower = translate(checkpoint.tensors, layout, checkpoint.source)
    name = tower.layout
    if name == "openai" and ("model_cfg" in checkpoint.settings or checkpoint.file.name.startswith("open_clip")):
        name = "open_clip"
    usual = CONVENTIONS[tower.family]
    told = _read_settings(checkpoint, name, tower.family)
    sizes = infer_vit_config(tower.tensors, source=checkpoint.source) | tower.sizes
    if sizes["positions"] == "rotary":
        # Rotary positions do not tell how many there were.
        sizes["image_size"] = told.pop("image_size", sizes["image_size"])
        sizes.setdefault("rotary_theta", told.pop("rotary_theta", usual.rotary_theta))
    heads = sizes.pop("heads")
    conventions = {
        "pooling": sizes.pop("pooling"),
        "heads": _SIGLIP_HEADS.get(sizes["width"], heads) if tower.family == "siglip" else heads,
        "activation": _usual_activation(name, checkpoint) if tower.family == "clip" else usual.activation,
        "norm_eps": usual.timm_eps if name == "timm" and not sizes["pre_norm"] else usual.norm_eps,
    }
    if "heads" in told:
        del conventions["heads"]
        sizes["heads"] = told.pop("heads")
    if "activation" not in told and tower.family in ("clip", "vit"):
        logger.info(
            "%s: nothing says which activation; %s is usual for the %s layout, activation=... asks for another",
            checkpoint.source,
            conventions["activation"],
            name,
        )
    return Pretrained(
        source=checkpoint.source,
        layout=name,
        tensors={prefix + key: tensor for key, tensor in tower.tensors.items()},
        unexpected=tower.unexpected,
        sizes=sizes,
        conventions=conventions | told,
        preprocessing={**usual.pixels} | _read_preprocessing(checkpoint.settings),
    )


def infer_vit_config(tensors: Mapping[str, Tensor], *, source: str = "the checkpoint") -> dict[str, Any]:
    """The fields of `ViTConfig` that the tensors of a vision tower tell.

    Args:
        tensors: under the names of `VisionTransformer`.
        source: named in errors.

    Returns:
        image_size, patch_size, width, depth, heads (width / 64, as in every CLIP tower; None where 64 does not divide
        it), mlp_dim, embed_dim, pre_norm, patch_bias, class_token, num_registers, layer_scale, positions, pooling.
        Without position embeddings, image_size is 224 or the multiple of the patch size below it.

    Raises:
        CheckpointError: patches or the grid of positions are not square.

    Example:
        >>> from kinescan.models.vit import VisionTransformer
        >>> infer_vit_config(VisionTransformer(ViTConfig(depth=2)).state_dict())["image_size"]
        224
    """
    width, _, patch_rows, patch_columns = tensors["conv1.weight"].shape
    class_token = "class_embedding" in tensors
    learned = "positional_embedding" in tensors
    num_patches = tensors["positional_embedding"].shape[0] - class_token if learned else (224 // patch_rows) ** 2
    side = math.isqrt(max(num_patches, 0))
    if patch_rows != patch_columns or side * side != num_patches or side == 0:
        beside = " beside the class token" if class_token else ""
        raise CheckpointError(
            f"{source}: patches of {patch_rows} x {patch_columns} pixels and {num_patches} positions{beside}; "
            "both must be square. Give a tower that was trained on square images."
        )
    pooled = "attention" if "attn_pool.probe" in tensors else "class" if class_token else "mean"
    return {
        "image_size": side * patch_rows,
        "patch_size": patch_rows,
        "width": width,
        "depth": sum(name.startswith(_BLOCKS) and name.endswith(".attn.in_proj_weight") for name in tensors),
        "heads": width // _HEAD_WIDTH if width % _HEAD_WIDTH == 0 else None,
        "mlp_dim": tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "embed_dim": tensors["proj"].shape[1] if "proj" in tensors else None,
        "pre_norm": "ln_pre.weight" in tensors,
        "patch_bias": "conv1.bias" in tensors,
        "class_token": class_token,
        "num_registers": len(tensors["register_tokens"]) if "register_tokens" in tensors else 0,
        "layer_scale": "transformer.resblocks.0.ls_1.gamma" in tensors,
        "positions": "learned" if learned else "rotary",
        "pooling": pooled,
    }


def load_pretrained(
    model: nn.Module, pretrained: Pretrained, *, skip: tuple[str, ...] = (), notes: Mapping[str, str] | None = None
) -> LoadReport:
    """Copies weights into a model, in the model's dtype; position embeddings are interpolated to its grid.

    Args:
        model: changed in place.
        pretrained: weights under the model's names.
        skip: prefixes of names to leave out, such as the head of other classes.
        notes: name -> what was done to a tensor before, for the report.

    Returns:
        What became of every tensor; also logged.

    Raises:
        CheckpointError: a tensor of the backbone has another shape than in the model, or nothing fits.
    """
    own = model.state_dict()
    fitting: dict[str, Tensor] = {}
    notes = notes or {}
    unexpected, resized = list(pretrained.unexpected), []
    for name, tensor in pretrained.tensors.items():
        if name not in own or name.startswith(skip):
            unexpected.append(name)
        elif tensor.shape == own[name].shape:
            fitting[name] = tensor
        elif name.endswith("positional_embedding") and tensor.shape[1:] == own[name].shape[1:]:
            fitting[name] = resize_positions(tensor, own[name].shape[0])
            resized.append(name)
        else:
            raise CheckpointError(
                f"{pretrained.source}: {name} is {list(tensor.shape)}, in the model {list(own[name].shape)}. "
                "Leave out the option that asks for another size, or give another checkpoint."
            )
    if not fitting:
        raise CheckpointError(
            f"{pretrained.source}: none of its {len(pretrained.tensors)} tensors fits the model; it expects "
            f"{', '.join(list(own)[:4])}, ..."
        )
    model.load_state_dict(fitting, strict=False)
    report = LoadReport(
        source=pretrained.source,
        layout=pretrained.layout,
        loaded=tuple(fitting),
        missing=tuple(name for name in own if name not in fitting),
        unexpected=tuple(unexpected),
        resized=(*resized, *(name for name in notes if name in fitting)),
        notes=tuple(notes.values()),
    )
    logger.info("%s", report)
    return report


def resize_positions(positions: Tensor, length: int) -> Tensor:
    """Position embeddings interpolated to another square grid; the class token's, if there is one, stays as it is.

    Bicubic, with antialiasing (which matters only towards smaller grids), corners not aligned, in float32.

    Args:
        positions: [1 + N, W], N a square, the class token first; or [N, W] without.
        length: 1 + the number of patches wanted, a square too; or without the 1.

    Returns:
        [length, W] float32.

    Example:
        >>> resize_positions(torch.ones(1 + 7 * 7, 4), 1 + 14 * 14).shape
        torch.Size([197, 4])
    """
    old_side, side = (math.isqrt(count) for count in (positions.shape[0], length))
    before = positions.shape[0] - old_side * old_side
    positions = positions.float()
    grid = positions[before:].T.reshape(1, -1, old_side, old_side)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:before], grid.flatten(2)[0].T])


def _read_own(checkpoint: Checkpoint, prefix: str) -> Pretrained:
    """A model of ours; without its config.json the sizes are read from the tensors."""
    settings = checkpoint.settings
    if "kinescan_version" in settings and isinstance(settings.get("config"), dict):
        backbone = {key.name for key in dataclasses.fields(ViTConfig)} - {"drop_path", "position_init"}
        sizes = {key: value for key, value in settings["config"].items() if key in backbone}
        others = {key: value for key, value in settings["config"].items() if key not in backbone | {"num_classes"}}
    else:
        inside = {name.removeprefix(prefix): value for name, value in checkpoint.tensors.items()}
        tower = translate(inside, "openai_tower", checkpoint.source)
        sizes = infer_vit_config(tower.tensors, source=checkpoint.source)
        others = {"heads": sizes.pop("heads")}
    return Pretrained(
        source=checkpoint.source,
        layout="kinescan",
        tensors=checkpoint.tensors,
        sizes=sizes,
        conventions=others,
        preprocessing=settings.get("preprocessing", {}),
        labels=tuple(settings["labels"]) if settings.get("labels") is not None else None,
        model=settings.get("model"),
    )


def _read_settings(checkpoint: Checkpoint, layout: str, family: Family) -> dict[str, Any]:
    """heads, activation, norm_eps and more, where the config files beside the weights tell them."""
    settings, told = checkpoint.settings, {}
    if layout == "hugging_face" and "model_type" in settings:
        vision = settings.get("vision_config") or settings
        usual = CONVENTIONS[family]
        # Hugging Face leaves out what equals its default.
        told["activation"] = _HUGGING_FACE_ACTIVATIONS.get(
            vision.get("hidden_act", usual.activation), vision.get("hidden_act", usual.activation)
        )
        told["norm_eps"] = vision.get("layer_norm_eps", usual.norm_eps)
        told["heads"] = vision.get("num_attention_heads", usual.heads)
        if family == "dinov3":
            told["rotary_theta"] = float(vision.get("rope_theta", usual.rotary_theta))
            told["image_size"] = vision.get("image_size", 224)
    elif "model_cfg" in settings:
        told["activation"] = "quick_gelu" if settings["model_cfg"].get("quick_gelu") else "gelu"
        vision = settings["model_cfg"].get("vision_cfg", {})
        if "head_width" in vision and "width" in vision:
            told["heads"] = vision["width"] // vision["head_width"]
    elif "architecture" in settings:
        tag = settings.get("pretrained_cfg", {}).get("tag")
        # timm keeps OpenAI's weights under names of models with GELU; they were trained with QuickGELU.
        quick = "quickgelu" in settings["architecture"] or tag == "openai"
        told["activation"] = "quick_gelu" if quick else "gelu"
    if told.get("activation", "gelu") not in _ACTIVATIONS:
        raise CheckpointError(
            f"{checkpoint.source}: its config asks for the activation {told['activation']!r}; "
            f"VisionTransformer has {' and '.join(_ACTIVATIONS)}. Give another checkpoint."
        )
    return told


def _usual_activation(layout: str, checkpoint: Checkpoint) -> str:
    openai = layout in ("openai", "hugging_face") or checkpoint.source.split("@")[0].endswith(".openai")
    return "quick_gelu" if openai else "gelu"


def _read_preprocessing(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation of the pixels, where the config files beside the weights tell them."""
    told = settings.get("preprocess_cfg") or settings.get("pretrained_cfg") or {}
    found = {"mean": told.get("mean"), "std": told.get("std")}
    if "image_mean" in settings:
        found = {"mean": settings["image_mean"], "std": settings.get("image_std")}
    return {key: tuple(value) for key, value in found.items() if value is not None}
