"""The models that `events.py` compares, all on the same image ViT: with no time, a GRU, a causal TCN, and PKS4."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinescan.models.pks4 import PKS4
from kinescan.models.pks4_config import PKS4Config
from kinescan.models.pks4_state import PKS4State
from kinescan.models.registry import register_model

SIZES: dict[str, Any] = {
    "image_size": 48,
    "patch_size": 8,
    "width": 64,
    "depth": 4,
    "heads": 4,
    "mlp_dim": 256,
    "embed_dim": 64,
    "activation": "gelu",
    "position_init": "sincos",
}
NO_MODULE: dict[str, Any] = {
    "scanner": False,
    "correlation": False,
    "variation": False,
    "class_token_route": "none",
}
MODULE: dict[str, Any] = {"insert_after": 2, "kinematic_width": 16, "window": 5}


@dataclass(frozen=True, kw_only=True)
class HeadConfig(PKS4Config):
    """A ViT whose frame features go through a causal model of time before the head.

    Attributes:
        hidden: its width.
    """

    hidden: int = 128


class TemporalHead(PKS4):
    """What the models with a GRU and with a TCN share; the state of `temporal` is carried as PKS4's scanner's is."""

    config_class = HeadConfig
    config: HeadConfig

    def __init__(self, config: HeadConfig, **options: Any) -> None:
        super().__init__(config, **options)
        self.temporal = self.make_temporal(config)

    def make_temporal(self, config: HeadConfig) -> nn.Module:
        """A module from features [B, T, E] and a state (None at the start) to features [B, T, E] and the next state."""
        raise NotImplementedError

    def forward(self, clip: Tensor) -> Tensor:
        return self.forward_stream(clip)[0]

    def forward_stream(self, clip: Tensor, state: PKS4State | None = None) -> tuple[Tensor, PKS4State]:
        state = PKS4State() if state is None else state
        frames, after = self.represent(clip, state, keep_state=True)
        frames, carried = self.temporal(frames, state.scanner)
        logits: Tensor = self.head(frames)
        return logits, replace(after, scanner=carried)


class Recurrent(nn.Module):
    """A GRU over frame features, added to them, as in online detectors with a recurrent head."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gru = nn.GRU(width, hidden, batch_first=True)
        self.out = nn.Linear(hidden, width)

    def forward(self, frames: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        found, state = self.gru(self.norm(frames), None if state is None else state.transpose(0, 1).contiguous())
        assert state is not None
        return frames + self.out(found), state.transpose(0, 1)


class CausalConvolutions(nn.Module):
    """Dilated convolutions over frame features that look back only: 2 * (1 + 2 + 4 + 8) frames."""

    def __init__(self, width: int, hidden: int, dilations: tuple[int, ...] = (1, 2, 4, 8)) -> None:
        super().__init__()
        self.dilations = dilations
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in dilations)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, hidden, 3, dilation=dilation) for dilation in dilations)
        self.outs = nn.ModuleList(nn.Linear(hidden, width) for _ in dilations)

    def forward(self, frames: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        tails = []
        for index, (norm, convolution, out) in enumerate(zip(self.norms, self.convolutions, self.outs, strict=True)):
            normed = norm(frames)
            reach = 2 * self.dilations[index]
            before = normed.new_zeros(len(normed), reach, normed.shape[2]) if state is None else state[index]
            seen = torch.cat([before, normed], dim=1)
            tails.append(seen[:, -reach:].clone())
            frames = frames + out(F.gelu(convolution(seen.transpose(1, 2)).transpose(1, 2)))
        return frames, tuple(tails)


class ViTWithGRU(TemporalHead):
    def make_temporal(self, config: HeadConfig) -> nn.Module:
        return Recurrent(config.embed_dim or config.width, config.hidden)


class ViTWithTCN(TemporalHead):
    def make_temporal(self, config: HeadConfig) -> nn.Module:
        return CausalConvolutions(config.embed_dim or config.width, config.hidden)


ROWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "PKS4": ("pks4_vit_ti16", MODULE),
    "PKS4 without the kinematic encoder": ("pks4_vit_ti16", {**MODULE, "correlation": False}),
    "ViT with a GRU": ("events_vit_gru", {**NO_MODULE, "hidden": 128}),
    "ViT with a causal TCN": ("events_vit_tcn", {**NO_MODULE, "hidden": 96}),
    "ViT without time": ("vit_ti16", {}),
}
"""Row -> model and its options beside `SIZES`."""

_OWN: Mapping[str, Callable[..., TemporalHead]] = {"events_vit_gru": ViTWithGRU, "events_vit_tcn": ViTWithTCN}


def register() -> None:
    """Makes the two models of this benchmark known by name."""
    for name, builder in _OWN.items():
        register_model(name, HeadConfig(), builder)


register()
