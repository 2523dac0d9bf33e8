"""State-dict names of published vision transformers, and their translation into ours (OpenAI CLIP's)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from kinescan.errors import CheckpointError
from kinescan.models.weights import layout_names as names_of
from kinescan.models.weights.layout_names import MARKERS
from kinescan.models.weights.strangers import (
    ADVICE,
    refuse_hidden_rotary,
    refuse_incomplete,
    refuse_left_over,
    refuse_other_parts,
)

__all__ = ["Family", "VisionEncoder", "describe_layouts", "detect_layout", "find_encoder", "translate"]

Family = Literal["clip", "siglip", "dinov2", "dinov3", "vit"]
"""Whose conventions hold where nothing tells activation, epsilon or pixels' scale."""


@dataclass(frozen=True, kw_only=True)
class VisionEncoder:
    """A vision encoder under our names.

    Attributes:
        layout: "openai", "hugging_face", "timm" or "open_clip" (with a timm encoder).
        family: whose conventions hold for it; "vit" where the names do not tell.
        tensors: name in `VisionTransformer` -> tensor.
        unexpected: names in the checkpoint that are not part of it, such as the text encoder's.
        sizes: fields of `ViTConfig` that the names tell, but not the tensors that are left.
    """

    layout: str
    family: Family
    tensors: dict[str, Tensor]
    unexpected: tuple[str, ...]
    sizes: dict[str, Any] = field(default_factory=dict)


def detect_layout(names: Iterable[str]) -> str | None:
    """The key of `MARKERS` that fits, or None.

    Example:
        >>> detect_layout(["logit_scale", "visual.conv1.weight"]), detect_layout(["encoder.weight"])
        ('openai', None)
    """
    held = set(names)
    return next((layout for layout, (marker, _) in MARKERS.items() if marker in held), None)


def translate(tensors: Mapping[str, Tensor], layout: str, source: str, *, own: bool = False) -> VisionEncoder:
    """The vision encoder in a checkpoint, under our names.

    Args:
        tensors: the checkpoint's tensors by its own names.
        layout: as `detect_layout` says.
        source: named in errors.
        own: it is a model of kinescan, which may have a stem before its patches and need not have a class token.

    Raises:
        CheckpointError: the encoder has parts that `VisionTransformer` has not, or lacks some.
    """
    prefix = names_of.PREFIXES.get(layout, "")
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    outside = [name for name in tensors if not name.startswith(prefix)]
    marker, what = MARKERS[layout]
    stem = {name: tensor for name, tensor in inside.items() if own and name.startswith(names_of.STEM)}
    patches = marker.removeprefix(prefix)
    # a stem ends with as many channels as its patches have
    refuse_other_parts(inside, prefix, patches, source, channels=len(inside[patches]) if stem else 3)
    named, sizes = _under_our_names(inside, tensors, outside, layout, source)
    named = _settle(named)
    family = _family(named, layout, sizes)
    _fill_biases(named)
    encoder, known = _known_part({name: named[name] for name in named if name not in stem}, family, own=own)
    refuse_incomplete(
        (name for name in known if name not in encoder and name not in names_of.OPTIONAL_NAMES), what, source
    )
    left = [name for name in named if name not in known and name not in stem]
    refuse_left_over(left, outside, prefix, source)
    depth = sum(name.endswith(".attn.in_proj_weight") and name.startswith(_block("")[:-1]) for name in encoder)
    refuse_hidden_rotary(inside, encoder, depth, source)
    return VisionEncoder(
        layout=_public_name(layout),
        family=family,
        tensors=encoder | stem,
        unexpected=(*(prefix + name for name in left), *outside),
        sizes=sizes,
    )


