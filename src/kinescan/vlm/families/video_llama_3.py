from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from typing_extensions import override

from kinescan.vlm.families.base import Family, Features, PromptFormat
from kinescan.vlm.families.pixels import HALF, PixelSettings, free_size, normalise, patchify, resize

MERGE = 2
"""Patches of a frame that become one token, in each direction: the video processor's, in no model's config."""


class VideoLlama3(Family):
    """VideoLLaMA3: one frame a patch of free size, its time as text before it, a comma between two.

    Differs: (1) the processor drops tokens that look like those of the frame before (`use_token_compression`); a stream
    keeps all, since what may be dropped is for its policy to say. (2) It divides its allowance of pixels by the number
    of frames of the whole video: `horizon_frames` stands for it, and without one the limit for a single frame holds.

    Source: VideoLLaMA 3 (arXiv 2501.13106).
    """

    model_type: ClassVar[str] = "video_llama_3"
    takes_any_size: ClassVar[bool] = True
    prompt: PromptFormat = PromptFormat(
        video_token="<video>",
        opening="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        before_patch="Time {seconds:.1f}s:",
        between=",",
        closing="\n",
    )
    default_pixels: ClassVar[PixelSettings] = PixelSettings(mean=HALF, std=HALF)

    @property
    def patch(self) -> int:
        """Side of a patch, in pixels."""
        side: int = self.config.vision_config.patch_size
        return side

    def frame_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that frames are resized to, in pixels."""
        pixels, frames = self.pixels, self.horizon_frames or 1
        return free_size(
            height,
            width,
            factor=self.patch * MERGE,
            min_pixels=pixels.min_pixels,
            max_pixels=pixels.max_pixels / frames,
        )

    @override
    def prepare(self, frames: UInt8[Tensor, "T 3 H W"]) -> Float[Tensor, "N D"]:
        return self._patches(frames)[0]

    def _patches(self, frames: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        resized = resize(frames, self.frame_size(frames.shape[-2], frames.shape[-1]))
        return patchify(normalise(resized, self.pixels), patch=self.patch, merge=MERGE, temporal_patch=1)

    @override
    def encode(self, frames: UInt8[Tensor, "T 3 H W"]) -> Features:
        inner = self.model.model
        patches, grid = self._patches(frames.to(inner.device))
        sizes = torch.tensor([grid], device=patches.device)
        output = inner.get_video_features(patches, sizes, torch.tensor([MERGE], device=patches.device))
        return Features(tokens=torch.cat(tuple(output.pooler_output)), grid=(grid[1] // MERGE, grid[2] // MERGE))
