import math
import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
import torch

from kinescan.errors import ConfigError, ShapeError, VideoError
from kinescan.runtime.atomic_write import atomic_write
from kinescan.shapes import Pixels

_TICKS_PER_SECOND = 90_000
_ADVICE = "Check the folder, the suffix and the codec."


def write_video(
    path: str | Path,
    pixels: Pixels,
    *,
    fps: float,
    codec: str = "libx264",
    crf: int = 18,
    quantizer: int | None = None,
    keyframe_interval: int = 12,
    pts_seconds: torch.Tensor | None = None,
    rotation_degrees: int = 0,
) -> None:
    """A video file with these frames; the suffix of `path` names the container (.mp4, .webm, .mkv, .avi, ...).

    The file is written aside and renamed, so that an interrupted call leaves none. One thread encodes: the same frames
    give the same bytes. Folders on the way are made.

    Args:
        path: file to write; an existing one is replaced.
        pixels: [T, 3, H, W], uint8, RGB. Sides that are odd are stored without colour subsampling (4:4:4).
        fps: frames per second.
        codec: an FFmpeg encoder: "libx264", "libx265", "libvpx-vp9", "mpeg4", "ffv1" (lossless), ...
        crf: quality of libx264, libx265 and libvpx-vp9; smaller is better, 0 is (nearly) lossless.
        quantizer: fixed quantizer of libx264 (0 to 51) instead of `crf`, with the quickest preset; with a key frame
            interval of 1, a frame is then compressed alike wherever in the video it stands.
        keyframe_interval: frames from one key frame to the next, at most.
        pts_seconds: [T], increasing: the time of each frame instead of t / fps (variable frame rate).
        rotation_degrees: 0, 90, 180 or 270, written to the header: players turn the frames by it, counter-clockwise.

    Raises:
        ShapeError: pixels are not uint8 [T, 3, H, W], or pts_seconds is not increasing [T].
        ConfigError: fps is not positive, or the rotation is not a multiple of 90.
        VideoError: the folder cannot be written, or FFmpeg refuses codec and container.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/a.mp4", torch.zeros(8, 3, 24, 32, dtype=torch.uint8), fps=8)
        ...     print([file.name for file in Path(folder).iterdir()])
        ['a.mp4']
    """
    path = Path(path)
    _check(pixels, fps, pts_seconds, rotation_degrees)
    options = _encoder_options(codec, crf, quantizer)

    def refused(problem: object) -> VideoError:
        return VideoError(path, f"cannot be written with codec {codec!r}: {problem}. {_ADVICE}")

    height, width = pixels.shape[2:]
    times = None if pts_seconds is None else pts_seconds.tolist()
    try:
        with atomic_write(path, error=refused, advice="") as aside:
            _encode(aside, pixels, (height, width), fps, codec, options, keyframe_interval, times, rotation_degrees)
    except (av.error.FFmpegError, ValueError) as error:
        raise refused(error) from error


def write_frames(
    path: str | Path,
    frames: Iterable[Pixels],
    *,
    size: tuple[int, int],
    fps: float,
    pts_seconds: Sequence[float],
    crf: int = 18,
    keyframe_interval: int = 12,
) -> None:
    """As `write_video` with H.264, of frames that come one after another: no more than one is in memory.

    Args:
        path: file to write.
        frames: [3, H, W], uint8, RGB each.
        size: H and W.
        fps: frames per second.
        pts_seconds: increasing: the time of each frame.
        crf: quality.
        keyframe_interval: frames from one key frame to the next, at most.

    Raises:
        VideoError: the folder cannot be written, or a frame cannot be read.
    """
    options = _encoder_options("libx264", crf, None)
    with atomic_write(path, error=lambda problem: VideoError(path, f"cannot be written: {problem}.")) as aside:
        _encode(aside, frames, size, fps, "libx264", options, keyframe_interval, pts_seconds, 0)


def _check(pixels: torch.Tensor, fps: float, pts_seconds: torch.Tensor | None, rotation_degrees: int) -> None:
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.dtype != torch.uint8 or 0 in pixels.shape:
        raise ShapeError(f"pixels must be uint8 [T, 3, H, W] with T >= 1, got {pixels.dtype} {list(pixels.shape)}.")
    if not (math.isfinite(fps) and fps > 0):
        raise ConfigError(f"fps must be positive, got {fps}.")
    if rotation_degrees not in (0, 90, 180, 270):
        raise ConfigError(f"rotation_degrees must be 0, 90, 180 or 270, got {rotation_degrees}.")
    if pts_seconds is not None and (pts_seconds.shape != pixels.shape[:1] or bool((pts_seconds.diff() <= 0).any())):
        raise ShapeError(f"pts_seconds must be {pixels.shape[0]} increasing times, got {list(pts_seconds.shape)}.")


def _encode(
    path: Path,
    frames: Iterable[torch.Tensor],
    size: tuple[int, int],
    fps: float,
    codec: str,
    options: dict[str, str],
    keyframe_interval: int,
    pts_seconds: Sequence[float] | None,
    rotation_degrees: int,
) -> None:
    height, width = size
    rate = Fraction(fps).limit_denominator(1001)
    ticks = None if pts_seconds is None else [round(seconds * _TICKS_PER_SECOND) for seconds in pts_seconds]
    # a name with a colon is not a protocol
    with av.open(f"file:{os.path.abspath(path)}", "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = width, height
        stream.pix_fmt = _pixel_format(stream.codec, subsampled=width % 2 == 0 and height % 2 == 0)
        stream.codec_context.thread_count = 1
        stream.gop_size = keyframe_interval
        stream.options = options
        time_base = 1 / rate if ticks is None else Fraction(1, _TICKS_PER_SECOND)
        stream.codec_context.time_base = time_base
        if rotation_degrees:
            stream.set_display_rotation(rotation_degrees)
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), format="rgb24")
            frame.pts = index if ticks is None else ticks[index]
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _pixel_format(codec: av.Codec, *, subsampled: bool) -> str:
    offered = [fmt.name for fmt in codec.video_formats or ()]
    wanted = ["yuv420p", "yuv444p"] if subsampled else ["yuv444p", "yuv420p"]
    return next((name for name in wanted if name in offered), offered[0] if offered else "yuv420p")


def _encoder_options(codec: str, crf: int, quantizer: int | None) -> dict[str, str]:
    if quantizer is not None:
        if codec != "libx264" or not 0 <= quantizer <= 51:
            raise ConfigError(f"quantizer is for libx264 and lies in 0 to 51, got {quantizer} with codec {codec!r}.")
        return {"qp": str(quantizer), "preset": "ultrafast"}
    if codec == "libx264":
        return {"crf": str(crf), "preset": "veryfast"}
    if codec == "libx265":
        return {"crf": str(crf), "preset": "veryfast", "x265-params": "log-level=none:pools=1:frame-threads=1"}
    if codec.startswith("libvpx"):
        return {"crf": str(crf), "b": "0", "deadline": "realtime", "cpu-used": "5"}
    return {}
