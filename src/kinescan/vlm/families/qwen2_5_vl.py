from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from typing_extensions import override

from kinescan.vlm.families.base import Family, Features, Positions, PromptFormat
from kinescan.vlm.families.pixels import PixelSettings, free_size, normalise, patchify, resize


class Qwen25VL(Family):
    """Qwen2.5-VL: two frames a patch, three-axis positions, a whole video as one block of positions.

    Differs: transformers 5 starts the text after a video at the video's start plus its longer side, as if it had one
    frame; the family was trained with the largest position so far plus one, which is what we give. `hf_compat=True`
    takes transformers' way.

    Source: Qwen2.5-VL (arXiv 2502.13923), section on M-RoPE aligned to absolute time.
    """

    model_type: ClassVar[str] = "qwen2_5_vl"
    takes_any_size: ClassVar[bool] = True
    prompt: PromptFormat = PromptFormat(
        video_token="<|video_pad|>",
        opening="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>",
        video_start="<|vision_start|>",
        closing="<|vision_end|>",
        next_video="<|im_end|>\n<|im_start|>user\n<|vision_start|>",
    )
    default_pixels: ClassVar[PixelSettings] = PixelSettings()

    def __init__(
        self,
        model: nn.Module,
        *,
        pixels: PixelSettings | None = None,
        horizon_frames: int | None = None,
        hf_compat: bool = False,
    ) -> None:
        super().__init__(model, pixels=pixels, horizon_frames=horizon_frames, hf_compat=hf_compat)
        vision = self.config.vision_config
        self.temporal_patch = vision.temporal_patch_size
        self.patch, self.merge = vision.patch_size, vision.spatial_merge_size

    def frame_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that frames are resized to, in pixels."""
        return free_size(
            height,
            width,
            factor=self.patch * self.merge,
            min_pixels=self.pixels.min_pixels,
            max_pixels=self.pixels.max_pixels,
        )

    @override
    def prepare(self, frames: UInt8[Tensor, "T 3 H W"]) -> Float[Tensor, "N D"]:
        return self._patches(frames)[0]

    def _patches(self, frames: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        resized = resize(frames, self.frame_size(frames.shape[-2], frames.shape[-1]))
        prepared = normalise(resized, self.pixels)
        return patchify(prepared, patch=self.patch, merge=self.merge, temporal_patch=self.temporal_patch)

    @override
    def encode(self, frames: UInt8[Tensor, "T 3 H W"]) -> Features:
        encoder = self.model.model.visual
        patches, grid = self._patches(frames.to(encoder.device))
        output = self.model.model.get_video_features(patches, torch.tensor([grid], device=patches.device))
        stacked = tuple(torch.cat(tuple(level)) for level in getattr(output, "deepstack_features", None) or ())
        return Features(
            tokens=torch.cat(tuple(output.pooler_output)),
            grid=(grid[1] // self.merge, grid[2] // self.merge),
            deepstack=stacked,
        )

    @override
    def bare_prompt(self) -> dict[str, list[int]]:
        opening, closing = [self.config.vision_start_token_id], [self.config.vision_end_token_id]
        return {"opening": opening, "closing": closing, "next_video": opening}

    @override
    def text_positions(self, positions: Positions, count: int) -> Tensor:
        return super().text_positions(positions, count).expand(3, -1)

    @override
    def vision_positions(self, positions: Positions, features: Features, seconds: float) -> Tensor:
        if positions.video_start is None:
            positions.video_start, positions.video_seconds, positions.video_patches = positions.upcoming, seconds, 0
        start = positions.video_start
        time = self.time_of_patch(positions, seconds)
        positions.video_patches += 1
        rows, columns = features.grid
        axes = torch.stack(
            (
                torch.full((rows * columns,), time),
                torch.arange(rows).repeat_interleave(columns),
                torch.arange(columns).repeat(rows),
            )
        )
        extent = max(rows, columns) if self.hf_compat else max(time + 1, rows, columns)
        positions.upcoming = start + extent
        return axes + start

    @override
    def patch_extent(self, features: Features, num_patches: int, seconds_per_patch: float) -> int:
        return max(self.time_index(num_patches * seconds_per_patch) + 1, *features.grid)

    def time_of_patch(self, positions: Positions, seconds: float) -> int:
        """Position of the running video's next patch on its time axis."""
        return self.time_index(seconds - positions.video_seconds)

    def time_index(self, elapsed_seconds: float) -> int:
        """Position of a patch on the time axis, this long after its video began."""
        # A millionth against 0.1 + 0.2: times are sums of fractions.
        return int(self.config.vision_config.tokens_per_second * elapsed_seconds + 1e-6)
