from typing import ClassVar

from typing_extensions import override

from kinescan.vlm.families.base import Features, Positions
from kinescan.vlm.families.qwen2_5_vl import Qwen25VL


class Qwen2VL(Qwen25VL):
    """Qwen2-VL: as Qwen2.5-VL, but patches are counted on the time axis, whatever their times.

    Differs: transformers 5 starts the text after a video as for Qwen2.5-VL; see there.

    Source: Qwen2-VL (arXiv 2409.12191), section on M-RoPE.
    """

    model_type: ClassVar[str] = "qwen2_vl"

    @override
    def time_of_patch(self, positions: Positions, seconds: float) -> int:
        return positions.video_patches

    @override
    def patch_extent(self, features: Features, num_patches: int, seconds_per_patch: float) -> int:
        return max(num_patches, *features.grid)
