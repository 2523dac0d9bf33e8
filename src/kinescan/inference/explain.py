from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kinescan.errors import ConfigError, ShapeError
from kinescan.models.mode import evaluation_view
from kinescan.models.pks4 import PKS4
from kinescan.ops import local_correlation
from kinescan.shapes import Clip

SURE_GAIN = 0.02
"""A patch counts as moved when its best match is better than staying where it is by more than this cosine."""


@dataclass(frozen=True)
class KinematicMaps:
    """What moved and what changed between each frame and the next.

    Attributes:
        displacement: [T - 1, 2, Hp, Wp], where in the next frame each patch is found again: rows down, columns right,
            in patches; 0 where staying where it is fits as well.
        gain: [T - 1, Hp, Wp], by how much the best match beats staying where it is, a difference of cosines in [0, 2].
        change: [T - 1, Hp, Wp], length of the difference between the frame's features and the next one's, at the same
            place; 0 or more.
        logits: [K], of the whole clip.
    """

    displacement: Float[Tensor, "T 2 Hp Wp"]
    gain: Float[Tensor, "T Hp Wp"]
    change: Float[Tensor, "T Hp Wp"]
    logits: Float[Tensor, " K"]

    def __repr__(self) -> str:
        return f"KinematicMaps(displacement={list(self.displacement.shape)}, change={list(self.change.shape)})"


def kinematic_maps(model: PKS4, clip: Clip) -> KinematicMaps:
    """Where things moved and where they changed, as the model's own kinematic operators see it.

    Movement is read from the features that the correlation operator compares, change from those that the variation
    operator subtracts, both of the backbone's patches as they enter the module. A model without one of them shows the
    patches themselves.

    Args:
        model: any PKS4, the frame-averaging baselines among them.
        clip: [1, T, 3, H, W], normalised, T from 2.

    Raises:
        ConfigError: the model is not a PKS4.
        ShapeError: there is more than one clip, or only one frame.

    Source: PKS4 (arXiv 2604.26461), eq. 15 and 17; the displacement is the best of the window's matches.
    Differs: in the model, the variation operator sees the patches with the correlation prior added, which differs at
        the ends of a clip even where nothing changes; here it is left out.

    Example:
        >>> from kinescan.models.zoo import create_model
        >>> model = create_model("pks4_vit_ti16", num_classes=2)
        >>> kinematic_maps(model, torch.zeros(1, 4, 3, 224, 224))
        KinematicMaps(displacement=[3, 2, 14, 14], change=[3, 14, 14])
    """
    if not isinstance(model, PKS4):
        raise ConfigError(f"kinematic maps need a PKS4 model, got {type(model).__name__}. Leave the explanation out.")
    if clip.ndim != 5 or clip.shape[0] != 1 or clip.shape[1] < 2:
        raise ShapeError(f"a clip to explain is [1, T, 3, H, W] with T from 2, got {list(clip.shape)}.")
    model = evaluation_view(model)
    with torch.no_grad(), _recorded_maps(model) as seen:
        logits = model(clip)[0]
        maps = seen[-1]  # [T, W, Hp, Wp]
        operators = (getattr(model.kinematic, name, None) for name in ("correlation", "variation"))
        moved, changed = (maps if operator is None else operator.reduce(maps) for operator in operators)
        displacement, gain = _best_matches(moved, model.config.window)
        change = (changed[1:] - changed[:-1]).norm(dim=1)
    return KinematicMaps(displacement.cpu(), gain.cpu(), change.float().cpu(), logits.float().cpu())


def _best_matches(features: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Displacement [T - 1, 2, Hp, Wp] and gain [T - 1, Hp, Wp] from features [T, C, Hp, Wp]."""
    maps = local_correlation(features[None].float(), offsets=(1,), window=window)[
        0, :-1, 0
    ]  # [T - 1, window ** 2, Hp, Wp]
    reach = window // 2
    staying = maps[:, reach * window + reach]
    best, best_index = maps.max(dim=1)
    gain = best - staying
    offsets = torch.stack([best_index // window - reach, best_index % window - reach], dim=1)
    return torch.where((gain > SURE_GAIN)[:, None], offsets, 0).float(), gain


@contextmanager
def _recorded_maps(model: PKS4) -> Iterator[list[Tensor]]:
    """Collects, while the model runs on one clip, the patch maps [T, W, Hp, Wp] where its module stands."""
    seen: list[Tensor] = []

    def keep_maps(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0][0])  # from [1, T, W, Hp, Wp]

    def keep_tokens(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        patches = inputs[0][:, model.config.num_prefix_tokens :]  # from [T, P + N, W]
        seen.append(patches.transpose(1, 2).unflatten(2, model.vit.grid))

    if model.kinematic is not None:
        handle = model.kinematic.register_forward_pre_hook(keep_maps)
    else:
        # No module sees the tokens between two blocks: those before the last MLP before that block stand for them.
        block = min(model.config.insert_after, model.config.depth) - 1
        handle = model.vit.blocks[block].ln_2.register_forward_pre_hook(keep_tokens)
    try:
        yield seen
    finally:
        handle.remove()
