from typing import ClassVar

from jaxtyping import Float, UInt8
from torch import Tensor
from typing_extensions import override

from kinescan.vlm.families.base import Family, Features, PromptFormat
from kinescan.vlm.families.pixels import PixelSettings, cropped, normalise


class LlavaNextVideo(Family):
    """LLaVA-NeXT-Video: one frame a patch, cut to a square, pooled to a quarter of its tokens, nothing between frames.

    Source: LLaVA-NeXT, "A Strong Zero-shot Video Understanding Model" (2024), and the classes of transformers.
    """

    model_type: ClassVar[str] = "llava_next_video"
    prompt: PromptFormat = PromptFormat(
        video_token="<video>",
        opening="USER: ",
        closing="\n",
        answer=" ASSISTANT:",
        next_turn=" USER: ",
        next_video=" USER: ",
    )
    default_pixels: ClassVar[PixelSettings] = PixelSettings()

    @override
    def prepare(self, frames: UInt8[Tensor, "T 3 H W"]) -> Float[Tensor, "T 3 H W"]:
        side = self.config.vision_config.image_size
        return normalise(cropped(frames, self.pixels.size or (side, side)), self.pixels)

    @override
    def encode(self, frames: UInt8[Tensor, "T 3 H W"]) -> Features:
        inner = self.model.model
        prepared = self.prepare(frames.to(inner.device)).to(inner.dtype)
        tokens = inner.get_video_features(prepared[None]).pooler_output[0]
        side = round(tokens.shape[0] ** 0.5)
        return Features(tokens=tokens, grid=(side, side))
