"""PKS4 on frames of which a part stands still."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kinescan.errors import ConfigError
from kinescan.layers.class_token import TemporalMix
from kinescan.layers.kinematic import KinematicState
from kinescan.models.pks4_config import PKS4Config
from kinescan.models.pks4_state import PKS4State
from kinescan.models.still import SkipUnchanged, StillState, changed_patches, moved_tokens
from kinescan.models.vit.changed import ChangedTokens, run_block
from kinescan.models.vit.vit import VisionTransformer

Module = Callable[[Tensor, PKS4State], tuple[Tensor, KinematicState | None, Any]]
"""Patches [B, T, N, W] and the state before -> patches, and the states of kinematic encoder and scanner after."""


@dataclass
class Kept:
    """What the next frames need of a frame that was computed as a whole; filled while it is computed.

    Attributes:
        num_frames: T, of the clip.
        keys_values: [B, L, 2 W] of each block so far, of the last frame.
        before: [B, L, W], tokens of the last frame as they enter the module.
        entered: [B, N, W], patches of the last frame as the module gives them.
    """

    num_frames: int
    keys_values: list[Tensor] = field(default_factory=list)
    before: Tensor | None = None
    entered: Tensor | None = None

    def take(self, projected: Sequence[Tensor]) -> None:
        """Queries, keys and values of a block, [B * T, L, 3 W] in parts."""
        whole = torch.cat(list(projected)) if len(projected) > 1 else projected[0]
        width = whole.shape[2] // 3
        self.keys_values.append(whole.unflatten(0, (-1, self.num_frames))[:, -1, :, width:].clone())

    def take_module(self, before: Tensor, patches: Tensor) -> None:
        """Tokens [B, T, L, W] that enter the module, and the patches [B, T, N, W] that it gives."""
        self.before, self.entered = before[:, -1].clone(), patches[:, -1].clone()


def check_skipping(config: PKS4Config) -> None:
    """Passes models whose patches can be kept.

    Raises:
        ConfigError: tokens are mixed with those of other frames, or a patch with the pixels of its neighbours.
    """
    if config.difference:
        raise ConfigError(
            "difference = true adds to every patch what changed since the frame before, so that none stands still. "
            "Leave pixel_threshold out, or train without it."
        )
    if config.stem_convolutions:
        raise ConfigError(
            f"stem_convolutions = {config.stem_convolutions} lets a patch see beyond its edges: the token of one "
            "that stands still may change. Leave pixel_threshold out, or train without them."
        )
    if config.class_token_route == "tsm":
        raise ConfigError(
            'class_token_route="tsm" mixes every patch with the frames before it in every block, so that none stands '
            'still. Leave pixel_threshold out, or train with class_token_route="conv".'
        )


class StillFrames:
    """One chunk of frames on its way through a model that skips what stands still.

    Args:
        config: of the model.
        clip: [B, T, 3, H, W].
        state: of the frames before.
        skip: the thresholds.
        std: of the model's preprocessing.
    """

    def __init__(
        self, config: PKS4Config, clip: Tensor, state: PKS4State, skip: SkipUnchanged, std: tuple[float, ...]
    ) -> None:
        check_skipping(config)
        self.config, self.clip, self.state, self.skip = config, clip, state, skip
        self.still = state.still
        self.patches, self.pixels, self.age = changed_patches(
            clip, state.still, skip, patch_size=config.patch_size, std=std
        )
        self.kept = Kept(clip.shape[1])

    @property
    def is_whole(self) -> bool:
        """Whether every patch has to be computed: then the model runs as it does without skipping."""
        return bool(self.patches.all())

    def whole_state(self, tokens: Tensor) -> StillState:
        """What is kept of a chunk that was computed as a whole.

        Args:
            tokens: [B, T, L, W] behind the last block.
        """
        fraction = torch.ones_like(self.age).expand(-1, 2).clone()
        after = tokens[:, -1].clone() if self._reads_patches else None
        return self._state(fraction, self.kept.keys_values, self.kept.before, self.kept.entered, after)

    def run(self, vit: VisionTransformer, routes: nn.ModuleList, module: Module | None) -> tuple[Tensor, PKS4State]:
        """What the head takes of every frame, [B, T, E], and the state; see `PKS4.represent`."""
        config, still = self.config, self.still
        batch, num_frames = self.clip.shape[:2]
        class_tokens: dict[int, Tensor] = {}
        run_blocks = partial(self._run_blocks, vit, routes, class_tokens)
        changed = self._with_prefix(self.patches)
        rows = changed.pick(vit.embed(self.clip.flatten(0, 1)).unflatten(0, (batch, num_frames)))
        middle = config.insert_after if module is not None else config.depth
        rows, keys_values = run_blocks(range(middle), rows, changed)
        before, entered, kinematic, scan = None, None, None, None
        fraction = [self.patches.float().mean(dim=(1, 2))] * 2
        if module is not None:
            tokens = changed.dense(rows, None if still is None else still.before)
            before = tokens[:, -1].clone()
            patches, kinematic, scan = module(tokens[:, :, config.num_prefix_tokens :], self.state)
            moved, entered = moved_tokens(patches, self.patches, still, self.skip)
            fraction[1] = moved.float().mean(dim=(1, 2))
            changed = self._with_prefix(moved)
            rows = changed.pick(torch.cat([tokens[:, :, : config.num_prefix_tokens], patches], dim=2))
            rows, others = run_blocks(range(middle, config.depth), rows, changed)
            keys_values += others
        after = None
        if self._reads_patches:
            tokens = changed.dense(rows, None if still is None else still.after)
            after = tokens[:, -1].clone()
        else:
            tokens = rows[changed.source[:, :1]].unflatten(0, (batch, num_frames))
        frames = vit.pool(tokens.flatten(0, 1)).unflatten(0, (batch, num_frames))
        kept = self._state(torch.stack(fraction, dim=1), keys_values, before, entered, after)
        return frames, PKS4State(
            frames_seen=self.state.frames_seen + num_frames,
            class_tokens=class_tokens,
            kinematic=kinematic,
            scanner=scan,
            still=kept,
        )

    def _run_blocks(
        self,
        vit: VisionTransformer,
        routes: nn.ModuleList,
        tails: dict[int, Tensor],
        indices: range,
        rows: Tensor,
        changed: ChangedTokens,
    ) -> tuple[Tensor, list[Tensor]]:
        """Block after block; `tails` takes the class tokens for the next frames."""
        keys_values = []
        for index in indices:

            def route(rows: Tensor, half: int, index: int = index) -> Tensor:
                return self._routed(routes, tails, 2 * index + half, rows, changed)

            kept = None if self.still is None else self.still.keys_values[:, index]
            rows, last = run_block(vit.blocks[index], rows, changed, kept, route)
            keys_values.append(last)
        return rows, keys_values

    def _routed(
        self, routes: nn.ModuleList, tails: dict[int, Tensor], position: int, rows: Tensor, changed: ChangedTokens
    ) -> Tensor:
        """The rows with the class tokens, which are in every frame, mixed over time."""
        if not len(routes):
            return rows
        own = changed.source[:, 0]
        mix = routes[position]
        assert isinstance(mix, TemporalMix)
        tokens = rows[own].unflatten(0, self.clip.shape[:2]).unsqueeze(2)  # [B, T, 1, W]
        mixed, tail = mix(tokens, self.state.class_tokens.get(position))
        if tail is not None:
            tails[position] = tail
        return rows.index_copy(0, own, mixed.flatten(0, 2))

    def _with_prefix(self, patches: Tensor) -> ChangedTokens:
        """Class token and registers are always computed."""
        prefix = patches.new_ones(*patches.shape[:2], self.config.num_prefix_tokens)
        return ChangedTokens(torch.cat([prefix, patches], dim=2))

    @property
    def _reads_patches(self) -> bool:
        return self.config.pooling != "class"

    def _state(
        self,
        fraction: Tensor,
        keys_values: Sequence[Tensor],
        before: Tensor | None,
        entered: Tensor | None,
        after: Tensor | None,
    ) -> StillState:
        return StillState(
            self.age, fraction, self.pixels, torch.stack(list(keys_values), dim=1), before, entered, after
        )
