"""Videos as a program has them: files, addresses, bytes, file objects, and frames that are decoded already."""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinescan.data.video.fetching import fetched, is_fetchable, spooled
from kinescan.data.video.limits import Limits
from kinescan.data.video.reader import Frames, VideoReader
from kinescan.errors import ConfigError, ShapeError, VideoError
from kinescan.runtime.addresses import as_path, is_remote, shown_path
from kinescan.runtime.urls import is_url, mask_url, refuse_url
from kinescan.shapes import Pixels

VideoInput = str | Path | bytes | BinaryIO | NDArray[np.uint8] | Tensor
"""A video: a file's path; an address (http, https); the bytes of a file, or a file object open for reading in binary
mode; or its frames, uint8, [T, 3, H, W] or [T, H, W, 3]."""


class OpenVideo(Protocol):
    """What clips are read from: a file's reader, or frames that are there already."""

    @property
    def num_frames(self) -> int:
        """How many frames there are."""

    @property
    def pts_seconds(self) -> Tensor:
        """[num_frames], float64, increasing: when each is shown."""

    def read(self, indices: Sequence[int] | Tensor) -> Frames:
        """The frames at these indices: pixels uint8 [n, 3, H, W], in their order."""

    def in_order(self, indices: Sequence[int]) -> Iterator[tuple[Pixels, float]]:
        """The frames at these indices, not decreasing, each with its time in seconds."""


class GivenFrames:
    """Frames in memory, read as `VideoReader` reads those of a file.

    Args:
        frames: uint8, [T, 3, H, W] or [T, H, W, 3]; where both could be, a tensor is taken as the first and an array as
            the second.
        fps: frames a second.

    Raises:
        ShapeError: the frames have another shape, dtype or range.

    Example:
        >>> given = GivenFrames(np.zeros((4, 24, 32, 3), dtype=np.uint8), fps=8)
        >>> given.num_frames, given.pts_seconds.tolist(), given.read([0, 2])
        (4, [0.0, 0.125, 0.25, 0.375], Frames(pixels=[2, 3, 24, 32], pts_seconds=[2]))
    """

    def __init__(self, frames: Tensor | NDArray[np.uint8], *, fps: float) -> None:
        self._pixels = to_frames(frames)
        self.pts_seconds = torch.arange(len(self._pixels), dtype=torch.float64) / fps

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    @property
    def num_frames(self) -> int:
        """How many there are."""
        return len(self._pixels)

    def read(self, indices: Sequence[int] | Tensor) -> Frames:
        """The frames at these indices, each in [0, num_frames), in any order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return Frames(self._pixels[chosen], self.pts_seconds[chosen])

    def in_order(self, indices: Sequence[int]) -> Iterator[tuple[Pixels, float]]:
        """The frames at these indices, each with its time in seconds."""
        for index in indices:
            yield self._pixels[index], float(self.pts_seconds[index])


def to_frames(frames: Tensor | NDArray[np.uint8], name: str = "frames") -> Pixels:
    """Frames as uint8 [T, 3, H, W] on the CPU, from either order of axes.

    Raises:
        ShapeError: they are not uint8, or neither [T, 3, H, W] nor [T, H, W, 3].
    """
    is_array = isinstance(frames, np.ndarray)
    given = torch.from_numpy(np.ascontiguousarray(frames)) if is_array and frames.dtype == np.uint8 else frames
    if not isinstance(given, Tensor) or given.dtype != torch.uint8 or given.ndim != 4 or not given.numel():
        kind = f"{str(frames.dtype).removeprefix('torch.')} {list(frames.shape)}"
        hint = " One frame alone is not enough: stack them, frames[None]." if frames.ndim == 3 else ""
        raise ShapeError(f"{name}: a video is uint8 [T, 3, H, W] or [T, H, W, 3], got {kind}.{hint}")
    first, last = given.shape[1] == 3, given.shape[3] == 3
    if not (first or last):
        raise ShapeError(f"{name}: a video is uint8 [T, 3, H, W] or [T, H, W, 3], got {list(given.shape)}.")
    is_last = last and (is_array or not first)
    return (given.permute(0, 3, 1, 2) if is_last else given).cpu()


def to_frame(frame: Any) -> Any:
    """One frame as [3, H, W] where it is an array or tensor [H, W, 3]; anything else as it is."""
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8:
        frame = torch.from_numpy(np.ascontiguousarray(frame))
    if isinstance(frame, Tensor) and frame.ndim == 3 and frame.shape[2] == 3 and frame.shape[0] != 3:
        return frame.permute(2, 0, 1)
    return frame


def is_file_object(source: Any) -> bool:
    """Whether something can be read from as an open file."""
    return callable(getattr(source, "read", None)) and not isinstance(source, str | Path | bytes | Tensor | np.ndarray)


def is_frames(source: Any) -> bool:
    """Whether it is a whole video's frames."""
    return isinstance(source, np.ndarray | Tensor)


