import math
from dataclasses import dataclass
from typing import Literal

from kinescan.errors import ConfigError
from kinescan.fields import check_types

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_CLIP_PIXELS = 2**31
"""Of a clip's frames together: 24 GiB in float32, before any model has seen it."""
MAX_FRAME_RATE = 1000


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
            frames `frame_stride` apart; "windows", for long videos, takes segments of a window of the video; "rate"
            takes frames by their times, `frame_rate` of them a second, whatever the rate of the video.
        frame_stride: distance of two frames in frames, for `sampling="dense"`.
        num_windows: a window is as long as the video over this number, for `sampling="windows"`; with as many clips in
            test, they cover the whole video.
        frame_rate: frames a second, for `sampling="rate"` and for streams; 0: none is set.
        square_pixels: stretch frames whose pixels are not square, as a player does; published models saw them as they
            are stored, which is the default.
        whole_frame: stretch the whole frame into the square; otherwise the short side fits, and what is beyond the
            square at the longer sides is cut off, or seen by further crops. For events anywhere in the picture.
    """

    num_frames: int = 8
    size: int = 224
    crop_ratio: float = 1.0
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    sampling: Literal["segments", "dense", "windows", "rate"] = "segments"
    frame_stride: int = 4
    num_windows: int = 8
    frame_rate: float = 0.0
    square_pixels: bool = False
    whole_frame: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        for name, most in (("num_frames", 2**16), ("size", 2**14), ("frame_stride", 2**31), ("num_windows", 2**31)):
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} must be 1 to {most}, got {getattr(self, name)}.")
        if self.num_frames * self.size**2 > MAX_CLIP_PIXELS:
            raise ConfigError(
                f"{self.num_frames} frames of {self.size} x {self.size} are more than the {MAX_CLIP_PIXELS:,} pixels "
                "that a clip may have. Choose a smaller num_frames or size."
            )
        if not 0 <= self.frame_rate <= MAX_FRAME_RATE:
            raise ConfigError(f"frame_rate must be 0 (none is set) to {MAX_FRAME_RATE}, got {self.frame_rate}.")
        if self.sampling == "rate" and not self.frame_rate:
            raise ConfigError(
                'frame_rate is 0 and sampling is "rate". Set preprocessing.frame_rate: how many frames a second to '
                "take, such as 8."
            )
        if not 0 < self.crop_ratio <= 1:
            raise ConfigError(f"crop_ratio must lie in (0, 1], got {self.crop_ratio}.")
        if not all(0 < value < math.inf for value in self.std):
            raise ConfigError(f"std must be positive and finite in every channel, got {self.std}.")
        if not all(map(math.isfinite, self.mean)):
            raise ConfigError(f"mean must be finite in every channel, got {self.mean}.")