def find_encoder(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], str | None, tuple[str, ...]]:
    """The tensors of the part that holds a vision encoder, as a layout names them, wherever in a checkpoint it stands.

    Args:
        tensors: the checkpoint's, by its own names.
        source: named in errors.

    Returns:
        The tensors of that part, its layout (None if there is none), and the names of all other tensors.

    Raises:
        CheckpointError: there are several encoders.
    """
    layout = detect_layout(tensors)
    if layout is not None:
        return dict(tensors), layout, ()
    for layout, (marker, _) in MARKERS.items():
        if layout == "kinescan":
            continue
        roots = {name.removesuffix(marker) for name in tensors if name.endswith("." + marker)}
        block = names_of.EVIDENCE[layout]
        roots = {root for root in roots if any(re.match(re.escape(root) + block, name) for name in tensors)}
        if len(roots) > 1:
            raise CheckpointError(
                f"{source} holds {len(roots)} vision encoders: {', '.join(sorted(root + '*' for root in roots)[:4])}. "
                "Save the tensors of the one that you want into a file of their own."
            )
        for root in roots:
            inside = {name.removeprefix(root): t for name, t in tensors.items() if name.startswith(root)}
            return inside, layout, tuple(name for name in tensors if not name.startswith(root))
    return dict(tensors), None, ()


def describe_layouts() -> str:
    """Every layout that is understood, with a name that tells it, in one line for error messages."""
    return "; ".join(f"{what}: {marker}, ..." for marker, what in MARKERS.values())


def _public_name(layout: str) -> str:
    return "hugging_face" if layout.startswith("hugging_face") else names_of.PUBLIC_NAMES.get(layout, layout)


