from typing import ClassVar

from jaxtyping import Float, UInt8
from torch import Tensor
from typing_extensions import override

from kinescan.vlm.families.base import Family, Features, PromptFormat
from kinescan.vlm.families.pixels import PixelSettings, normalise, resize


class InternVL(Family):
    """InternVL3: one frame a patch, numbered in the text before it.

    Source: InternVL3 (arXiv 2504.10479).
    """

    model_type: ClassVar[str] = "internvl"
    prompt: PromptFormat = PromptFormat(
        video_token="<video>",
        opening="<|im_start|>user\n",
        before_patch="Frame{number}: <img>",
        after_patch="</img>",
        between="\n",
        closing="\n",
    )
    default_pixels: ClassVar[PixelSettings] = PixelSettings()

    @override
    def prepare(self, frames: UInt8[Tensor, "T 3 H W"]) -> Float[Tensor, "T 3 H W"]:
        height, width = self.config.vision_config.image_size
        return normalise(resize(frames, self.pixels.size or (height, width)), self.pixels)

    @override
    def encode(self, frames: UInt8[Tensor, "T 3 H W"]) -> Features:
        inner = self.model.model
        tokens = inner.get_image_features(self.prepare(frames.to(inner.device))).pooler_output.flatten(0, 1)
        side = round(tokens.shape[0] ** 0.5)
        return Features(tokens=tokens, grid=(side, side))
