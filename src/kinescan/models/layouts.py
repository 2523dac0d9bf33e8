"""State-dict names of published vision transformers, and their translation into ours (OpenAI CLIP's)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kinescan.errors import CheckpointError

# Layout -> a name that only it has, then what such a checkpoint is; the order is that of detection.
MARKERS = {
    "kinescan": ("vit.conv1.weight", "a model of kinescan"),
    "open_clip_trunk": ("visual.trunk.patch_embed.proj.weight", "open_clip with a timm tower"),
    "openai": ("visual.conv1.weight", "OpenAI CLIP or open_clip"),
    "openai_tower": ("conv1.weight", "the vision tower of OpenAI CLIP or open_clip alone"),
    "hugging_face": ("vision_model.embeddings.patch_embedding.weight", "Hugging Face CLIPModel"),
    "hugging_face_tower": ("embeddings.patch_embedding.weight", "Hugging Face CLIPVisionModel"),
    "timm": ("patch_embed.proj.weight", "timm VisionTransformer"),
}
_PREFIXES = {
    "open_clip_trunk": "visual.trunk.",
    "openai": "visual.",
    "hugging_face": "vision_model.",
}
# Parts that VisionTransformer does not have: a pattern that their names match -> what to call them.
_UNSUPPORTED = {
    r"(^|\.)(ls1|ls2|ls_1|ls_2|layer_scale\d?|gamma_1|gamma_2)(\.|$)": "LayerScale",
    r"(^|\.)(reg_token|register_tokens)$": "register tokens",
    r"(^|\.)(attn_pool|head\.attention|head\.probe)": "attention pooling",
    r"(^|\.)(dist_token|head_dist)": "a distillation token",
    r"(^|\.)(q_norm|k_norm)\.": "query and key norms",
    r"(^|\.)mlp\.(w12|w1|w2|gate_proj|fc1_g)\.": "a gated MLP",
    r"(^|\.)(rope|rope_embed|rel_pos_bias|relative_position_bias_table)": "relative or rotary positions",
    r"(^|\.)fc_norm\.": "a mean over patches instead of the class token",
    r"(^|\.)layer1\.0\.": "a ResNet",
    r"(^|\.)(temporal_embedding|temporal_pos_embedding)$": "a video model's temporal positions",
}
_HUGGING_FACE = {
    "embeddings.patch_embedding": "conv1.",
    "pre_layrnorm": "ln_pre.",
    "post_layernorm": "ln_post.",
}
_HUGGING_FACE_BLOCK = {
    "layer_norm1": "ln_1.",
    "self_attn.q_proj": "attn.q_proj_",
    "self_attn.k_proj": "attn.k_proj_",
    "self_attn.v_proj": "attn.v_proj_",
    "self_attn.out_proj": "attn.out_proj.",
    "layer_norm2": "ln_2.",
    "mlp.fc1": "mlp.c_fc.",
    "mlp.fc2": "mlp.c_proj.",
}
_TIMM = {"patch_embed.proj": "conv1.", "norm_pre": "ln_pre.", "norm": "ln_post."}
_TIMM_BLOCK = {
    "norm1": "ln_1.",
    "attn.qkv": "attn.in_proj_",
    "attn.proj": "attn.out_proj.",
    "norm2": "ln_2.",
    "mlp.fc1": "mlp.c_fc.",
    "mlp.fc2": "mlp.c_proj.",
}
_BLOCK_NAMES = (
    *("ln_1.weight", "ln_1.bias", "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight"),
    *("attn.out_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias"),
    *("mlp.c_proj.weight", "mlp.c_proj.bias"),
)
_TOWER_NAMES = ("conv1.weight", "class_embedding", "positional_embedding", "ln_post.weight", "ln_post.bias")
_OPTIONAL_NAMES = ("conv1.bias", "ln_pre.weight", "ln_pre.bias", "proj")


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A vision tower under our names.

    Attributes:
        layout: "openai", "hugging_face", "timm" or "open_clip" (with a timm tower).
        tensors: name in `VisionTransformer` -> tensor.
        unexpected: names in the checkpoint that are no part of it, such as the text tower's.
    """

    layout: str
    tensors: dict[str, Tensor]
    unexpected: tuple[str, ...]


def detect_layout(names: Iterable[str]) -> str | None:
    """The key of `MARKERS` that fits, or None.

    Example:
        >>> detect_layout(["logit_scale", "visual.conv1.weight"]), detect_layout(["encoder.weight"])
        ('openai', None)
    """
    held = set(names)
    return next((layout for layout, (marker, _) in MARKERS.items() if marker in held), None)


