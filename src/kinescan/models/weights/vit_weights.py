import dataclasses
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinescan.errors import CheckpointError, KinescanError
from kinescan.models.vit.vit_config import ViTConfig
from kinescan.models.weights.checkpoint_file import Checkpoint
from kinescan.models.weights.conventions import CONVENTIONS
from kinescan.models.weights.encoder_config import read_settings
from kinescan.models.weights.layout_names import STEM
from kinescan.models.weights.layouts import Family, describe_layouts, find_encoder, translate
from kinescan.models.weights.load_report import LoadReport
from kinescan.models.weights.published_encoders import HEADS, NARROW_HEADS, SIGLIP_HEADS
from kinescan.models.weights.strangers import ADVICE
from kinescan.models.weights.text_encoder import checked_texts
from kinescan.runtime.error_text import first_line

__all__ = [
    "Pretrained",
    "infer_vit_config",
    "load_pretrained",
    "read_vision_encoder",
    "read_vision_tower",
    "resize_positions",
]

logger = logging.getLogger(__name__)

_BLOCKS = "transformer.resblocks."
_OWN_PREFIX = "vit."


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
        class_texts: label -> the texts that its row of the head was made from, or None.
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
    class_texts: Mapping[str, tuple[str, ...]] | None = None


def read_vision_encoder(checkpoint: Checkpoint, *, prefix: str = "vit.") -> Pretrained:
    """The vision encoder of a checkpoint, under the names it has inside a model.

    Layouts: OpenAI CLIP, open_clip (also with a timm encoder), Hugging Face CLIP, SigLIP, ViT, ViTMAE, DINOv2 (also
    with registers) and DINOv3, timm VisionTransformer, the own files of DINOv2, DINOv3 and MAE, kinescan.

    Args:
        checkpoint: as `open_checkpoint` gives it.
        prefix: of the vision encoder in the model.

    Raises:
        CheckpointError: no layout fits, or the encoder has parts that `VisionTransformer` has not.
    """
    held, layout, elsewhere = find_encoder(checkpoint.tensors, checkpoint.source)
    if layout is None:
        names = list(held)
        adapter = any("lora_" in name for name in names)
        merge = " These are adapters (LoRA) alone: merge them into their model and save that." if adapter else ""
        raise CheckpointError(
            f"{checkpoint.source} fits no layout of a vision transformer. It holds {len(names)} tensors: "
            f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}.{merge} Expected one of: {describe_layouts()}"
        )
    if layout == "kinescan":
        return _read_own(checkpoint)
    with shapes_that_fit(checkpoint.source):
        encoder = translate(held, layout, checkpoint.source)
        sizes = infer_vit_config(encoder.tensors, source=checkpoint.source) | encoder.sizes
    name = encoder.layout
    if name == "openai" and ("model_cfg" in checkpoint.settings or checkpoint.file.name.startswith("open_clip")):
        name = "open_clip"
    told = read_settings(checkpoint, name, encoder.family, sizes)
    conventions = _usual_fields(checkpoint, encoder.family, name, layout, sizes)
    if sizes["positions"] == "rotary":
        # Rotary positions do not tell how many there were.
        sizes["image_size"] = told.pop("image_size", sizes["image_size"])
        theta = told.pop("rotary_theta", CONVENTIONS[encoder.family].rotary_theta)
        sizes.setdefault("rotary_theta", theta)
    del sizes["pooling"]
    if "heads" in told:
        del conventions["heads"]
        sizes["heads"] = told.pop("heads")
    elif sizes["heads"] is None and encoder.family == "siglip":
        conventions["heads"] = SIGLIP_HEADS.get((sizes["width"], sizes["depth"]))
    if "heads" in conventions:
        del sizes["heads"]
    if "activation" not in told and encoder.family in ("clip", "vit"):
        logger.info(
            "%s: nothing says which activation; %s is usual for the %s layout, activation=... asks for another",
            checkpoint.source,
            conventions["activation"],
            name,
        )
    return Pretrained(
        source=checkpoint.source,
        layout=name,
        tensors={prefix + key: tensor for key, tensor in encoder.tensors.items()},
        unexpected=(*encoder.unexpected, *elsewhere),
        sizes=sizes,
        conventions=conventions | told,
        preprocessing={**CONVENTIONS[encoder.family].pixels} | _read_preprocessing(checkpoint),
    )


def read_vision_tower(checkpoint: Checkpoint, *, prefix: str = "vit.") -> Pretrained:
    """The old name of `read_vision_encoder`; deprecated."""
    warnings.warn("read_vision_tower is deprecated. Use read_vision_encoder.", DeprecationWarning, stacklevel=2)
    return read_vision_encoder(checkpoint, prefix=prefix)


