"""Frames in the forms in which people have them, as one uint8 tensor."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from kinescan.errors import ShapeError

_IMAGE_MODES = ("RGB", "RGBA", "L", "P", "1", "CMYK", "YCbCr")
_ALLOWED = (
    "Give a uint8 tensor [T, 3, H, W] or [3, H, W] in RGB, a NumPy array [T, H, W, 3] or [H, W, 3], images of Pillow, "
    "or a list of frames of one size."
)


def to_frames(given: Any) -> UInt8[Tensor, "T 3 H W"]:
    """Frames as [T, 3, H, W].

    Args:
        given: a tensor [T, 3, H, W] or [3, H, W]; a NumPy array of uint8 with the colours last ([T, H, W, 3] or
            [H, W, 3], as OpenCV, imageio and PyAV give them; first, as tensors have them, where the last axis is not
            3); an image of Pillow; or a list of frames of these kinds, all of one size.

    Raises:
        ShapeError: it is something else.

    Example:
        >>> to_frames(np.zeros((48, 64, 3), dtype=np.uint8)).shape
        torch.Size([1, 3, 48, 64])
    """
    if isinstance(given, Tensor):
        if given.is_meta or given.is_quantized or given.layout != torch.strided:
            kind = "one without data (meta)" if given.is_meta else f"{given.layout} {given.dtype}"
            raise ShapeError(f"frames must be in a plain tensor that holds its numbers, got {kind}. {_ALLOWED}")
        frames = given[None] if given.ndim == 3 else given
    elif isinstance(given, np.ndarray):
        frames = _of_array(given)
    elif hasattr(given, "mode") and hasattr(given, "convert"):
        frames = _of_image(given)
    elif isinstance(given, Sequence) and not isinstance(given, str | bytes):
        frames = _of_list(given)
    else:
        raise ShapeError(f"frames cannot be taken from a {type(given).__name__}. {_ALLOWED}")
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8 or not frames.numel():
        hint = "One stream holds one video: open a stream for each. " if frames.ndim == 5 else ""
        shown = f"{str(frames.dtype).removeprefix('torch.')} {tuple(frames.shape)}"
        raise ShapeError(f"frames must be uint8 [T, 3, H, W] in RGB, got {shown}. {hint}{_ALLOWED}")
    return frames


def _of_array(array: np.ndarray) -> Tensor:
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise ShapeError(f"frames must be uint8, got an array of {array.dtype} {array.shape}. {_ALLOWED}")
    # a copy where torch cannot read it lies
    frames = torch.from_numpy(np.ascontiguousarray(array) if array.flags.writeable else array.copy())
    frames = frames[None] if frames.ndim == 3 else frames
    return frames.permute(0, 3, 1, 2) if frames.shape[3] == 3 else frames


def _of_image(image: Any) -> Tensor:
    if image.mode not in _IMAGE_MODES:
        raise ShapeError(f"an image of mode {image.mode!r} has no 8-bit colours. Convert it to RGB.")
    return _of_array(np.array(image.convert("RGB")))


def _of_list(parts: Sequence[Any]) -> Tensor:
    frames = [to_frames(part) if not isinstance(part, list | tuple) else _refused(part) for part in parts]
    sizes = sorted({tuple(part.shape[2:]) for part in frames})
    if len(sizes) != 1:
        shown = " and ".join(map(str, sizes)) if sizes else "none"
        raise ShapeError(f"a list of frames must hold at least one, all of one size, got {shown}. {_ALLOWED}")
    return torch.cat([part.to(frames[0].device) for part in frames])


def _refused(part: Any) -> Tensor:
    raise ShapeError(f"frames cannot be taken from a list of {type(part).__name__}s of values. {_ALLOWED}")
