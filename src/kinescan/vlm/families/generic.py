"""Any decoder-only video VLM of transformers whose frames are tokens in a row; checked against its own forward."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from typing_extensions import override

from kinescan.errors import ConfigError
from kinescan.vlm.families.base import Family, Features, PromptFormat
from kinescan.vlm.families.pixels import HALF, PixelSettings, normalise, resize

Medium = Literal["video", "image"]
_SIDE = 224


@dataclass(frozen=True)
class Way:
    """One way to put frames into a model.

    Attributes:
        medium: whether frames are a video, or images one after the other.
        leading: dimensions before [T, 3, H, W] in what the encoder and the forward take.
    """

    medium: Medium
    leading: int

    @property
    def encoder(self) -> str:
        """The model's function that makes features."""
        return f"get_{self.medium}_features"

    @property
    def argument(self) -> str:
        """What its forward calls the pixels."""
        return "pixel_values_videos" if self.medium == "video" else "pixel_values"


class Generic(Family):
    """A decoder-only VLM with full attention: frames through its own encoder, tokens in a row, positions one by one.

    How frames enter is found out by `opened` (see `kinescan.vlm.self_check`): as a video, else as images one after the
    other, whichever way gives the model's own forward.

    Differs: a processor may write something around each frame; only what the chat template writes is written here.
    """

    model_type: ClassVar[str] = "generic"
    prompt: PromptFormat = PromptFormat(
        video_token="<video>",
        opening="USER: ",
        closing="\n",
        answer=" ASSISTANT:",
        next_turn=" USER: ",
        next_video=" USER: ",
    )
    default_pixels: ClassVar[PixelSettings] = PixelSettings(mean=HALF, std=HALF)

    def __init__(
        self,
        model: nn.Module,
        *,
        pixels: PixelSettings | None = None,
        horizon_frames: int | None = None,
        hf_compat: bool = False,
    ) -> None:
        self.check_structure(model)
        super().__init__(model, pixels=pixels, horizon_frames=horizon_frames, hf_compat=hf_compat)
        self.use(self.ways()[0])

    def use(self, way: Way) -> None:
        """From now on frames enter this way."""
        self.way = way
        self.medium = way.medium
        self.prompt = replace(self.prompt, video_token=f"<{way.medium}>")

    def ways(self) -> list[Way]:
        """Those that its functions allow, the likeliest first."""
        found = []
        for way in (Way("video", 1), Way("image", 0)):
            if self.token_id(way) is None or _missing_arguments(getattr(self.model.model, way.encoder, None)):
                continue
            found += [way, Way(way.medium, 1 - way.leading)]
        return found

    def token_id(self, way: Way) -> int | None:
        """The token that stands for a feature in the model's own input."""
        for name in (f"{way.medium}_token_id", f"{way.medium}_token_index"):
            if isinstance(value := getattr(self.config, name, None), int):
                return value
        return None

    @staticmethod
    def check_structure(model: Any) -> None:
        """Raises ConfigError where frames cannot enter one by one, by what the model's functions say."""
        inner, kind = getattr(model, "model", None), model.config.model_type
        if not (hasattr(inner, "language_model") or hasattr(inner, "text_model")):
            raise ConfigError(f"{kind}: no language model is found inside of {type(model).__name__}. {_ADVICE}")
        if hasattr(inner, "get_rope_index"):
            raise ConfigError(f"{kind}: positions have several axes, by a rule of its own. {_ADVICE}")
        encoders = [getattr(inner, f"get_{medium}_features", None) for medium in ("video", "image")]
        lacking = [_missing_arguments(encoder) for encoder in encoders if encoder is not None]
        if not lacking or all(lacking):
            wanted = f"its encoder wants {', '.join(lacking[0])} beside pixels" if lacking else "it takes no frames"
            raise ConfigError(f"{kind}: {wanted}. {_ADVICE}")

    @override
    def prepare(self, frames: UInt8[Tensor, "T 3 H W"]) -> Float[Tensor, "T 3 H W"]:
        return normalise(resize(frames, self.frame_size()), self.pixels)

    def frame_size(self) -> tuple[int, int]:
        """Height and width that frames are resized to, in pixels."""
        side = getattr(getattr(self.config, "vision_config", None), "image_size", None) or _SIDE
        height, width = side if isinstance(side, list | tuple) else (side, side)
        return self.pixels.size or (height, width)

    def encoder_input(self, prepared: Float[Tensor, "T 3 H W"]) -> Tensor:
        """Prepared frames on the model's device: [T, 3, H, W], or [1, T, 3, H, W] for models that want a batch."""
        prepared = prepared.to(self.model.model.device, self.embedding.dtype)
        return prepared[None] if self.way.leading else prepared

    @override
    def encode(self, frames: UInt8[Tensor, "T 3 H W"]) -> Features:
        inner = self.model.model
        encoder = getattr(inner, self.way.encoder)
        output = encoder(self.encoder_input(self.prepare(frames.to(inner.device))))
        found = getattr(output, "pooler_output", output)
        tokens = found if isinstance(found, Tensor) else torch.cat([part.flatten(0, -2) for part in found])
        tokens = tokens.flatten(0, -2)
        side = round(tokens.shape[0] ** 0.5)
        grid = (side, side) if side * side == tokens.shape[0] else (1, tokens.shape[0])
        return Features(tokens=tokens, grid=grid)


def _missing_arguments(encoder: Callable[..., Any] | None) -> list[str]:
    """Arguments that it cannot do without, besides the pixels."""
    if encoder is None:
        return ["an encoder"]
    parameters = list(inspect.signature(encoder).parameters.values())[1:]
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [one.name for one in parameters if one.default is inspect.Parameter.empty and one.kind not in kinds]


_ADVICE = "Use a checkpoint of a family that is supported by name (docs/statekv.md)."
