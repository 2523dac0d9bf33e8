"""Vision encoders in the layouts of timm and OpenAI, at any size, with random weights or on no device."""

import torch
from torch import Tensor

State = dict[str, Tensor]


def timm_state(
    width: int = 24,
    depth: int = 2,
    mlp_dim: int = 48,
    *,
    patch: int = 4,
    positions: int = 9,
    class_token: bool = True,
    registers: int = 0,
    device: str = "cpu",
) -> State:
    """timm's VisionTransformer; `positions` are those of the patches, and the class token has one more."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "pos_embed": (1, positions + class_token, width),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if class_token:
        shapes["cls_token"] = (1, 1, width)
    if registers:
        shapes["reg_token"] = (1, registers, width)
    for index in range(depth):
        for part, rows, columns in (
            *(("attn.qkv", 3 * width, width), ("attn.proj", width, width)),
            *(("mlp.fc1", mlp_dim, width), ("mlp.fc2", width, mlp_dim)),
        ):
            shapes |= {f"blocks.{index}.{part}.weight": (rows, columns), f"blocks.{index}.{part}.bias": (rows,)}
        for part in ("norm1", "norm2"):
            shapes |= {f"blocks.{index}.{part}.weight": (width,), f"blocks.{index}.{part}.bias": (width,)}
    generator = torch.Generator().manual_seed(0)
    if device == "meta":
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def openai_state(**sizes: int) -> State:
    """OpenAI's CLIP: `visual.` and a text encoder's tensor; sizes as for `timm_state`."""
    state = timm_state(**sizes)  # type: ignore[arg-type]
    width = state["cls_token"].shape[2]
    swaps = [
        *(("patch_embed.proj", "conv1"), ("blocks.", "transformer.resblocks."), ("attn.qkv.", "attn.in_proj_")),
        *(("attn.proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), ("norm1", "ln_1")),
        *(("norm2", "ln_2"), ("cls_token", "class_embedding"), ("pos_embed", "positional_embedding")),
    ]
    renamed = {}
    for name, tensor in state.items():
        name = "ln_post." + name.removeprefix("norm.") if name.startswith("norm.") else name
        for old, new in swaps:
            name = name.replace(old, new)
        renamed[f"visual.{name}"] = tensor.flatten(0, -2) if tensor.dim() == 3 else tensor
    renamed["visual.class_embedding"] = renamed["visual.class_embedding"].reshape(width)
    del renamed["visual.conv1.bias"]
    like = renamed["visual.ln_post.weight"]
    renamed |= {"visual.ln_pre.weight": like.clone(), "visual.ln_pre.bias": like.clone()}
    return renamed | {"visual.proj": like.new_ones(width, 12), "logit_scale": like.new_ones(())}
