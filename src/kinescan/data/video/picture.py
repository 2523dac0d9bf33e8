from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
import torch
from av.buffer import Buffer
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter

from kinescan.errors import VideoError

# How many kinds FFmpeg may have more than PyAV knows of.
_MAX_UNKNOWN_KINDS = 32
# FFmpeg 8 takes the two bytes of these in the wrong order on their way to RGB, but swaps them well.
_SWAPPED = {f"{order}{bits}be": f"{order}{bits}le" for order in ("rgb", "bgr") for bits in (555, 565)}


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
        if frame.format.name in _SWAPPED:
            frame = reformatter.reformat(frame, format=_SWAPPED[frame.format.name])
        rgb = reformatter.reformat(frame, width=width, height=height, format="rgb24")
    except (av.error.FFmpegError, ValueError, MemoryError) as error:
        reason = f"its pixels ({frame.format.name}) cannot be converted to RGB: {error}."
        raise VideoError(source, reason) from error
    plane = rgb.planes[0]
    rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(height, plane.line_size)
    return turn(torch.from_numpy(rows[:, : width * 3].reshape(height, width, 3)), frame)


def square_size(size: tuple[int, int], aspect: Fraction | None) -> tuple[int, int]:
    """The stored size at which pixels are square: the shorter side of a pixel is stretched, nothing is shrunk.

    Args:
        size: stored (width, height).
        aspect: width of a pixel over its height; None or 0 where the file does not say it.

    Example:
        >>> square_size((720, 576), Fraction(64, 45)), square_size((720, 480), Fraction(8, 9))
        ((1024, 576), (720, 540))
    """
    width, height = size
    if not aspect or aspect == 1:
        return size
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))


def turn(image: torch.Tensor, frame: av.VideoFrame) -> torch.Tensor:
    """Carries out the frame's display matrix, to the nearest quarter turn, with mirroring: [H, W, 3] upright."""
    matrix = _display_matrix(frame)
    if matrix is None:
        return image
    # x' = a x + c y, y' = b x + d y, with x to the right and y down
    a, b, _, c, d = np.frombuffer(memoryview(matrix), dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        image = image.transpose(0, 1)
        a, d = c, b
    flipped = [axis for axis, scale in ((0, d), (1, a)) if scale < 0]
    return image.flip(flipped) if flipped else image


def some_rows(frame: av.VideoFrame) -> bytes:
    """Every eighth row of the first plane, without the padding at the ends of rows."""
    plane, layout = frame.planes[0], frame.format
    bits = layout.components[0].bits if layout.is_planar else layout.padded_bits_per_pixel
    rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(-1, plane.line_size)
    return rows[: plane.height : 8, : plane.width * -(-bits // 8)].tobytes()


def _display_matrix(frame: av.VideoFrame) -> Buffer | None:
    if not frame.format.name.startswith("yuv"):
        # PyAV frees the name of a picture's colour profile twice, which ends the process
        frame = _without_side_data(frame, [Type.ICC_PROFILE.value])  # type: ignore[list-item]
    try:
        return frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV reads none of a frame's side data where it has no name for one of them (Exif, views of a stereo pair)
        unknown = range(len(Type), len(Type) + _MAX_UNKNOWN_KINDS)
        return _without_side_data(frame, unknown).side_data.get("DISPLAYMATRIX")


def _without_side_data(frame: av.VideoFrame, kinds: Iterable[int]) -> av.VideoFrame:
    """The same picture without side data of these kinds, by FFmpeg's numbers."""
    graph = Graph()
    last = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000))
    for kind in kinds:
        step = graph.add("sidedata", f"mode=delete:type={kind}")
        last.link_to(step)
        last = step
    sink = graph.add("buffersink")
    last.link_to(sink)
    graph.configure()
    graph.push(frame)
    known = graph.pull()
    assert isinstance(known, av.VideoFrame)
    return known
