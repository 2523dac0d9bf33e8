"""Published VideoMamba checkpoints, and ours, under our names and at a model's sizes."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinescan.errors import CheckpointError
from kinescan.models.saving.saved_model import WEIGHTS_FILE
from kinescan.models.weights.checkpoint_file import Checkpoint
from kinescan.models.weights.load_report import LoadReport
from kinescan.models.weights.vit_weights import Pretrained, load_pretrained, refuse_wrong_kinds, shapes_that_fit
from kinescan.preprocessing import IMAGENET_MEAN, IMAGENET_STD

_PREFIXES = ("module.", "model.", "backbone.", "encoder.")
_PROMPTS = ("inner_prompt.", "dynamic_scales.", "prompt_attentions.")
"""Names of the published state-space prompts, which stand under `tuner.` in our models."""
_BACKBONE = r"(layers|patch_embed|norm_f)\."
GATE_KERNEL = "tuner.inner_prompt.inter.convs.weight"
"""The one tuned tensor that is tied to the grid of patches."""


def read_videomamba(checkpoint: Checkpoint) -> Pretrained:
    """The weights of a VideoMamba, with the sizes that they tell.

    Layouts: image, video and masked-pretrained checkpoints of VideoMamba, those of state-space prompting, and ours.
    Prefixes such as `backbone.` and `encoder.` are taken off; what belongs to the pretraining is left over.

    Args:
        checkpoint: as `open_checkpoint` gives it.

    Raises:
        CheckpointError: it is not a VideoMamba, incomplete, or holds only what a tuner trained.
    """
    settings, source = checkpoint.settings, checkpoint.source
    refuse_wrong_kinds(checkpoint)
    # A base may lie in the folder of what was tuned on top of it, beside that one's config.json.
    own = "kinescan_version" in settings and checkpoint.file.name == WEIGHTS_FILE
    if own and settings.get("base"):
        raise CheckpointError(
            f"{source} holds only what was tuned on top of {settings['base'].get('source')}. Load it with "
            "from_pretrained(folder), or give that base as weights."
        )
    tensors = {_our_name(name): tensor for name, tensor in checkpoint.tensors.items()}
    _refuse_others(tensors, source)
    with shapes_that_fit(source):
        sizes = _sizes(tensors, source)
        conventions = {"num_classes": tensors["head.weight"].shape[0]} if "head.weight" in tensors else {}
    image = tensors["patch_embed.proj.weight"].ndim == 4
    return Pretrained(
        source=source,
        layout="kinescan" if own else "videomamba_image" if image else "videomamba",
        tensors=tensors,
        sizes=sizes,
        conventions=conventions,
        preprocessing=settings.get("preprocessing", {}) if own else {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        labels=tuple(settings["labels"]) if own and settings.get("labels") is not None else None,
        model=settings.get("model") if own else None,
    )


def load_videomamba(
    model: nn.Module, pretrained: Pretrained, *, skip: tuple[str, ...] = (), inflation: Literal["center", "mean"]
) -> LoadReport:
    """Copies weights into a model, inflated and interpolated to its sizes.

    Args:
        model: changed in place.
        pretrained: as `read_videomamba` gives it.
        skip: prefixes of names to leave out, such as the head of other classes.
        inflation: "center" or "mean", for a kernel of images.

    Returns:
        What became of every tensor; `notes` says how the resized ones were changed.

    Raises:
        CheckpointError: a tensor fits neither as it is nor interpolated.
    """
    own = model.state_dict()
    stray = [name for name in pretrained.tensors if re.match(_BACKBONE, name) and name not in own]
    if stray:
        raise CheckpointError(
            f"{pretrained.source}: nothing would use {len(stray)} tensors of its blocks: {', '.join(stray[:4])}"
            f"{', ...' if len(stray) > 4 else ''}. It is a Mamba of another kind. Give a checkpoint of VideoMamba."
        )
    with shapes_that_fit(pretrained.source):
        tensors, notes = fit_tensors(pretrained.tensors, own, inflation=inflation)
    if skip and "head.weight" in tensors and "head.weight".startswith(skip):
        given = pretrained.tensors["head.weight"].shape[0]
        notes["head.weight"] = f"head: {given} classes in the checkpoint are not those of the model; it starts anew"
    if "temporal_pos_embedding" not in tensors:
        notes["temporal_pos_embedding"] = "temporal_pos_embedding: none in an image checkpoint; it starts at zero"
    return load_pretrained(model, replace(pretrained, tensors=tensors), skip=skip, notes=notes)


def fit_tensors(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], *, inflation: Literal["center", "mean"] = "center"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors with those tied to a size brought to the model's, and a sentence for each that changed.

    Args:
        tensors: under the model's names.
        own: the model's state dict.
        inflation: "center" or "mean".

    Returns:
        All tensors; and name -> what was done, such as "pos_embed: 14 x 14 patches to 7 x 7, bicubic".
    """
    fitted, notes = dict(tensors), {}
    for name, tensor in tensors.items():
        if name not in own or own[name].shape == tensor.shape:
            continue
        shape = own[name].shape
        if name == "patch_embed.proj.weight" and tensor.ndim == 4 and tensor.shape == shape[:2] + shape[3:]:
            fitted[name] = inflate(tensor, shape[2], how=inflation)
            notes[name] = f"{name}: an image kernel over {shape[2]} frames, {inflation}"
        elif name == "pos_embed" and tensor.shape[2] == shape[2]:
            fitted[name] = resize_grid_positions(tensor, shape[1])
            old, new = math.isqrt(tensor.shape[1] - 1), math.isqrt(shape[1] - 1)
            notes[name] = f"{name}: {old} x {old} patches to {new} x {new}, bicubic"
        elif name == "temporal_pos_embedding" and tensor.shape[2] == shape[2]:
            fitted[name] = resize_temporal_positions(tensor, shape[1])
            notes[name] = f"{name}: {tensor.shape[1]} time steps to {shape[1]}, linear"
        elif name == GATE_KERNEL and tensor.shape[:3] == shape[:3]:
            fitted[name] = resize_gate_kernel(tensor, (shape[3], shape[4]))
            old_grid, new_grid = " x ".join(map(str, tensor.shape[3:])), " x ".join(map(str, shape[3:]))
            notes[name] = f"{name}: {old_grid} patches to {new_grid}, bicubic, with the same sum"
    return fitted, notes


