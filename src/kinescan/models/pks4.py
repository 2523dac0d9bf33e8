from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kinescan.errors import ConfigError, ShapeError
from kinescan.layers.carried import named_tensors, shaped_like
from kinescan.layers.class_token import ROUTES, ClassTokenRouteKind, TemporalMix
from kinescan.layers.kinematic import KinematicEncoder, KinematicState, Norm
from kinescan.layers.running_average import running_average
from kinescan.layers.scanner import Scanner
from kinescan.models.classifier import VideoClassifier
from kinescan.models.size_limits import check_at_most, check_sizes
from kinescan.models.vit.vit import Block, VisionTransformer, ViTConfig
from kinescan.ops.backend import transformed
from kinescan.ops.local_correlation import Border
from kinescan.preprocessing import Preprocessing
from kinescan.settings import accept_old_names
from kinescan.shapes import Clip, FrameLogits, Logits, Tokens

SMALLEST_WIDEST = 15
"""A window up to this is taken on any grid, however small: the default fits everywhere."""
DEEP = 16
"""From this depth on, checkpointing takes blocks in pairs: half of their inputs outweigh what a second block holds."""

_ROUTE = "class_tokens."


@accept_old_names
@dataclass(frozen=True, kw_only=True)
class PKS4Config(ViTConfig):
    """A video classifier: an image ViT, one temporal module in its middle, a mean over frames, a linear head.

    With `scanner`, `correlation` and `variation` off and `class_token_route="none"` it is the baseline that averages
    frames. Every variant of the paper's Tables 5 to 9 is a field.

    Attributes:
        num_classes: size of the head.
        scanner: KS4, the selective scan along time (Table 5).
        bidirectional: a second scanner on the reversed sequence (Table 7).
        correlation: O_corr of the kinematic prior encoder (Table 5).
        variation: O_var of the kinematic prior encoder (Table 5).
        insert_after: the module follows this block, counted from 1 (Table 6); not the last, since the class token
            has to read the patches afterwards.
        context_frames: frames around each frame that the encoder looks at: 0, 2, 4, 6 (Table 8).
        class_token_route: how class tokens exchange over time, twice in every block (Table 9). A ViT without class
            token can have "none" (what `create_model` takes for it) or "tsm", which shifts all tokens.
        window: side of the correlation window in patches; odd.
        kinematic_width: channels of the encoder's reduced frames.
        norm: normalisation in the encoder: "batch", or "group" (8 channels each, within a frame).
        border: frames outside the clip are "zeros", or the end frame repeated ("replicate").
        residual: "identity" adds the scan to Z + prior, so that the module starts as nothing; "literal" is eq. 5 with
            eq. 25 as printed, which adds Z twice.
        causal: every part looks back only; then a stream gives exactly the logits of each prefix.
        average: of the frames' representations: "mean", or "exponential" (newer frames count more).
        average_rate: weight of the newest frame, for `average="exponential"`.
        state_size: size of the scan's state for each channel.
        conv_kernel: kernel size of the scanner's convolution over time.
        expand: inner width of the scanner over `width`.
        output: what the logits answer for: "clip", the average over its frames, [B, K]; or "frames", every frame,
            [B, T, K], with nothing averaged between the temporal module and the head. Class 0 is "background" then.
        overlapping: with `output="frames"`: several classes may be true at once, or none; no class is "background".
        activation_checkpointing: compute blocks and scanner again in the backward pass instead of keeping what they
            computed; the same gradients in less memory.
    """

    num_classes: int = 400
    scanner: bool = True
    bidirectional: bool = False
    correlation: bool = True
    variation: bool = True
    insert_after: int = 8
    context_frames: int = 4
    class_token_route: ClassTokenRouteKind | Literal["none"] = "conv"
    window: int = 9
    kinematic_width: int = 64
    norm: Norm = "batch"
    border: Border = "zeros"
    residual: Literal["identity", "literal"] = "identity"
    causal: bool = False
    average: Literal["mean", "exponential"] = "mean"
    average_rate: float = 0.1
    state_size: int = 16
    conv_kernel: int = 4
    expand: int = 2
    output: Literal["clip", "frames"] = "clip"
    overlapping: bool = False
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "num_classes", "kinematic_width", "state_size", "conv_kernel", "expand")
        check_at_most(self, "context_frames")
        if self.has_module and not 1 <= self.insert_after < self.depth:
            raise ConfigError(
                f"insert_after must lie in 1 to {self.depth - 1} for {self.depth} blocks, got {self.insert_after}: "
                "the class token reads the patches in the blocks that follow, so there has to be one."
            )
        if self.window < 1 or self.window % 2 == 0:
            raise ConfigError(f"window must be odd, got {self.window}. Use 7 or 9: displacement 0 is in the middle.")
        widest = max(2 * max(self.grid) - 1, SMALLEST_WIDEST)
        if self.correlation and self.window > widest:
            raise ConfigError(
                f"window must be at most {widest} for {self.grid[0]} x {self.grid[1]} patches, got {self.window}: it "
                "reaches from one end of a frame to the other."
            )
        if self.causal and self.bidirectional:
            raise ConfigError("a causal model cannot scan backwards: set bidirectional = false or causal = false.")
        if not self.class_token and self.class_token_route not in ("none", "tsm"):
            raise ConfigError(
                f"class_token_route={self.class_token_route!r} needs a class token, which this ViT has not. "
                'Use class_token_route="none", or "tsm", which shifts all tokens.'
            )
        if self.overlapping and self.output != "frames":
            raise ConfigError('overlapping = true is for models that answer for every frame: set output = "frames".')
        if not 0 < self.average_rate <= 1:
            raise ConfigError(f"average_rate must lie in (0, 1], got {self.average_rate}.")

    @property
    def has_module(self) -> bool:
        """Whether anything is inserted between two blocks."""
        return self.scanner or self.correlation or self.variation


