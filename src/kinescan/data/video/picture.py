from pathlib import Path

import av
import av.error
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from kinescan.errors import VideoError


def to_rgb(
    source: str | Path, frame: av.VideoFrame, reformatter: VideoReformatter, size: tuple[int, int] | None = None
) -> torch.Tensor:
    """A decoded frame as upright pixels [H, W, 3], uint8.

    Args:
        source: what it came from, for messages.
        frame: of any pixel format.
        reformatter: that of the video, which keeps its conversion tables from frame to frame.
        size: stored (width, height) to scale it to; None leaves it.

    Raises:
        VideoError: FFmpeg cannot convert these pixels.
    """
    width, height = (frame.width, frame.height) if size is None else size
    try:
        rgb = reformatter.reformat(frame, width=width, height=height, format="rgb24")
    except (av.error.FFmpegError, ValueError) as error:
        reason = f"its pixels ({frame.format.name}) cannot be converted to RGB: {error}."
        raise VideoError(source, reason) from error
    plane = rgb.planes[0]
    rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(height, plane.line_size)
    return turn(torch.from_numpy(rows[:, : width * 3].reshape(height, width, 3)), frame)


def turn(image: torch.Tensor, frame: av.VideoFrame) -> torch.Tensor:
    """Carries out the frame's display matrix, to the nearest quarter turn, with mirroring: [H, W, 3] upright."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    # x' = a x + c y, y' = b x + d y, with x to the right and y down
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        image = image.transpose(0, 1)
        a, d = c, b
    flipped = [axis for axis, scale in ((0, d), (1, a)) if scale < 0]
    return image.flip(flipped) if flipped else image