@contextmanager
def shapes_that_fit(source: str) -> Iterator[None]:
    """Within the block, tensors are put together by name; shapes that do not fit are an error of `kinescan.errors`.

    Raises:
        CheckpointError: torch could not put them together.
    """
    try:
        yield
    except KinescanError:
        raise
    except (RuntimeError, IndexError, ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise CheckpointError(
            f"{source}: its tensors have shapes that do not go together ({first_line(error)[:200]}). "
            "It is damaged, or a model of another kind; fetch it again, or give another."
        ) from error


def _usual_fields(
    checkpoint: Checkpoint, family: Family, name: str, layout: str, sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """What holds where no config beside the weights says anything else."""
    usual = CONVENTIONS[family]
    timm = layout in ("timm", "open_clip_trunk") and not sizes["pre_norm"]
    return {
        "pooling": sizes["pooling"],
        "heads": sizes["heads"],
        "activation": _usual_activation(name, checkpoint) if family == "clip" else usual.activation,
        "norm_eps": usual.timm_eps if timm else usual.norm_eps,
    }


def infer_vit_config(tensors: Mapping[str, Tensor], *, source: str = "the checkpoint") -> dict[str, Any]:
    """The fields of `ViTConfig` that the tensors of a vision encoder tell.

    Args:
        tensors: under the names of `VisionTransformer`.
        source: named in errors.

    Returns:
        image_size, patch_size, width, depth, heads (those of the encoders published in this size; None where there are
        none), mlp_dim, embed_dim, pre_norm, patch_bias, stem_convolutions, class_token, num_registers, layer_scale,
        positions, pooling. Without position embeddings, image_size is 224 or the multiple of the patch size below it.

    Raises:
        CheckpointError: patches or the grid of positions are not square, or products have other widths than ours.

    Example:
        >>> from kinescan.models.vit.vit import VisionTransformer
        >>> infer_vit_config(VisionTransformer(ViTConfig(depth=2)).state_dict())["image_size"]
        224
    """
    stem = sum(name.startswith(STEM) and tensor.dim() == 4 for name, tensor in tensors.items())
    width = tensors["conv1.weight"].shape[0]
    patch_rows, patch_columns = (side << stem for side in tensors["conv1.weight"].shape[2:])
    class_token = "class_embedding" in tensors
    learned = "positional_embedding" in tensors
    num_patches = tensors["positional_embedding"].shape[0] - class_token if learned else (224 // patch_rows) ** 2
    side = math.isqrt(max(num_patches, 0))
    if patch_rows != patch_columns or side * side != num_patches or side == 0:
        beside = " beside the class token" if class_token else ""
        raise CheckpointError(
            f"{source}: patches of {patch_rows} x {patch_columns} pixels and {num_patches} positions{beside}; "
            "both must be square. Give a vision encoder that was trained on square images."
        )
    if "attn_pool.probe" in tensors and class_token:
        raise CheckpointError(f"{source}: an attention pool beside a class token, which ours does not read. {ADVICE}")
    pooled = "attention" if "attn_pool.probe" in tensors else "class" if class_token else "mean_after_norm"
    depth = sum(name.startswith(_BLOCKS) and name.endswith(".attn.in_proj_weight") for name in tensors)
    mlp_dim = tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    _refuse_other_widths(tensors, width, mlp_dim, source)
    return {
        "image_size": side * patch_rows,
        "patch_size": patch_rows,
        "width": width,
        "depth": depth,
        "heads": NARROW_HEADS.get((width, depth, mlp_dim), HEADS.get((width, depth))),
        "mlp_dim": mlp_dim,
        "embed_dim": tensors["proj"].shape[1] if "proj" in tensors else None,
        "pre_norm": "ln_pre.weight" in tensors,
        "patch_bias": "conv1.bias" in tensors,
        "stem_convolutions": stem,
        "class_token": class_token,
        "num_registers": len(tensors["register_tokens"]) if "register_tokens" in tensors else 0,
        "layer_scale": "transformer.resblocks.0.ls_1.gamma" in tensors,
        "positions": "learned" if learned else "rotary",
        "pooling": pooled,
    }


def _refuse_other_widths(tensors: Mapping[str, Tensor], width: int, mlp_dim: int, source: str) -> None:
    """Products whose sizes are not those of plain attention and a plain MLP: gated, grouped, cut or transposed."""
    expected = {"attn.in_proj_weight": [3 * width, width], "mlp.c_proj.weight": [width, mlp_dim]}
    for name, tensor in tensors.items():
        shape = next((shape for end, shape in expected.items() if name.endswith(end)), None)
        if name.startswith(_BLOCKS) and shape is not None and list(tensor.shape) != shape:
            gated = name.endswith("c_proj.weight") and 2 * tensor.shape[-1] == mlp_dim
            what = "a gated MLP (SwiGLU)" if gated else "products of other sizes than plain attention and MLP"
            raise CheckpointError(
                f"{source}: this vision encoder has {what}: {name}, under our names, is {list(tensor.shape)}, where "
                f"{shape} would go with a width of {width} and an MLP of {mlp_dim}. {ADVICE}"
            )


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
    # A model on no device only says whether everything fits.
    fits_only = any(tensor.is_meta for tensor in own.values())
    model.load_state_dict(fitting, strict=False, assign=fits_only)
    report = LoadReport(
        source=pretrained.source,
        layout=pretrained.layout,
        loaded=tuple(fitting),
        missing=tuple(name for name in own if name not in fitting),
        unexpected=tuple(unexpected),
        resized=(*resized, *(name for name in notes if name in fitting)),
        notes=tuple(notes.values()),
    )
    if not fits_only:
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


def _read_own(checkpoint: Checkpoint) -> Pretrained:
    """A model of kinescan; without its config.json the sizes are read from the tensors."""
    settings = checkpoint.settings
    inside = {n.removeprefix(_OWN_PREFIX): t for n, t in checkpoint.tensors.items() if n.startswith(_OWN_PREFIX)}
    with shapes_that_fit(checkpoint.source):
        encoder = translate(inside, "openai_encoder", checkpoint.source, own=True)
        held = infer_vit_config(encoder.tensors, source=checkpoint.source)
    refuse_wrong_kinds(checkpoint)
    if "kinescan_version" in settings and "config" in settings:
        backbone = {key.name for key in dataclasses.fields(ViTConfig)} - {
            "drop_path",
            "position_init",
            "unit_embeddings",
        }
        sizes = {key: value for key, value in settings["config"].items() if key in backbone}
        _refuse_other_sizes(checkpoint.source, sizes, held)
        others = {key: value for key, value in settings["config"].items() if key not in backbone | {"num_classes"}}
    else:
        settings = {}
        sizes = held
        others = {"heads": sizes.pop("heads")}
    return Pretrained(
        source=checkpoint.source,
        layout="kinescan",
        tensors=checkpoint.tensors,
        sizes=sizes,
        conventions=others,
        preprocessing=settings.get("preprocessing") or {},
        labels=tuple(settings["labels"]) if settings.get("labels") is not None else None,
        model=settings.get("model"),
        class_texts=checked_texts(settings.get("class_texts"), checkpoint.source),
    )


def refuse_wrong_kinds(checkpoint: Checkpoint) -> None:
    """Passes the config.json of a saved model whose parts are of the kinds that they are saved in.

    Raises:
        CheckpointError: one is of another kind.
    """
    kinds = {"config": dict, "preprocessing": dict, "labels": list, "model": str, "base": dict}
    for key, kind in kinds.items():
        value = checkpoint.settings.get(key)
        if "kinescan_version" in checkpoint.settings and value is not None and not isinstance(value, kind):
            raise CheckpointError(
                f"{checkpoint.source}: {key} in its config.json is of the wrong kind. It is damaged; save or fetch the "
                "model again."
            )


def _refuse_other_sizes(source: str, sizes: Mapping[str, Any], held: Mapping[str, Any]) -> None:
    """A config.json that describes other tensors than those beside it, before memory is taken for what it says."""
    told_elsewhere = {"heads", "pooling"} | ({"image_size"} if held["positions"] == "rotary" else set())
    for key in held.keys() - told_elsewhere:
        if key in sizes and sizes[key] != held[key]:
            raise CheckpointError(
                f"{source}: its config.json has {key} = {str(sizes[key])[:60]}, its weights have {held[key]}. "
                "One of them was replaced; save or fetch the model again."
            )


def _usual_activation(layout: str, checkpoint: Checkpoint) -> str:
    openai = layout in ("openai", "hugging_face") or checkpoint.source.split("@")[0].endswith(".openai")
    return "quick_gelu" if openai else "gelu"


def _read_preprocessing(checkpoint: Checkpoint) -> dict[str, Any]:
    """Mean and standard deviation of the pixels, where the config files beside the weights tell them.

    Raises:
        CheckpointError: they are not three numbers each.
    """
    settings = checkpoint.settings
    told = settings.get("preprocess_cfg") or settings.get("pretrained_cfg") or {}
    found = {"mean": told.get("mean"), "std": told.get("std")} if isinstance(told, Mapping) else {}
    if "image_mean" in settings:
        found = {"mean": settings["image_mean"], "std": settings.get("image_std")}
    read = {}
    for key, value in found.items():
        if value is None:
            continue
        if not isinstance(value, list | tuple) or not all(isinstance(x, int | float) for x in value) or len(value) != 3:
            raise CheckpointError(
                f"{checkpoint.source}: the {key} of the pixels in the config beside the weights must be 3 numbers, got "
                f"{str(value)[:60]}. Fetch the config again, or take it away."
            )
        read[key] = tuple(value)
    return _as_the_processor_scales(read, settings, checkpoint.source)


def _as_the_processor_scales(read: dict[str, Any], settings: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Mean and deviation of pixels in [0, 1] that do what a transformers processor does with pixels of 0 to 255.

    Raises:
        CheckpointError: its factor is not a positive number.
    """
    if settings.get("do_normalize") is False:
        read = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    factor = 1.0 if settings.get("do_rescale") is False else settings.get("rescale_factor", 1 / 255)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= 1:
        raise CheckpointError(
            f"{source}: rescale_factor in the config beside the weights must be a number above 0 and at most 1, got "
            f"{str(factor)[:60]}. Fetch the config again, or take it away."
        )
    scale = 255 * factor
    if abs(scale - 1) < 1e-6 or set(read) != {"mean", "std"}:
        return read
    return {key: tuple(value / scale for value in values) for key, values in read.items()}
