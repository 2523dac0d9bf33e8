from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from kinescan.vlm.families.base import Features, Positions, PromptFormat
from kinescan.vlm.families.pixels import HALF, PixelSettings, free_size
from kinescan.vlm.families.qwen2_5_vl import Qwen25VL

FRAME_TOKENS = 768


class Qwen3VL(Qwen25VL):
    """Qwen3-VL: two frames a patch, its time written before it as text, features added behind the first layers too.

    Differs: (1) transformers 5 leaves the chat template's vision_start and vision_end around the whole video, besides
    those of each patch; the release replaced them, and so do we unless `hf_compat=True`. (2) The processor divides its
    allowance of pixels by the number of frames of the whole video, which a stream does not know: `horizon_frames`
    stands for it, and without one only the limit for a single frame holds.

    Source: Qwen3-VL (arXiv 2511.21631).
    """

    model_type: ClassVar[str] = "qwen3_vl"
    prompt: PromptFormat = PromptFormat(
        video_token="<|vision_start|><|video_pad|><|vision_end|>",
        opening="<|im_start|>user\n",
        before_patch="<{seconds:.1f} seconds><|vision_start|>",
        after_patch="<|vision_end|>",
        closing="",
    )
    default_pixels: ClassVar[PixelSettings] = PixelSettings(mean=HALF, std=HALF, min_pixels=4096, max_pixels=25165824)

    def __init__(
        self,
        model: nn.Module,
        *,
        pixels: PixelSettings | None = None,
        horizon_frames: int | None = None,
        hf_compat: bool = False,
    ) -> None:
        super().__init__(model, pixels=pixels, horizon_frames=horizon_frames, hf_compat=hf_compat)
        if hf_compat:
            self.prompt = replace(
                self.prompt,
                video_token="<|video_pad|>",
                opening=self.prompt.opening + "<|vision_start|>",
                video_start="<|vision_start|>",
                closing="<|vision_end|>" + self.prompt.closing,
                next_video=self.prompt.next_video + "<|vision_start|>",
            )

    @override
    def frame_size(self, height: int, width: int) -> tuple[int, int]:
        factor = self.patch * self.merge
        if min(height, width) < factor:
            grow = factor / min(height, width)
            height, width = int(height * grow), int(width * grow)
        frames = self.temporal_patch if self.horizon_frames is None else max(self.horizon_frames, self.temporal_patch)
        max_pixels = max(
            min(FRAME_TOKENS * factor**2, self.pixels.max_pixels // frames), int(self.pixels.min_pixels * 1.05)
        )
        return free_size(
            height, width, factor=factor, min_pixels=self.pixels.min_pixels / frames, max_pixels=max_pixels
        )

    @property
    @override
    def num_levels(self) -> int:
        return len(self.config.vision_config.deepstack_visual_indexes)

    @override
    def bare_prompt(self) -> dict[str, list[int]]:
        around_patch = {
            "before_patch": [self.config.vision_start_token_id],
            "after_patch": [self.config.vision_end_token_id],
        }
        return around_patch | (super().bare_prompt() if self.hf_compat else {})

    @override
    def vision_positions(self, positions: Positions, features: Features, seconds: float) -> Tensor:
        # Each patch is a video of its own: the time is in the text before it.
        positions.video_start = None
        return super().vision_positions(positions, features, seconds)

    @override
    def time_index(self, elapsed_seconds: float) -> int:
        return 0

    @override
    def patch_extent(self, features: Features, num_patches: int, seconds_per_patch: float) -> int:
        return num_patches * max(features.grid)

    @override
    def decoder_extras(self, visual: Tensor, deepstack: Sequence[Tensor]) -> Mapping[str, Any]:
        if not deepstack:
            return {}
        return {
            "visual_pos_masks": visual,
            "deepstack_visual_embeds": [torch.as_tensor(level) for level in deepstack],
        }


class Qwen3VLMoe(Qwen3VL):
    """Qwen3-VL with experts: the same around a decoder whose layers choose among several feed-forward networks.

    Source: Qwen3-VL (arXiv 2511.21631).
    """

    model_type: ClassVar[str] = "qwen3_vl_moe"


class Qwen35(Qwen3VL):
    """Qwen3.5: as Qwen3-VL, without features behind the first layers.

    Its released checkpoints have linear attention in three of four layers, and are refused for that; those whose
    `layer_types` say full attention everywhere run.

    Source: the classes of transformers.
    """

    model_type: ClassVar[str] = "qwen3_5"

    @property
    @override
    def num_levels(self) -> int:
        return 0


class Qwen35Moe(Qwen35):
    """Qwen3.5 with experts: otherwise the same.

    Source: the classes of transformers.
    """

    model_type: ClassVar[str] = "qwen3_5_moe"
