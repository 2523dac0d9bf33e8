from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kinescan.errors import ConfigError, ShapeError
from kinescan.layers.class_token import ROUTES, TemporalMix
from kinescan.layers.gate import GatedScanner
from kinescan.layers.kinematic import KinematicEncoder, KinematicState
from kinescan.layers.running_average import running_average
from kinescan.layers.scanner import Scanner
from kinescan.models.classifier import VideoClassifier
from kinescan.models.pks4_config import PKS4Config
from kinescan.models.pks4_state import PKS4State
from kinescan.models.pks4_still import Kept, StillFrames
from kinescan.models.still import SkipUnchanged
from kinescan.models.vit.vit import VisionTransformer
from kinescan.models.vit.vit_block import Block
from kinescan.ops.backend import transformed
from kinescan.preprocessing import Preprocessing
from kinescan.shapes import Clip, FrameLogits, Logits, Tokens

DEEP = 16
"""From this depth on, checkpointing takes blocks in pairs: half of their inputs outweigh what a second block holds."""

CHANGES_GAIN = 3.0
"""Changes between frames are a fraction of what a frame shows: a model of changes alone sees them larger."""


class PKS4(VideoClassifier):
    """An image ViT with one kinematic state-space module in its middle.

    Args:
        config: the architecture.
        name: its name in the zoo.
        labels: the classes' texts.
        preprocessing: how pixels become clips.

    Attributes:
        skip_unchanged: in evaluation mode, patches that stand still are not sent through the ViT's blocks again; None,
            as it starts, computes every patch of every frame. It is not saved with the model.

    Source: PKS4 (arXiv 2604.26461), eq. 1-25.
    Differs: `residual`, `causal`, `border`, `norm` and the position in L/14 are decided where the paper is silent.
    """

    config_class = PKS4Config
    config: PKS4Config

    def __init__(
        self,
        config: PKS4Config,
        *,
        name: str = "pks4_vit_b16",
        labels: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__(config, name=name, labels=labels, preprocessing=preprocessing)
        self.vit = VisionTransformer(config)
        self.skip_unchanged: SkipUnchanged | None = None
        routes: list[TemporalMix] = []
        if config.class_token_route != "none":
            route = ROUTES[config.class_token_route]
            routes = [route(config.width, causal=config.causal) for _ in range(2 * config.depth)]
        self.class_token_routes = nn.ModuleList(routes)
        has_both = config.difference and not config.changes_only
        self.difference = _make_difference(config) if has_both else None
        self.kinematic = _make_kinematic(config)
        self.scanner = self.make_scanner(config) if config.scanner else None
        if config.gate and not isinstance(self.scanner, GatedScanner):
            raise ConfigError(
                f"gate = true is for PKS4's own scan; {type(self).__name__} makes another scanner. Set gate = false."
            )
        self.head = nn.Linear(config.embed_dim or config.width, config.num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def make_scanner(self, config: PKS4Config) -> nn.Module:
        """The scan along time; a subclass overrides this to try another one (docs/own_module.md).

        It is called by the constructor. The module's `forward(tokens, state, *, keep_state)` takes tokens [B, T, N, W]
        and gives what is added to them, of the same shape, and the state after the last frame (None without
        `keep_state`): a tensor, or a dataclass, mapping or tuple of tensors, in floating point, whose sizes do not
        depend on T. It changes no state that it was given. In a causal model, the output at t depends on tokens up to
        t only, and what was fed in chunks gives what it gives as a whole.

        Args:
            config: the model's, of the subclass's own `config_class`.
        """
        options: dict[str, Any] = {
            name: getattr(config, name) for name in ("state_size", "conv_kernel", "expand", "bidirectional", "norm_eps")
        }
        if config.gate:
            return GatedScanner(config.width, gate_ratio=config.gate_ratio, **options)
        return Scanner(config.width, **options)

    def forward(self, clip: Clip) -> Logits | FrameLogits:
        """Scores of each class for each clip, or for each frame.

        Args:
            clip: [B, T, 3, H, W], normalised frames.

        Returns:
            Logits [B, K]; with `output="frames"`, [B, T, K].

        Raises:
            ShapeError: the clip has another rank, number of channels or size than the model takes.
        """
        frames, _ = self.represent(clip, PKS4State(), keep_state=False)
        if self.answers_frames:
            every: Tensor = self.head(frames)
            return every
        averages, _ = self._averages(frames, PKS4State())
        logits: Tensor = self.head(averages[:, -1])
        return logits

    def forward_stream(self, clip: Clip, state: PKS4State | None = None) -> tuple[Tensor, PKS4State]:
        """Scores of every prefix, and the state to continue with: feeding frames in chunks changes nothing.

        With `output="frames"`, the scores of every frame, which are those that `forward` gives for the whole.

        Args:
            clip: [B, T, 3, H, W], the next frames, T from 1.
            state: what came back with the frames before; None at the start.

        Returns:
            Logits [B, T, K]: those at t are what `forward` gives for all frames up to t; with `output="frames"`, for
            frame t among these. And the new state.

        Raises:
            ConfigError: the model is not causal.
            ShapeError: as for `forward`, or the state belongs to another number of clips.
        """
        frames, averages, after = self._stream(clip, state)
        return self.head(frames if self.answers_frames else averages), after

    def stream_frames(self, clip: Clip, state: PKS4State | None = None) -> tuple[Tensor, PKS4State]:
        """Scores of every frame by itself, given those before it but not averaged with them.

        The head is linear, so that the average of these over frames is what `forward_stream` gives. A long stream
        averages them over the last seconds instead, and stays awake (see `kinescan.inference.StreamSession`).

        Args:
            clip: as for `forward_stream`.
            state: as for `forward_stream`.

        Returns:
            Logits [B, T, K], and the new state, which is that of `forward_stream`.

        Raises:
            ConfigError: as for `forward_stream`.
            ShapeError: as for `forward_stream`.
        """
        frames, _, after = self._stream(clip, state)
        return self.head(frames), after

    def _stream(self, clip: Tensor, state: PKS4State | None) -> tuple[Tensor, Tensor, PKS4State]:
        """Representations [B, T, E] of each frame and of each prefix, and the new state."""
        if not self.config.causal:
            raise ConfigError(
                f"{self.name} looks at future frames, so it cannot run on a stream. Train it with causal = true "
                "(create_model(..., causal=True)), or score whole clips with forward()."
            )
        num_streams = None if state is None else state.num_streams
        if num_streams is not None and num_streams != clip.shape[0]:
            raise ShapeError(
                f"the state belongs to {num_streams} clips, but {clip.shape[0]} were given. "
                "Start with state=None, or keep one state for each batch of streams."
            )
        state = PKS4State() if state is None else state
        frames, after = self.represent(clip, state, keep_state=True)
        if self.answers_frames:
            return frames, frames, after
        averages, average = self._averages(frames, state)
        return frames, averages, replace(after, average=average)

    def represent(self, clip: Tensor, state: PKS4State, *, keep_state: bool) -> tuple[Tensor, PKS4State]:
        """What the head takes of every frame, before anything is averaged.

        Args:
            clip: [B, T, 3, H, W], the next frames.
            state: of the frames before.
            keep_state: give the state after the last frame.

        Returns:
            [B, T, E], and the state, but for its `average`; an empty one without `keep_state`.
        """
        self.check_clip(clip)
        still = None
        if self.skip_unchanged is not None and not self.training:
            still = StillFrames(self.config, clip, state, self.skip_unchanged, self.preprocessing.std)
            if not still.is_whole:
                module = partial(self._run_module, keep_state=keep_state) if self.config.has_module else None
                frames, after = still.run(self.vit, self.class_token_routes, module)
                return frames, after if keep_state else PKS4State()
        kept = still.kept if still is not None and keep_state else None
        batch, num_frames = clip.shape[:2]
        changes, previous = self._changes(clip, state.previous)
        tokens = self._embed(clip, changes).unflatten(0, (batch, num_frames))  # [B, T, P + N, W]
        run_blocks = partial(self._run_blocks, keep_state=keep_state, kept=kept)
        class_tokens: dict[int, Tensor] = {}
        kinematic, scan = None, None
        for indices in _runs(self.config):
            tokens, tails = self._checkpointed(run_blocks, indices, tokens, state.class_tokens)
            class_tokens |= tails
            if self.config.has_module and indices.stop == self.config.insert_after:
                prefix = self.config.num_prefix_tokens
                patches, kinematic, scan = self._run_module(tokens[:, :, prefix:], state, keep_state=keep_state)
                if kept is not None:
                    kept.take_module(tokens, patches)
                tokens = torch.cat([tokens[:, :, :prefix], patches], dim=2)
        frames = self.vit.pool(tokens.flatten(0, 1)).unflatten(0, (batch, num_frames))
        if not keep_state:
            return frames, PKS4State()
        return frames, PKS4State(
            frames_seen=state.frames_seen + num_frames,
            class_tokens=class_tokens,
            previous=previous,
            kinematic=kinematic,
            scanner=scan,
            still=None if still is None else still.whole_state(tokens),
        )

    @property
    def num_layers(self) -> int:
        """Blocks, and what comes after them."""
        return self.config.depth + 1

    def layer_depths(self) -> dict[str, int]:
        """Depth of every parameter of the image ViT; route, module and head are new and absent."""
        return self.vit.layer_depths(prefix="vit.")

    def sharded_blocks(self) -> Sequence[tuple[nn.Module, tuple[str, ...]]]:
        """The ViT's blocks and the scanner. The kinematic encoder and the class-token routes stay outside."""
        scanner: list[nn.Module] = [] if self.scanner is None else [self.scanner]
        return [*((block, ("both",)) for block in self.vit.blocks), *((module, ()) for module in scanner)]

    def stem_parameters(self) -> tuple[str, ...]:
        """The embeddings and the blocks before the module, with the class-token routes inside them.

        Raises:
            ConfigError: the model averages frames: it has no module.
        """
        if not self.config.has_module:
            return super().stem_parameters()
        depths = self.layer_depths()
        num_blocks = self.config.insert_after
        routes = tuple(f"class_token_routes.{position}." for position in range(2 * num_blocks))
        return tuple(
            name
            for name, _ in self.named_parameters()
            if depths.get(name, self.num_layers) <= num_blocks or name.startswith(routes)
        )

    def _changes(self, clip: Tensor, previous: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """What changed in the frames of a clip [B, T, 3, H, W], in its shape, and the last frame for the next ones.

        The first frame of all differs from none. So a state of zeros, in which no frame is marked as there, is that
        start.
        """
        if not self.config.difference:
            return None, None
        if previous is None:
            previous = torch.zeros_like(torch.cat([clip[:, 0], clip[:, 0, :1]], dim=1))
        first = (clip[:, :1] - previous[:, None, :3]) * previous[:, None, 3:]
        changes = torch.cat([first, clip[:, 1:] - clip[:, :-1]], dim=1)
        last = torch.cat([clip[:, -1], torch.ones_like(clip[:, -1, :1])], dim=1)
        return changes, last

    def _embed(self, clip: Tensor, changes: Tensor | None) -> Tensor:
        """The tokens [B * T, P + N, W] that enter the first block."""
        if changes is None:
            return self.vit.embed(clip.flatten(0, 1))
        if self.difference is None:
            return self.vit.embed(changes.flatten(0, 1) * CHANGES_GAIN)
        return self.vit.embed(clip.flatten(0, 1), self.difference(changes.flatten(0, 1)).flatten(2).transpose(1, 2))

    def _checkpointed(self, part: Callable[..., Any], *inputs: Any) -> Any:
        """What `part` gives; with activation checkpointing, what it computes inside is not kept for the backward pass.

        The kinematic encoder is not called through here: its batch norms would count every batch twice.
        """
        if not (self.config.activation_checkpointing and torch.is_grad_enabled()) or transformed():
            return part(*inputs)
        return checkpoint(part, *inputs, use_reentrant=False)

    def _run_blocks(
        self,
        indices: range,
        tokens: Tensor,
        before: Mapping[int, Tensor],
        *,
        keep_state: bool,
        kept: Kept | None = None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Block after block on [B, T, 1 + N, W]; and the class tokens for the next frames, by position in the route."""
        after: dict[int, Tensor] = {}
        for index in indices:
            tokens, tails = self._run_block(index, self.vit.blocks[index], tokens, before, kept)
            after |= tails if keep_state else {}
        return tokens, after

    def _run_block(
        self, index: int, block: Block, tokens: Tensor, state: Mapping[int, Tensor], kept: Kept | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """One block on [B, T, 1 + N, W], with the class-token route before attention and before the MLP."""

        def routed(tokens: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor | None]:
            return self._routed(position, tokens, state.get(position))

        before, after = 2 * index, 2 * index + 1
        tokens, seen, tail_before = routed(tokens, before)
        tokens, tail_after = block.both(
            tokens,
            None if seen is tokens else seen,
            partial(routed, position=after),
            None if kept is None else kept.take,
        )
        tails = {before: tail_before, after: tail_after}
        return tokens, {position: tail for position, tail in tails.items() if tail is not None}

    def _routed(self, position: int, tokens: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens [B, T, 1 + N, W] that continue, those that the branch reads, and the tail for the next frames."""
        if not len(self.class_token_routes):
            return tokens, tokens, None
        route = self.class_token_routes[position]
        assert isinstance(route, TemporalMix)
        # Copying all tokens to change one costs a long clip time and memory. Those of the first block belong to the
        # embedding, whose output a hook may keep; all others are sums made here, which nobody else has seen.
        may_write = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        seen, tail = route(tokens, tail, in_place=may_write and position > 0 and route.replaces_residual)
        return seen if route.replaces_residual else tokens, seen, tail

    def _run_module(
        self, patches: Tokens, state: PKS4State, *, keep_state: bool
    ) -> tuple[Tokens, KinematicState | None, Any]:
        """The inserted module on patch tokens [B, T, N, W]: prior (eq. 12-18), scan (eq. 19-25); and its two states."""
        enriched, prior, kinematic, scan_state = patches, None, None, None
        if self.kinematic is not None:
            rows, columns = self.vit.grid
            maps = patches.transpose(2, 3).unflatten(3, (rows, columns))
            prior, kinematic = self.kinematic(maps, state.kinematic)
            prior = prior.flatten(3).transpose(2, 3)
            enriched = patches + prior
        out = enriched
        if self.scanner is not None:
            scan = partial(self.scanner, keep_state=keep_state)
            inputs = (enriched, state.scanner, *([prior] if self.config.gate else []))
            scanned, scan_state = self._checkpointed(scan, *inputs)
            _check_scanned(self.scanner, scanned, enriched)
            out = enriched + scanned
        return patches + out if self.config.residual == "literal" else out, kinematic, scan_state

    def _averages(self, frames: Tensor, state: PKS4State) -> tuple[Tensor, Tensor]:
        """Representations [B, T, E] -> their running averages [B, T, E] after each frame, and the last one."""
        if self.config.average == "mean" and state.average is None and not self.config.causal:
            return frames.mean(dim=1, keepdim=True), frames.mean(dim=1)
        kind, rate = self.config.average, self.config.average_rate
        averages = running_average(frames, state.average, state.frames_seen, kind=kind, rate=rate)
        # A copy: a view would keep the averages of the whole chunk alive as long as the state.
        return averages.to(frames.dtype), averages[:, -1].clone()


def _runs(config: PKS4Config) -> list[range]:
    """Blocks that are computed again together, none of them on both sides of the module."""
    length = 2 if config.activation_checkpointing and config.depth >= DEEP else 1
    parts = [0, config.insert_after, config.depth] if config.has_module else [0, config.depth]
    return [range(k, min(k + length, stop)) for start, stop in pairwise(parts) for k in range(start, stop, length)]


def _make_difference(config: PKS4Config) -> nn.Conv2d:
    """A patch embedding that starts as nothing."""
    embedding = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size, bias=False)
    nn.init.zeros_(embedding.weight)
    return embedding


def _make_kinematic(config: PKS4Config) -> KinematicEncoder | None:
    if not (config.correlation or config.variation):
        return None
    return KinematicEncoder(
        config.width,
        config.kinematic_width,
        correlation=config.correlation,
        variation=config.variation,
        context_frames=config.context_frames,
        window=config.window,
        causal=config.causal,
        border=config.border,
        norm=config.norm,
    )


def _check_scanned(scanner: nn.Module, scanned: Any, tokens: Tensor) -> None:
    """Adding something of another shape would be broadcast, which no scanner means."""
    if torch.compiler.is_compiling():
        return
    if not isinstance(scanned, Tensor) or scanned.shape != tokens.shape:
        given = list(scanned.shape) if isinstance(scanned, Tensor) else type(scanned).__name__
        raise ShapeError(
            f"{type(scanner).__name__} must give what is added to tokens {list(tokens.shape)} in their shape, got "
            f"{given}. See PKS4.make_scanner."
        )
