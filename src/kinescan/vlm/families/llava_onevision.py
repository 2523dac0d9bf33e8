from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from typing_extensions import override

from kinescan.vlm.families.base import Family, Features, PromptFormat
from kinescan.vlm.families.pixels import PixelSettings, normalise, resize


class LlavaOnevision(Family):
    """LLaVA-OneVision: one frame a patch, halved in both directions, and one newline embedding behind the whole video.

    Differs: the encoder's `get_video_features` puts the newline behind what it is given; a stream takes it off each
    frame and gives it with the question, behind the last.

    Source: LLaVA-OneVision (arXiv 2408.03326).
    """

    model_type: ClassVar[str] = "llava_onevision"
    prompt: PromptFormat = PromptFormat(
        video_token="<video>",
        opening="<|im_start|>user ",
        closing="\n",
        answer="<|im_end|><|im_start|>assistant\n",
        next_turn="<|im_end|><|im_start|>user ",
        next_video="<|im_end|><|im_start|>user ",
    )
    default_pixels: ClassVar[PixelSettings] = PixelSettings()

    @override
    def prepare(self, frames: UInt8[Tensor, "T 3 H W"]) -> Float[Tensor, "T 3 H W"]:
        side = self.config.vision_config.image_size
        return normalise(resize(frames, self.pixels.size or (side, side)), self.pixels)

    @override
    def encode(self, frames: UInt8[Tensor, "T 3 H W"]) -> Features:
        inner = self.model.model
        prepared = self.prepare(frames.to(inner.device)).to(inner.dtype)
        output = inner.get_video_features(prepared[None].contiguous())
        tokens = output.pooler_output[0, :-1]
        side = round(tokens.shape[0] ** 0.5)
        return Features(tokens=tokens, grid=(side, side))

    @override
    def closing_features(self) -> Float[Tensor, "n W"] | None:
        newline: Tensor = self.model.model.image_newline
        return torch.atleast_2d(newline)
