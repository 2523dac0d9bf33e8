"""Refuses vision encoders that `VisionTransformer` cannot be: by parts that it lacks, and by unused tensors."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from kinescan.errors import CheckpointError
from kinescan.models.weights import layout_names as names_of
from kinescan.models.weights.published_encoders import EVA_SIZES

ADVICE = (
    "Give an image encoder with plain attention and MLP blocks, such as CLIP's, SigLIP's, MAE's, DINOv2's up to size L "
    "or DINOv3's S, B or L."
)


def refuse_other_parts(
    tensors: Mapping[str, Tensor], prefix: str, patches: str, source: str, *, channels: int = 3
) -> None:
    """Raises an error that names what the encoder is, where its names or the weight of its patches tell.

    Args:
        tensors: those of the encoder, without `prefix`.
        prefix: what stood before their names.
        patches: name of the weight that makes tokens of patches, without `prefix`.
        source: named in errors.
        channels: of the maps that are cut into patches; 3, those of the pixels, unless a stem stands before.

    Raises:
        CheckpointError: it has parts of another kind, is quantised, is a video model, or takes no RGB patches.
    """
    for pattern, what in names_of.UNSUPPORTED.items():
        found = next((name for name in tensors if re.search(pattern, name)), None)
        if found is not None:
            raise CheckpointError(
                f"{source}: this vision encoder has {what} ({prefix}{found}), which VisionTransformer has not. {ADVICE}"
            )
    for name, tensor in tensors.items():
        if name.endswith(".weight") and tensor.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.half):
            raise CheckpointError(
                f"{source}: {prefix}{name} is quantised ({str(tensor.dtype).removeprefix('torch.')}). "
                "Give the weights in float32, bfloat16 or float16."
            )
    _check_patches(tensors[patches], prefix + patches, source, channels)


def _check_patches(weight: Tensor, name: str, source: str, channels: int) -> None:
    shape = list(weight.shape)
    if weight.dim() == 5:
        raise CheckpointError(
            f"{source}: a video model: its patches span {shape[2]} frames ({name} is {shape}). kinescan's models take "
            f"an image encoder and bring the part that looks along time. {ADVICE}"
        )
    if weight.dim() != 4:
        kind = " as NaFlex (SigLIP 2) and others do, whose images have any size" if weight.dim() == 2 else ""
        raise CheckpointError(
            f"{source}: {name} is {shape}: patches are given as flat vectors{kind}. VisionTransformer makes them by a "
            "convolution, [W, 3, P, P]. Give a vision encoder of a fixed image size, such as a SigLIP 2 without naflex."
            if weight.dim() == 2
            else f"{source}: {name} is {shape}; a convolution of patches, [W, 3, P, P], is needed. {ADVICE}"
        )
    if shape[1] != channels:
        raise CheckpointError(
            f"{source}: {name} is {shape}: the encoder takes images of {shape[1]} channels; ours have 3 (RGB). {ADVICE}"
            if channels == 3
            else f"{source}: {name} is {shape}: the stem before it ends with {channels} channels. The file is damaged: "
            "fetch it again."
        )


def refuse_incomplete(lacking: Iterable[str], what: str, source: str) -> None:
    """Raises an error where parts of the encoder are not there.

    Args:
        lacking: our names of what is not there.
        what: the layout.
        source: named in errors.

    Raises:
        CheckpointError: something is lacking.
    """
    names = list(lacking)
    if not names:
        return
    listed = f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''} ({len(names)} in all)"
    if all(re.search(r"ln_\w+\.bias$", name) for name in names):
        hint = "Norms without a bias are RMS norms, which VisionTransformer has not. " + ADVICE
    elif {name.rpartition(".")[0] for name in names} == {"ln_post"}:
        hint = "Vision encoders that end without a norm (InternViT, Perception Encoder) are not supported. " + ADVICE
    else:
        hint = "Fetch it again and give all shards; a vision encoder of another kind does not fit. " + ADVICE
    raise CheckpointError(
        f"{source}: the vision encoder ({what}) is incomplete: under our names it lacks {listed}. {hint}"
    )


def refuse_left_over(inside: Iterable[str], outside: Iterable[str], prefix: str, source: str) -> None:
    """Raises an error where tensors of a vision encoder would be left out.

    Args:
        inside: names of the encoder that nothing takes, without `prefix`.
        outside: names beside the encoder.
        prefix: of the encoder's names.
        source: named in errors.

    Raises:
        CheckpointError: one of them is not a part that is known to come after the encoder, or to be for training alone.
    """
    # Hugging Face's encoders under this prefix have their head, an attention pool, inside.
    own_head = prefix == "vision_model."
    strange = [
        prefix + name
        for name in inside
        if not re.match(names_of.LEFT_OUT, name) or (own_head and name.startswith("head."))
    ]
    strange += [name for name in outside if re.match(names_of.BESIDE_ENCODER, name)]
    if strange:
        raise CheckpointError(
            f"{source}: nothing would use {len(strange)} tensors of its vision encoder: {', '.join(strange[:4])}"
            f"{', ...' if len(strange) > 4 else ''}. It is an encoder of another kind, whose results would be wrong "
            f"without them. {ADVICE}"
        )


def refuse_hidden_rotary(blocks: Iterable[str], named: Mapping[str, Tensor], depth: int, source: str) -> None:
    """Raises an error for timm's class Eva, whose rotary positions leave no trace, in sizes that have them.

    Args:
        blocks: names in the blocks as they were stored.
        named: the encoder under our names.
        depth: number of blocks.
        source: named in errors.

    Raises:
        CheckpointError: the encoder is stored as Eva does and not of a size known to have learned positions alone.
    """
    if "positional_embedding" not in named or not any(re.search(r"attn\.[qv]_bias$", name) for name in blocks):
        return
    plain = "class_embedding" in named and not {"register_tokens", "ln_pre.weight"} & set(named)
    if not plain or (named["conv1.weight"].shape[0], depth) not in EVA_SIZES:
        raise CheckpointError(
            f"{source}: its blocks are stored as timm's class Eva does (attn.q_bias), whose rotary positions leave no "
            f"trace in a file; of this size only encoders with them were published. {ADVICE}"
        )