def input_name(video: VideoInput, index: int = 0) -> str:
    """What a video is called in results and messages, without the secrets that an address may hold.

    Example:
        >>> input_name("a.mp4"), input_name(b"", 3), input_name("https://me:secret@example.org/a.mp4")
        ('a.mp4', 'bytes 3', 'https://***@example.org/a.mp4')
    """
    if isinstance(video, str | Path):
        return mask_url(video) if is_fetchable(str(video)) else shown_path(Path(video))
    if isinstance(video, bytes | bytearray | memoryview):
        return f"bytes {index}"
    if is_frames(video):
        return f"frames {index}"
    name = getattr(video, "name", None)
    return name if isinstance(name, str) and name else f"file object {index}"


def check_input(video: Any) -> VideoInput:
    """The video itself, bytes of any kind as bytes.

    Raises:
        ConfigError: it is something else, or a live source.
        ShapeError: it is an array of another shape.
    """
    if isinstance(video, bytearray | memoryview):
        return bytes(video)
    if isinstance(video, str) and is_url(video) and is_fetchable(video):
        return video
    if isinstance(video, str | Path) and is_remote(video):
        return as_path(video)
    if isinstance(video, str | Path):
        refuse_url(video, "Classify a live source with kinescan stream, or fetch the file first.")
        return video
    if is_frames(video):
        to_frames(video)
    elif not (isinstance(video, bytes) or is_file_object(video)):
        raise ConfigError(
            f"a video is a path, an address, bytes, a file object or an array of frames, got a {type(video).__name__}."
        )
    return cast(VideoInput, video)


@contextmanager
def open_video(
    video: VideoInput,
    *,
    name: str,
    fps: float = 25.0,
    limits: Limits | None = None,
    allow_short: bool = False,
    square_pixels: bool = False,
) -> Iterator[OpenVideo]:
    """A video open for reading, whatever it was given as; what had to be written for that is deleted at the end.

    Args:
        video: see `VideoInput`; a file object is read from where it stands to its end, and stays open.
        name: for messages.
        fps: of frames in memory.
        limits: what a file may take.
        allow_short: see `VideoReader`.
        square_pixels: see `VideoReader`.

    Raises:
        VideoError: it cannot be read or fetched.
        ShapeError: an array has another shape.
    """
    if isinstance(video, Tensor | np.ndarray):
        yield GivenFrames(to_frames(video, name), fps=fps)
        return
    seconds = (limits or Limits()).timeout_seconds
    if isinstance(video, str) and is_fetchable(video):
        with (
            fetched(video, timeout_seconds=seconds) as path,
            _reader(path, name, limits, allow_short, square_pixels) as r,
        ):
            yield r
    elif isinstance(video, str | Path):
        with VideoReader(video, limits=limits, allow_short=allow_short, square_pixels=square_pixels) as reader:
            yield reader
    else:
        with spooled(video) as (_, path), _reader(path, name, limits, allow_short, square_pixels) as reader:
            yield reader


def pipe_path(source: Any) -> str | None:
    """A path under which a pipe that is open as a file object can be read as it comes; None for everything else."""
    try:
        descriptor = source.fileno()
        is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except (AttributeError, OSError, ValueError):
        return None
    return f"/dev/fd/{descriptor}" if is_pipe else None


def as_inputs(videos: Any) -> list[Any]:
    """One video as a list of one, several as they are.

    Example:
        >>> as_inputs("a.mp4"), as_inputs(["a.mp4", b"..."])
        (['a.mp4'], ['a.mp4', b'...'])
    """
    single = isinstance(videos, str | Path | bytes | bytearray | memoryview) or is_frames(videos)
    return [videos] if single or is_file_object(videos) or not isinstance(videos, Iterable) else list(videos)


@contextmanager
def named(path: Path, name: str) -> Iterator[None]:
    """Errors of a file that is only there for a while are those of what it was made from."""
    try:
        yield
    except VideoError as error:
        if error.path != str(path):
            raise
        raise type(error)(name, error.reason) from None


@contextmanager
def _reader(
    path: Path, name: str, limits: Limits | None, allow_short: bool, square_pixels: bool
) -> Iterator[VideoReader]:
    """A video reader of a file whose own name means nothing to the caller."""
    with (
        named(path, name),
        VideoReader(path, limits=limits, allow_short=allow_short, square_pixels=square_pixels) as reader,
    ):
        yield reader