@dataclass
class PKS4State:
    """All that a causal model carries from frame to frame; its size does not depend on how many frames there were.

    Attributes:
        frames_seen: how many frames went in.
        class_tokens: for each index of the route, the tokens of the last two frames.
        kinematic: reduced frames of the kinematic prior encoder.
        scanner: state of the scan of every patch, and its convolution's tail; of another scanner (see
            `PKS4.make_scanner`), what that one gives.
        average: [B, E], the running average of the frames' representations; None in a model that answers for frames.
        recent: what the average of a stream's last seconds has taken (see `kinescan.inference.stream_average`); the
            model neither reads nor writes it.
    """

    frames_seen: int = 0
    class_tokens: dict[int, Tensor] = field(default_factory=dict)
    kinematic: KinematicState | None = None
    scanner: Any = None
    average: Tensor | None = None
    recent: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state by name."""
        named: dict[str, Tensor | None] = {f"{_ROUTE}{k}": tokens for k, tokens in self.class_tokens.items()}
        if self.kinematic is not None:
            named["kinematic.correlation"] = self.kinematic.correlation
            named["kinematic.variation"] = self.kinematic.variation
        named |= named_tensors(self.scanner, "scanner")
        named["average"], named["recent"] = self.average, self.recent
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "PKS4State":
        """The same state with other tensors, under the names that `tensors` gives."""
        scanner = shaped_like(self.scanner, tensors, "scanner")
        return PKS4State.from_tensors(tensors, self.frames_seen, scanner=scanner)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], frames_seen: int, *, scanner: Any = None) -> "PKS4State":
        """The inverse of `tensors`.

        Args:
            tensors: by name; those of the scanner are not looked at.
            frames_seen: how many frames went in.
            scanner: its state.
        """
        routes = {name: name.removeprefix(_ROUTE) for name in tensors if name.startswith(_ROUTE)}
        return cls(
            frames_seen=frames_seen,
            class_tokens={int(index): tensors[name] for name, index in routes.items()},
            kinematic=KinematicState(tensors.get("kinematic.correlation"), tensors.get("kinematic.variation")),
            scanner=scanner,
            average=tensors.get("average"),
            recent=tensors.get("recent"),
        )

    @property
    def num_streams(self) -> int | None:
        """B, where a part of the state tells it."""
        kinematic = self.kinematic or KinematicState()
        parts = [*self.class_tokens.values(), kinematic.correlation, kinematic.variation, self.average]
        return next((part.shape[0] for part in parts if part is not None), None)

    def num_bytes(self) -> int:
        """Memory of the state's tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())