def _under_our_names(
    inside: dict[str, Tensor], tensors: Mapping[str, Tensor], outside: list[str], layout: str, source: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The encoder's tensors renamed, and what its names alone tell; a projection beside it is taken from `outside`."""
    sizes: dict[str, Any] = {}
    if layout.startswith("openai"):
        return dict(inside), sizes
    if layout in ("hugging_face", "hugging_face_encoder"):
        named = _rename(inside, names_of.CLIP_MODULES, names_of.CLIP_BLOCK, names_of.CLIP_BLOCK_MODULES)
        _move_all(named, names_of.CLIP_TENSORS, source)
        if "visual_projection.weight" in outside:
            outside.remove("visual_projection.weight")
            named["proj"] = tensors["visual_projection.weight"].T
    elif layout.startswith("hugging_face"):
        named = _rename(inside, names_of.VIT_MODULES, names_of.VIT_BLOCK, names_of.VIT_BLOCK_MODULES)
        _move_all(named, names_of.VIT_TENSORS, source)
    else:
        sizes = _read_timm_sizes(inside, source)
        named = _rename(inside, names_of.TIMM_MODULES, names_of.TIMM_BLOCK, names_of.TIMM_BLOCK_MODULES)
        _move_all(named, names_of.TIMM_TENSORS, source)
        _take_timm_projection(named, tensors, outside)
        _take_positions_of_registers(named)
    return named, sizes


def _rename(
    tensors: Mapping[str, Tensor], modules: Mapping[str, str], block_pattern: str, block_modules: Mapping[str, str]
) -> dict[str, Tensor]:
    """Tensors under our names where a table has the module; the others keep theirs."""
    renamed = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(block_pattern, name)
        rest, table, start = (match[2], block_modules, _block(match[1])) if match else (name, modules, "")
        module, _, leaf = rest.rpartition(".")
        if module in table:
            renamed[f"{start}{table[module]}{leaf}"] = tensor
        else:
            # Some blocks hold tensors of their own, such as timm's gamma_1 and q_bias.
            renamed[f"{start}{rest}" if match else name] = tensor
    return renamed


def _block(index: str | int) -> str:
    return f"transformer.resblocks.{index}."


def _move_all(named: dict[str, Tensor], table: Mapping[str, tuple[str, int]], source: str) -> None:
    for old, (new, axes) in table.items():
        if old in named and any(size != 1 for size in named[old].shape[:axes]):
            raise CheckpointError(
                f"{source}: {old} is {list(named[old].shape)}, more than one {new.replace('_', ' ')}, which "
                f"VisionTransformer has not. {ADVICE}"
            )
    found = [(new, named.pop(old), axes) for old, (new, axes) in table.items() if old in named]
    # Without registers, DINOv3 stores none of them: an empty tensor.
    named |= {new: tensor.reshape(tensor.shape[axes:]) for new, tensor, axes in found if tensor.numel()}


def _settle(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that a layout stores in several tensors, joined as `VisionTransformer` has them."""
    named = {
        re.sub(r"(resblocks\.\d+\.)gamma_([12])$", r"\1ls_\2.gamma", name.replace(".lambda1", ".gamma")): tensor
        for name, tensor in named.items()
    }
    _join_projections(named)
    _join_biases(named)
    if "class_embedding" in named and _is_square(named.get("positional_embedding")):
        # timm keeps no position for the class token where registers stand beside it: it is in the token already.
        positions = named["positional_embedding"]
        named["positional_embedding"] = torch.cat([positions.new_zeros(1, positions.shape[1]), positions])
    return named


def _join_projections(named: dict[str, Tensor]) -> None:
    """Query, key and value, apart in many layouts, are one matrix in ours."""
    for query in [name for name in named if ".q_proj_" in name]:
        start, leaf = query.split(".q_proj_")
        key, value, both = (f"{start}.{part}_proj_{leaf}" for part in ("k", "v", "kv"))
        if both in named:
            named[f"{start}.in_proj_{leaf}"] = torch.cat([named.pop(query), named.pop(both)])
        elif key in named and value in named:
            named[f"{start}.in_proj_{leaf}"] = torch.cat([named.pop(name) for name in (query, key, value)])
    for start in {name.rsplit(".", 1)[0] for name in named if re.search(r"\.[qkv]_proj_bias$", name)}:
        # Any of the three may have no bias, as DINOv3's keys.
        weight = named.get(f"{start}.in_proj_weight")
        if weight is not None:
            named[f"{start}.in_proj_bias"] = _with_zeros(named, weight, [f"{start}.{part}_proj_bias" for part in "qkv"])


def _join_biases(named: dict[str, Tensor]) -> None:
    """Biases that are masked (DINOv3's own files) or stored without the keys' (timm), and those that are missing."""
    for weight in [name for name in named if name.endswith("attn.in_proj_weight")]:
        start = weight.removesuffix("in_proj_weight")
        bias, mask = start + "in_proj_bias", named.pop(start + "in_proj_bias_mask", None)
        if mask is not None and bias in named:
            named[bias] = torch.where(mask == 1, named[bias], 0.0)
        parts = [f"{start}{part}_bias" for part in "qkv"]
        if bias not in named and any(part in named for part in parts):
            named[bias] = _with_zeros(named, named[weight], parts)
        # Attention without a bias is attention with a bias of zeros.
        named.setdefault(bias, named[weight].new_zeros(named[weight].shape[0]))


def _with_zeros(named: dict[str, Tensor], weight: Tensor, parts: list[str]) -> Tensor:
    """The biases of query, key and value, taken out of `named`, in one; zeros for those that are not there."""
    missing = weight.new_zeros(weight.shape[0] // 3)
    return torch.cat([named.pop(part, missing) for part in parts])


def _fill_biases(named: dict[str, Tensor]) -> None:
    """Zeros for biases of products that no block has; those that some blocks have are lost in the others."""
    for leaf in names_of.BLOCK_BIASES:
        if not any(name.endswith(leaf) for name in named):
            weight = leaf.removesuffix("bias") + "weight"
            found = [name for name in named if name.startswith(_block("")[:-1]) and name.endswith(weight)]
            named |= {name.removesuffix("weight") + "bias": named[name].new_zeros(len(named[name])) for name in found}


def _take_positions_of_registers(named: dict[str, Tensor]) -> None:
    """Where timm has positions for class token, registers and patches, those of registers go into their tokens."""
    positions, registers = named.get("positional_embedding"), named.get("register_tokens")
    if positions is None or registers is None:
        return
    before, count = int("class_embedding" in named), len(registers)
    if _is_square(positions[before + count :]) and not _is_square(positions[before:]) and not _is_square(positions):
        named["register_tokens"] = registers + positions[before : before + count]
        named["positional_embedding"] = torch.cat([positions[:before], positions[before + count :]])


def _is_square(positions: Tensor | None) -> bool:
    return positions is not None and round(positions.shape[0] ** 0.5) ** 2 == positions.shape[0]


def _read_timm_sizes(inside: dict[str, Tensor], source: str) -> dict[str, Any]:
    """What names alone tell: a norm after averaging, and the waves of DINOv3's rotary positions."""
    sizes: dict[str, Any] = {}
    if "fc_norm.weight" in inside:
        sizes["pooling"] = "mean"
    # Meta's own files have the one name, timm's the other.
    periods = inside.pop("rope_embed.periods", inside.pop("rope.periods", None))
    if periods is not None and "pos_embed" in inside:
        raise CheckpointError(
            f"{source}: this vision encoder has learned and rotary positions at once; VisionTransformer has either. "
            "Give one with learned positions, such as CLIP's, or DINOv3's."
        )
    if periods is not None and not periods.is_meta and periods.numel() > 1:
        # theta ** (i / n) for i below n.
        num = periods.numel()
        sizes["rotary_theta"] = round(float(periods[-1].double()) ** (num / (num - 1)), 3)
    return sizes


def _take_timm_projection(named: dict[str, Tensor], tensors: Mapping[str, Tensor], outside: list[str]) -> None:
    """CLIP's projection is timm's head (with a bias of zeros or none) or open_clip's visual.head.proj.

    With another bias, or without ln_pre, the head is a classifier, which stays behind.
    """
    if "visual.head.proj.weight" in outside:
        outside.remove("visual.head.proj.weight")
        named["proj"] = tensors["visual.head.proj.weight"].T
    elif "head.weight" in named and "ln_pre.weight" in named:
        bias = named.get("head.bias")
        if bias is None or (not bias.is_meta and not bias.any()):
            named.pop("head.bias", None)
            named["proj"] = named.pop("head.weight").T


def _family(named: Mapping[str, Tensor], layout: str, sizes: Mapping[str, Any]) -> Family:
    if layout.startswith("openai") and {"class_embedding", "positional_embedding"} <= set(named):
        return "clip"
    if any(name.endswith("ls_1.gamma") for name in named):
        return "dinov2" if "positional_embedding" in named else "dinov3"
    if layout.startswith("hugging_face_vit") or "hugging_face_dinov" in layout:
        return "vit"
    if "ln_pre.weight" in named:
        return "clip"
    timm = layout in ("timm", "open_clip_trunk")
    if "class_embedding" not in named and "register_tokens" not in named and "pooling" not in sizes:
        return "siglip"
    return "vit" if timm or "class_embedding" not in named else "clip"


def _known_part(named: Mapping[str, Tensor], family: Family, *, own: bool) -> tuple[dict[str, Tensor], dict[str, None]]:
    """The tensors of the encoder, and every name that a vision encoder as deep as this one has, in order."""
    indices = [int(match[1]) for name in named if (match := re.match(r"transformer\.resblocks\.(\d{1,6})\.", name))]
    # Names may say anything: no more blocks are looked for than there are tensors.
    indices = [index for index in indices if index <= len(named)]
    scaled = any(name.endswith("ls_1.gamma") for name in named)
    inner = (*names_of.BLOCK_NAMES, *(names_of.SCALE_NAMES if scaled else ()))
    blocks = [_block(index) + name for index in range(max(indices, default=0) + 1) for name in inner]
    absent = {"dinov3": "positional_embedding"}.get(family) if family != "clip" else None
    # CLIP's encoders have a class token; others that have none read the patches.
    optional = "class_embedding" if (own or family != "clip") and "class_embedding" not in named else None
    encoder = [name for name in names_of.ENCODER_NAMES if name not in (absent, optional)]
    pool = names_of.POOL_NAMES if "attn_pool.probe" in named else ()
    known = dict.fromkeys((*encoder, *names_of.OPTIONAL_NAMES, *pool, *blocks))
    return {name: tensor for name, tensor in named.items() if name in known}, known