def inflate(kernel: Tensor, num_frames: int, *, how: Literal["center", "mean"]) -> Tensor:
    """A kernel of images as one over several frames that gives the same for a still clip.

    Args:
        kernel: [W, 3, p, p].
        num_frames: frames of the new kernel.
        how: "center": the frame at num_frames // 2 has it all; "mean": each has the same part.

    Returns:
        [W, 3, num_frames, p, p].

    Source: VideoMamba's published code.

    Example:
        >>> inflate(torch.ones(1, 1, 1, 1), 2, how="center").flatten().tolist()
        [0.0, 1.0]
    """
    if how == "mean":
        return kernel[:, :, None].repeat(1, 1, num_frames, 1, 1) / num_frames
    inflated = kernel.new_zeros(*kernel.shape[:2], num_frames, *kernel.shape[2:])
    inflated[:, :, num_frames // 2] = kernel
    return inflated


def resize_grid_positions(positions: Tensor, length: int) -> Tensor:
    """Positions [1, 1 + N, W] on another square grid, [1, length, W]; the class token's, the first, stays."""
    old_side, side = math.isqrt(positions.shape[1] - 1), math.isqrt(length - 1)
    grid = positions[:, 1:].float().transpose(1, 2).unflatten(2, (old_side, old_side))
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1].float(), grid.flatten(2).transpose(1, 2)], dim=1)


def resize_temporal_positions(positions: Tensor, num_steps: int) -> Tensor:
    """Positions in time [1, T, W] for another number of steps, linear, corners not aligned."""
    resized = F.interpolate(positions.float().transpose(1, 2), size=num_steps, mode="linear", align_corners=False)
    return resized.transpose(1, 2)


def resize_gate_kernel(kernel: Tensor, grid: tuple[int, int]) -> Tensor:
    """The gate's kernel over the whole grid, [C, 1, 1, Hp, Wp], for another grid; a constant map gives the same."""
    old_area = kernel.shape[3] * kernel.shape[4]
    resized = F.interpolate(kernel[:, 0].float(), size=grid, mode="bicubic", align_corners=False)
    return resized[:, None] * (old_area / (grid[0] * grid[1]))


def _our_name(name: str) -> str:
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
    while prefix is not None:
        name = name.removeprefix(prefix)
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
    return f"tuner.{name}" if name.startswith(_PROMPTS) else name


def _refuse_others(tensors: Mapping[str, Tensor], source: str) -> None:
    held = list(tensors)
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "layers.0.norm.weight", "layers.0.mixer.A_log")
    lacking = [name for name in needed if name not in tensors]
    if lacking:
        raise CheckpointError(
            f"{source} is not a VideoMamba: it lacks {', '.join(lacking)}. It holds {len(held)} tensors: "
            f"{', '.join(held[:5])}{', ...' if len(held) > 5 else ''}. Give a checkpoint of VideoMamba, or the folder "
            "of a saved one."
        )
    if "layers.0.mixer.A_b_log" not in tensors:
        raise CheckpointError(
            f"{source}: its blocks scan in one direction only (there is no layers.0.mixer.A_b_log). "
            "Give one with two directions, as all published VideoMambas have."
        )
    blocks: dict[int, set[str]] = {}
    for name in held:
        # Names may say anything: no more blocks are looked for than there are tensors.
        if (match := re.fullmatch(r"layers\.(\d{1,6})\.(.+)", name)) and int(match[1]) <= len(held):
            blocks.setdefault(int(match[1]), set()).add(match[2])
    absent = [
        f"layers.{index}.{leaf}"
        for index in range(max(blocks) + 1)
        for leaf in sorted(blocks[0] - blocks.get(index, set()))
    ]
    if absent:
        raise CheckpointError(
            f"{source} is incomplete: it lacks {', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''} "
            f"({len(absent)} in all). Fetch it again."
        )


def _sizes(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    kernel, rates = tensors["patch_embed.proj.weight"], tensors["layers.0.mixer.A_log"]
    num_patches = tensors["pos_embed"].shape[1] - 1
    side = math.isqrt(num_patches)
    if kernel.ndim not in (4, 5) or kernel.shape[-1] != kernel.shape[-2] or side * side != num_patches:
        raise CheckpointError(
            f"{source}: patches of {list(kernel.shape[2:])} and {num_patches} positions; both must be square."
        )
    sizes: dict[str, Any] = {
        "image_size": side * kernel.shape[-1],
        "patch_size": kernel.shape[-1],
        "width": kernel.shape[0],
        "depth": sum(name.endswith(".mixer.A_log") for name in tensors),
        "state_size": rates.shape[1],
        "conv_kernel": tensors["layers.0.mixer.conv1d.weight"].shape[2],
        "expand": rates.shape[0] // kernel.shape[0],
        "rms_norm": "layers.0.norm.bias" not in tensors,
    }
    if kernel.ndim == 5:
        sizes["tubelet_frames"] = kernel.shape[2]
    if "temporal_pos_embedding" in tensors:
        sizes["num_frames"] = tensors["temporal_pos_embedding"].shape[1] * sizes.get("tubelet_frames", 1)
    return sizes
