"""What a stream needs to know about a family of VLMs."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from kinescan.errors import ConfigError
from kinescan.runtime.transformers_internals import cache_argument
from kinescan.vlm.families import door
from kinescan.vlm.families.pixels import PixelSettings
from kinescan.vlm.store import CacheShape


@dataclass(frozen=True, kw_only=True)
class Features:
    """What the vision encoder makes of one temporal patch (one frame, or two that are merged).

    Attributes:
        tokens: [N, W] in the width of the decoder, row after row.
        grid: (rows, columns) of the tokens, N = rows * columns.
        deepstack: features [N, W] that are added behind the first decoder layers, one each; none in most families.
    """

    tokens: Float[Tensor, "N W"]
    grid: tuple[int, int]
    deepstack: tuple[Float[Tensor, "N W"], ...] = ()


@dataclass(kw_only=True)
class Positions:
    """How far positions have been given out.

    Attributes:
        upcoming: the position that the next text token gets.
        video_start: where the running video began, for families that place a whole video as one block.
        video_seconds: time of that video's first frame.
        video_patches: temporal patches of that video so far.
    """

    upcoming: int = 0
    video_start: int | None = None
    video_seconds: float = 0.0
    video_patches: int = 0

    def copy(self) -> "Positions":
        """One that can run ahead by itself."""
        return copy.copy(self)


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """The text around a video, used where the tokenizer brings no chat template.

    Attributes:
        video_token: what a chat template writes instead of a video.
        opening: before the video, `video_start` included.
        video_start: marker of a video's start, at the end of `opening` and `next_video`; empty where each patch has its
            own.
        introduction: what a processor, not a template, writes between `opening` or `next_video` and the first patch.
        before_patch: before each temporal patch; {number} counts frames from 1, {seconds} is its mean time, which
            {minutes} and {rest} say in whole minutes and seconds.
        after_patch: behind each.
        between: between two.
        video_end: what a processor, not a template, writes behind the last patch, before `closing`.
        closing: behind the video, before the question.
        answer: behind the question; the model continues here.
        next_turn: between a kept answer and the next question.
        next_video: between a kept answer and further frames.
    """

    video_token: str
    opening: str
    video_start: str = ""
    introduction: str = ""
    before_patch: str = ""
    after_patch: str = ""
    between: str = ""
    video_end: str = ""
    closing: str
    answer: str = "<|im_end|>\n<|im_start|>assistant\n"
    next_turn: str = "<|im_end|>\n<|im_start|>user\n"
    next_video: str = "<|im_end|>\n<|im_start|>user\n"


class Family(ABC):
    """One family: its vision encoder run patch by patch, its positions, its prompt.

    Args:
        model: a transformers model of this family, in evaluation mode.
        pixels: how frames are prepared; the family's own by default.
        horizon_frames: frames that the stream will not exceed, where declared.
        hf_compat: positions and prompts as transformers 5 has them where it departs from how the family was trained.
    """

    model_type: ClassVar[str]
    prompt: PromptFormat
    default_pixels: ClassVar[PixelSettings]
    temporal_patch: int = 1
    takes_any_size: ClassVar[bool] = False
    """Whether frames keep their shape, within limits on their pixels."""
    medium: Literal["video", "image"] = "video"
    """What a chat template is given for the frames."""

    def __init__(
        self,
        model: nn.Module,
        *,
        pixels: PixelSettings | None = None,
        horizon_frames: int | None = None,
        hf_compat: bool = False,
    ) -> None:
        self.model: Any = model
        self.pixels = self.default_pixels if pixels is None else pixels
        self.horizon_frames = horizon_frames
        self.hf_compat = hf_compat
        door.check_layers(self.name, self.text_config, self.decoder)

    @property
    def config(self) -> Any:
        """The model's config."""
        return self.model.config

    @property
    def name(self) -> str:
        """Type of the model, as its config says; that of the class, but for `Generic`."""
        kind: str = self.config.model_type
        return kind

    @property
    def text_config(self) -> Any:
        """The decoder's config."""
        return self.config.get_text_config(decoder=True)

    @property
    def decoder(self) -> nn.Module:
        """The language model without its head."""
        inner = self.model.model
        decoder: nn.Module = inner.language_model if hasattr(inner, "language_model") else inner.text_model
        return decoder

    @property
    def embedding(self) -> Float[Tensor, "V W"]:
        """The table of text tokens; its device and dtype are the decoder's."""
        table: Tensor = self.decoder.get_input_embeddings().weight  # type: ignore[operator]
        return table

    @property
    def num_levels(self) -> int:
        """How many levels `encode` gives besides a frame's tokens (`Features.deepstack`)."""
        return 0

    def cache_shape(self) -> CacheShape:
        """Sizes of the decoder's keys and values."""
        config, weight = self.text_config, self.embedding
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return CacheShape(
            num_layers=config.num_hidden_layers,
            key_heads=config.num_key_value_heads,
            head_dim=head_dim,
            dtype=weight.dtype,
            device=weight.device,
        )

    def embed(self, token_ids: Sequence[int]) -> Float[Tensor, "n W"]:
        """Text tokens as the decoder takes them."""
        ids = torch.tensor(list(token_ids), dtype=torch.int64, device=self.embedding.device)
        embedded: Tensor = self.decoder.get_input_embeddings()(ids)  # type: ignore[operator]
        return embedded

    @abstractmethod
    def prepare(self, frames: UInt8[Tensor, "T 3 H W"]) -> Tensor:
        """Frames of one temporal patch as the vision encoder takes them: resized, normalised, cut into patches.

        The shape [...] is that which the family's encoder wants.
        """

    @abstractmethod
    def encode(self, frames: UInt8[Tensor, "T 3 H W"]) -> Features:
        """One temporal patch through the vision encoder."""

    def closing_features(self) -> Float[Tensor, "n W"] | None:
        """Embeddings behind the last frame that are not text; None in most families."""
        return None

    def bare_prompt(self) -> dict[str, list[int]]:
        """Token ids for the fields of `prompt` when there is no tokenizer."""
        return {}

    def text_positions(self, positions: Positions, count: int) -> Tensor:
        """Positions of `count` text tokens, [count] or [3, count]; `positions` moves on."""
        start = positions.upcoming
        positions.upcoming += count
        positions.video_start = None
        return torch.arange(start, start + count)

    def vision_positions(self, positions: Positions, features: Features, seconds: float) -> Tensor:
        """Positions of one temporal patch's tokens, [N] or [3, N]; `positions` moves on.

        Args:
            positions: how far they have been given out.
            features: the patch.
            seconds: time of its first frame.
        """
        return self.text_positions(positions, features.tokens.shape[0])

    def patch_extent(self, features: Features, num_patches: int, seconds_per_patch: float) -> int:
        """How many positions `num_patches` such patches take, text aside."""
        return num_patches * features.tokens.shape[0]

    def decode(
        self,
        embedded: Float[Tensor, "B n W"],
        positions: Tensor,
        cache: Any,
        *,
        visual: Tensor,
        deepstack: Sequence[Tensor] = (),
    ) -> Float[Tensor, "B n W"]:
        """Embedded tokens through the decoder.

        Args:
            embedded: [B, n, W].
            positions: [B, n] or [3, B, n].
            cache: what the decoder keeps keys and values in.
            visual: [B, n] bool, which tokens are the encoder's.
            deepstack: features of those tokens, [visual.sum(), W] for each of the first layers, row after row.
        """
        output = self.decoder(
            inputs_embeds=embedded,
            position_ids=positions.to(embedded.device),
            use_cache=True,
            **{cache_argument(self.decoder): cache},
            **self.decoder_extras(visual, deepstack),
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def decoder_extras(self, visual: Tensor, deepstack: Sequence[Tensor]) -> Mapping[str, Any]:
        """Further arguments of the decoder, by name; `visual` and `deepstack` as in `decode`."""
        return {}

    def logits(self, hidden: Float[Tensor, "n W"]) -> Float[Tensor, "n V"]:
        """Scores of the next token."""
        scores: Tensor = self.model.get_output_embeddings()(hidden)
        return scores

    def placeholder_ids(self) -> frozenset[int]:
        """Tokens that stand for frames in the model's own input."""
        names = ("video_token_id", "image_token_id", "video_token_index", "image_token_index")
        found = (getattr(self.config, name, None) for name in names)
        return frozenset(token for token in found if isinstance(token, int))

    def stop_ids(self) -> frozenset[int]:
        """Tokens at which an answer ends, from the model's generation config.

        Raises:
            ConfigError: it names something else than tokens.
        """
        stored = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        stored = self.text_config.eos_token_id if stored is None else stored
        if stored is None:
            return frozenset()
        ids = stored if isinstance(stored, list | tuple) else [stored]
        if any(isinstance(token, bool) or not isinstance(token, int) for token in ids):
            raise ConfigError(
                f"the model's generation_config says eos_token_id = {stored!r:.60}, and an answer would not end. It "
                "must hold whole numbers, one or a list. Mend generation_config.json."
            )
        return frozenset(ids)


def check_ready(model: nn.Module) -> None:
    """Raises ConfigError where the model is in training mode, spread over several devices, or without its weights."""
    if model.training:
        raise ConfigError(
            "the model is in training mode, where dropout would change the state. Call model.eval() first."
        )
    devices = {str(parameter.device) for parameter in model.parameters()}
    if len(devices) > 1:
        raise ConfigError(
            f"a stream needs the model on one device, it is on {', '.join(sorted(devices))}. Move it to one."
        )
    if "meta" in devices:
        raise ConfigError("the model's weights are not in memory (device meta). Load them onto one device.")