class PKS4(VideoClassifier):
    """An image ViT with one kinematic state-space module in its middle.

    Args:
        config: the architecture.
        name: its name in the zoo.
        labels: the classes' texts.
        preprocessing: how pixels become clips.

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
        routes: list[TemporalMix] = []
        if config.class_token_route != "none":
            route = ROUTES[config.class_token_route]
            routes = [route(config.width, causal=config.causal) for _ in range(2 * config.depth)]
        self.class_token_routes = nn.ModuleList(routes)
        self.kinematic = _make_kinematic(config)
        self.scanner = self.make_scanner(config) if config.scanner else None
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
        return Scanner(
            config.width,
            state_size=config.state_size,
            conv_kernel=config.conv_kernel,
            expand=config.expand,
            bidirectional=config.bidirectional,
            norm_eps=config.norm_eps,
        )

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
        """Scores of every frame by itself, in the light of those before it but not averaged with them.

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
        batch, num_frames = clip.shape[:2]
        tokens = self.vit.embed(clip.flatten(0, 1)).unflatten(0, (batch, num_frames))  # [B, T, P + N, W]
        run_blocks = partial(self._run_blocks, keep_state=keep_state)
        class_tokens: dict[int, Tensor] = {}
        kinematic, scan = None, None
        for indices in _runs(self.config):
            tokens, tails = self._checkpointed(run_blocks, indices, tokens, state.class_tokens)
            class_tokens |= tails
            if self.config.has_module and indices.stop == self.config.insert_after:
                prefix = self.config.num_prefix_tokens
                patches, kinematic, scan = self._run_module(tokens[:, :, prefix:], state, keep_state=keep_state)
                tokens = torch.cat([tokens[:, :, :prefix], patches], dim=2)
        frames = self.vit.pool(tokens.flatten(0, 1)).unflatten(0, (batch, num_frames))
        if not keep_state:
            return frames, PKS4State()
        return frames, PKS4State(
            frames_seen=state.frames_seen + num_frames, class_tokens=class_tokens, kinematic=kinematic, scanner=scan
        )

    @property
    def num_layers(self) -> int:
        """Blocks, and what comes after them."""
        return self.config.depth + 1

    def layer_depths(self) -> dict[str, int]:
        """Depth of every parameter of the image ViT; route, module and head are new and absent."""
        return self.vit.layer_depths(prefix="vit.")

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

    def _checkpointed(self, part: Callable[..., Any], *inputs: Any) -> Any:
        """What `part` gives; with activation checkpointing, what it computes inside is not kept for the backward pass.

        The kinematic encoder is not called through here: its batch norms would count every batch twice.
        """
        if not (self.config.activation_checkpointing and torch.is_grad_enabled()) or transformed():
            return part(*inputs)
        return checkpoint(part, *inputs, use_reentrant=False)

    def _run_blocks(
        self, indices: range, tokens: Tensor, before: Mapping[int, Tensor], *, keep_state: bool
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Block after block on [B, T, 1 + N, W]; and the class tokens for the next frames, by position in the route."""
        after: dict[int, Tensor] = {}
        for index in indices:
            tokens, tails = self._run_block(index, self.vit.blocks[index], tokens, before)
            after |= tails if keep_state else {}
        return tokens, after

    def _run_block(
        self, index: int, block: Block, tokens: Tensor, state: Mapping[int, Tensor]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """One block on [B, T, 1 + N, W], with the class-token route before attention and before the MLP."""

        def routed(tokens: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor | None]:
            return self._routed(position, tokens, state.get(position))

        before, after = 2 * index, 2 * index + 1
        tokens, seen, tail_before = routed(tokens, before)
        parts = block.attend_parts(tokens, seen)
        tokens, tail_after = block.transform_sum(parts, partial(routed, position=after))
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
        enriched, kinematic, scan_state = patches, None, None
        if self.kinematic is not None:
            rows, columns = self.vit.grid
            maps = patches.transpose(2, 3).unflatten(3, (rows, columns))
            prior, kinematic = self.kinematic(maps, state.kinematic)
            enriched = patches + prior.flatten(3).transpose(2, 3)
        out = enriched
        if self.scanner is not None:
            scan = partial(self.scanner, keep_state=keep_state)
            scanned, scan_state = self._checkpointed(scan, enriched, state.scanner)
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