def translate(tensors: Mapping[str, Tensor], layout: str, source: str) -> Tower:
    """The vision tower in a checkpoint, under our names.

    Args:
        tensors: the checkpoint's tensors by its own names.
        layout: as `detect_layout` says.
        source: named in errors.

    Raises:
        CheckpointError: the tower has parts that `VisionTransformer` has not, or lacks some.
    """
    prefix = _PREFIXES.get(layout, "")
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    outside = [name for name in tensors if not name.startswith(prefix)]
    _refuse_unsupported(inside, prefix, source)
    if layout.startswith("openai"):
        named = dict(inside)
    elif layout.startswith("hugging_face"):
        named = _join_projections(_rename(inside, _HUGGING_FACE, r"encoder\.layers\.(\d+)\.(.+)", _HUGGING_FACE_BLOCK))
        _move(named, "embeddings.class_embedding", "class_embedding")
        _move(named, "embeddings.position_embedding.weight", "positional_embedding")
        if "visual_projection.weight" in outside:
            outside.remove("visual_projection.weight")
            named["proj"] = tensors["visual_projection.weight"].T
    else:
        named = _rename(inside, _TIMM, r"blocks\.(\d+)\.(.+)", _TIMM_BLOCK)
        _move(named, "cls_token", "class_embedding", drop_axes=2)
        _move(named, "pos_embed", "positional_embedding", drop_axes=1)
        _take_timm_projection(named, tensors, outside)
    known = _known_names(named)
    unexpected = [prefix + name for name in named if name not in known] + outside
    tower = {name: tensor for name, tensor in named.items() if name in known}
    _fill_missing_bias(tower)
    lacking = [name for name in known if name not in tower and name not in _OPTIONAL_NAMES]
    if lacking:
        raise CheckpointError(
            f"{source}: the vision tower ({MARKERS[layout][1]}) is incomplete: under our names it lacks "
            f"{', '.join(lacking[:4])}{', ...' if len(lacking) > 4 else ''} ({len(lacking)} in all). "
            "Fetch it again, or give all shards."
        )
    return Tower(layout=_public_name(layout), tensors=tower, unexpected=tuple(unexpected))


def describe_layouts() -> str:
    """One line for each layout that is understood, for error messages."""
    return "\n".join(f"  {what}: {marker}, ..." for marker, what in MARKERS.values())


def _public_name(layout: str) -> str:
    return "open_clip" if layout == "open_clip_trunk" else layout.removesuffix("_tower")


def _refuse_unsupported(names: Iterable[str], prefix: str, source: str) -> None:
    names = list(names)
    for pattern, what in _UNSUPPORTED.items():
        found = next((name for name in names if re.search(pattern, name)), None)
        if found is not None:
            raise CheckpointError(
                f"{source}: this vision tower has {what} ({prefix}{found}), which VisionTransformer has not. "
                "Give one with a class token, learned positions, and plain attention and MLP blocks, such as CLIP's."
            )
    if not {"class_embedding", "embeddings.class_embedding", "cls_token"} & set(names):
        raise CheckpointError(
            f"{source}: this vision tower has no class token (SigLIP has none), which VisionTransformer needs. "
            "Give one that has, such as CLIP's."
        )


def _rename(
    tensors: Mapping[str, Tensor], modules: Mapping[str, str], block_pattern: str, block_modules: Mapping[str, str]
) -> dict[str, Tensor]:
    """Tensors under our names where a table has the module; the others keep theirs."""
    renamed = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(block_pattern, name)
        rest, table, start = (match[2], block_modules, _block(match[1])) if match else (name, modules, "")
        module, _, leaf = rest.rpartition(".")
        renamed[f"{start}{table[module]}{leaf}" if module in table else name] = tensor
    return renamed


def _block(index: str | int) -> str:
    return f"transformer.resblocks.{index}."


def _join_projections(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value, apart in Hugging Face's names, are one matrix in ours."""
    for query in [name for name in named if ".attn.q_proj_" in name]:
        parts = [query.replace(".q_proj_", f".{letter}_proj_") for letter in "qkv"]
        if all(part in named for part in parts):
            named[query.replace(".q_proj_", ".in_proj_")] = torch.cat([named.pop(part) for part in parts])
    return named


def _move(named: dict[str, Tensor], old: str, new: str, *, drop_axes: int = 0) -> None:
    if old in named:
        tensor = named.pop(old)
        named[new] = tensor.reshape(tensor.shape[drop_axes:])


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


def _fill_missing_bias(tower: dict[str, Tensor]) -> None:
    """Attention without a bias is attention with a bias of zeros."""
    for name in [name for name in tower if name.endswith("attn.in_proj_weight")]:
        bias = name.replace("in_proj_weight", "in_proj_bias")
        tower.setdefault(bias, tower[name].new_zeros(tower[name].shape[0]))


def _known_names(named: Iterable[str]) -> dict[str, None]:
    """Every name that a tower as deep as this one has, in order."""
    indices = [int(match[1]) for name in named if (match := re.match(r"transformer\.resblocks\.(\d+)\.", name))]
    blocks = [_block(index) + name for index in range(max(indices, default=0) + 1) for name in _BLOCK_NAMES]
    return dict.fromkeys((*_TOWER_NAMES, *_OPTIONAL_NAMES, *blocks))
