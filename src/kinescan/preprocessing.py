from dataclasses import dataclass
from typing import Literal

from kinescan.errors import ConfigError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How pixels become the clip that a model was trained on; saved with every model.

    It belongs neither to `models` nor to `data`: a model carries it, `data.transforms` carries it out.

    Attributes:
        num_frames: frames in a clip.
        size: side of the square frame in pixels.
        crop_ratio: side of the crop over the short side of the resized frame; 1.0 resizes the short side to `size`.
        mean: subtracted from each colour channel after scaling pixels to [0, 1].
        std: each colour channel is divided by it afterwards.
        interpolation: how frames are resized (always with antialiasing).
        sampling: "segments" takes one frame from each of `num_frames` equal parts of the video (TSN); "dense" takes
            frames `frame_stride` apart; "windows", for long videos, takes segments of a window of the video.
        frame_stride: distance of two frames in frames, for `sampling="dense"`.
        num_windows: a window is as long as the video over this number, for `sampling="windows"`; with as many clips in
            test, they cover the whole video.
    """

    num_frames: int = 8
    size: int = 224
    crop_ratio: float = 1.0
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    sampling: Literal["segments", "dense", "windows"] = "segments"
    frame_stride: int = 4
    num_windows: int = 8

    def __post_init__(self) -> None:
        for name in ("num_frames", "size", "frame_stride", "num_windows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.crop_ratio <= 1:
            raise ConfigError(f"crop_ratio must lie in (0, 1], got {self.crop_ratio}.")
        if min(self.std) <= 0:
            raise ConfigError(f"std must be positive in every channel, got {self.std}.")
