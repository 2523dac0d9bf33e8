from typing import ClassVar

from jaxtyping import Float, UInt8
from torch import Tensor
from typing_extensions import override

from kinescan.vlm.families.base import Family, Features, PromptFormat
from kinescan.vlm.families.pixels import HALF, PixelSettings, normalise, resize


class SmolVLM(Family):
    """SmolVLM2: one frame a patch, its time in minutes and seconds in the text before it.

    Differs: (1) the processor says how many frames the video has and how long it is; a stream does not know, and
    leaves both out of that sentence. (2) Frames are brought to the encoder's square in one resize, not in two.

    Source: SmolVLM (arXiv 2504.05299).
    """

    model_type: ClassVar[str] = "smolvlm"
    prompt: PromptFormat = PromptFormat(
        video_token="<video>",
        opening="<|im_start|>User: ",
        introduction="You are provided the following series of frames from a video.\n",
        before_patch="\nFrame from {minutes:02d}:{rest:02d}:<fake_token_around_image><global-img>",
        after_patch="<fake_token_around_image>",
        video_end="\n\n",
        closing="",
        answer="<end_of_utterance>\nAssistant:",
        next_turn="<end_of_utterance>\nUser: ",
        next_video="<end_of_utterance>\nUser: ",
    )
    default_pixels: ClassVar[PixelSettings] = PixelSettings(mean=HALF, std=HALF)

    @override
    def prepare(self, frames: UInt8[Tensor, "T 3 H W"]) -> Float[Tensor, "T 3 H W"]:
        side = self.config.vision_config.image_size
        return normalise(resize(frames, self.pixels.size or (side, side)), self.pixels)

    @override
    def encode(self, frames: UInt8[Tensor, "T 3 H W"]) -> Features:
        inner = self.model.model
        tokens = inner.get_image_features(self.prepare(frames.to(inner.device))[None]).pooler_output[0]
        side = round(tokens.shape[0] ** 0.5)
        return Features(tokens=tokens, grid=(side, side))
