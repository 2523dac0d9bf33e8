"""Which frames of a file are taken at a rate, and the time of each."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kinescan.data.resampling import resample
from kinescan.data.video import VideoReader


@dataclass(frozen=True, eq=False)
class TimedFrames:
    """Frames of one video in the order of time.

    Attributes:
        positions: [n] int64, not decreasing: the frames' positions in the file.
        seconds: [n] float64, not decreasing: the time of each, counted from the file's first frame, as players and
            annotation tools count, wherever its own clock starts. Of a frame that is repeated, since the file has
            fewer a second, the time at which it is shown again.
        end_seconds: when the last frame of the file ends, counted so, too.
        starts: indices in `positions` at which frames follow on each other: 0, and those behind a pause or a jump of
            the clock that is too long to be filled (see `kinescan.data.resampling.longest_gap`).
    """

    positions: torch.Tensor
    seconds: NDArray[np.float64]
    end_seconds: float
    starts: tuple[int, ...] = (0,)

    @property
    def lengths(self) -> list[int]:
        """How many frames follow on each other from each of `starts` on."""
        stops = (*self.starts[1:], len(self))
        return [stop - start for start, stop in zip(self.starts, stops, strict=True)]

    def __len__(self) -> int:
        return len(self.positions)


def timed_frames(video: VideoReader, frame_rate: float) -> TimedFrames:
    """The frames of a file at a rate: those that a stream of it is fed (see `kinescan.data.resampling.resample`).

    Args:
        video: the open file.
        frame_rate: frames a second; 0: all frames, as they are.

    Example:
        >>> import tempfile
        >>> from kinescan.data.video import write_video
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/a.mp4", torch.zeros(20, 3, 24, 32, dtype=torch.uint8), fps=10)
        ...     with VideoReader(f"{folder}/a.mp4") as video:
        ...         timed_frames(video, 2).positions.tolist(), timed_frames(video, 20).positions[:5].tolist()
        ([0, 5, 10, 15], [0, 0, 1, 1, 2])
    """
    own = video.pts_seconds.double()
    own = own - own[0]
    end = video.duration_seconds
    if not frame_rate:
        return TimedFrames(torch.arange(len(own)), own.numpy().copy(), end)
    frames = list(resample(((None, seconds) for seconds in own.tolist()), 1 / frame_rate, name=str(video.path)))
    positions = torch.tensor([frame.frame_index for frame in frames])
    starts = tuple(index for index, frame in enumerate(frames) if not index or frame.gap_seconds)
    return TimedFrames(positions, np.array([frame.seconds for frame in frames]), end, starts)
