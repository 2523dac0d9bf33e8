"""A small model that answers for every frame whether it is bright, made without training, and videos for it."""

from pathlib import Path

import torch
from torch import Tensor

from kinescan.data.video import write_video
from kinescan.inference.stream import StreamSession
from kinescan.models.pks4 import PKS4
from kinescan.models.zoo import create_model

SIZES = {"patch_size": 16, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 16, "embed_dim": 16, "insert_after": 1}
BRIGHT = 155
"""Lowest value of a bright frame's pixels; a dark one's is 0."""


def frames(num_frames: int, low: int, *, seed: int = 0) -> Tensor:
    """Noise, uint8 [T, 3, 48, 64]."""
    generator = torch.Generator().manual_seed(seed + low)
    return torch.randint(low, low + 100, (num_frames, 3, 48, 64), generator=generator, dtype=torch.uint8)


def bright_model() -> PKS4:
    """Its classes are "background" and "bright"; the head lies across the way from dark features to bright ones."""
    torch.manual_seed(0)
    model = _new(causal=True)
    dark, bright = (_features(model, low) for low in (0, BRIGHT))
    way = (bright - dark) * 12 / ((bright - dark) @ (bright - dark))
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[1] = way
        model.head.bias.zero_()
        model.head.bias[1] = -(way @ (bright + dark) / 2)
    return model


def bright_model_that_looks_ahead() -> PKS4:
    """The same weights in a model that sees frames on both sides."""
    model = _new(causal=False)
    model.load_state_dict(bright_model().state_dict())
    return model


def _new(*, causal: bool) -> PKS4:
    model = create_model(
        "pks4_vit_ti16",
        labels=["background", "bright"],
        image_size=32,
        kinematic_width=8,
        window=3,
        causal=causal,
        output="frames",
        **SIZES,
    ).eval()
    assert isinstance(model, PKS4)
    return model


def blinking(*lengths: int) -> Tensor:
    """Dark and bright frames in turn, so many of each."""
    parts = [frames(length, BRIGHT * (index % 2), seed=index) for index, length in enumerate(lengths)]
    return torch.cat(parts)


def write_blinking(path: Path, *lengths: int, fps: float = 10.0) -> Path:
    """A video of dark and bright frames in turn."""
    write_video(path, blinking(*lengths), fps=fps)
    return path


def _features(model: PKS4, low: int) -> Tensor:
    seen: list[Tensor] = []
    hook = model.head.register_forward_hook(lambda module, given, output: seen.append(given[0].detach()))
    session = StreamSession(model)
    for frame in frames(30, low):
        session.push(frame)
    hook.remove()
    return torch.cat([entry.reshape(-1, entry.shape[-1]) for entry in seen])[10:].mean(0)
