from typing import ClassVar

from jaxtyping import Float, UInt8
from torch import Tensor
from typing_extensions import override

from kinescan.vlm.families.base import Family, Features, PromptFormat
from kinescan.vlm.families.pixels import HALF, PixelSettings, normalise, resize

DEFAULT_SIDE = 448


class PerceptionLM(Family):
    """Perception-LM: one frame a patch, one tile each, nothing between frames. Its vision encoder needs timm.

    Source: PerceptionLM (arXiv 2504.13180).
    """

    model_type: ClassVar[str] = "perception_lm"
    prompt: PromptFormat = PromptFormat(
        video_token="<|video|>",
        opening="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
        closing="",
        answer="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        next_turn="<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
        next_video="<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
    )
    default_pixels: ClassVar[PixelSettings] = PixelSettings(mean=HALF, std=HALF)

    def frame_size(self) -> tuple[int, int]:
        """Height and width that frames are resized to, in pixels."""
        vision = self.config.vision_config
        side = getattr(vision, "image_size", None)
        side = (getattr(vision, "model_args", None) or {}).get("img_size", [side])[0] or DEFAULT_SIDE
        return self.pixels.size or (side, side)

    @override
    def prepare(self, frames: UInt8[Tensor, "T 3 H W"]) -> Float[Tensor, "T 3 H W"]:
        return normalise(resize(frames, self.frame_size()), self.pixels)

    @override
    def encode(self, frames: UInt8[Tensor, "T 3 H W"]) -> Features:
        inner = self.model.model
        prepared = self.prepare(frames.to(inner.device)).to(inner.dtype)
        tokens = inner.get_image_features(prepared[None]).pooler_output.flatten(0, 1)
        side = round(tokens.shape[0] ** 0.5)
        return Features(tokens=tokens, grid=(side, side))
