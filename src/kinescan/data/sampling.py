"""Which frames of a video make a clip: pure arithmetic on frame numbers."""

import re
from dataclasses import dataclass
from typing import Literal, Self

import torch

from kinescan.data.resampling import longest_gap
from kinescan.errors import ConfigError
from kinescan.fields import check_most, check_types
from kinescan.shapes import FrameIndices

Sampling = Literal["segments", "dense", "windows", "rate"]
"""How the frames of a clip lie in the video (see `Preprocessing`)."""
_SLACK = 1e-6
"""Of the distance of two frames: times in ticks are rounded."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """How many views of a video are scored in test, written frames x clips x crops.

    Attributes:
        frames: frames in each view.
        clips: views at different times.
        crops: views of different parts of the picture, along its longer side.

    Example:
        >>> views = Views.parse("8x2x3")
        >>> views.clips, views.num_views, str(views)
        (2, 6, '8x2x3')
    """

    frames: int = 8
    clips: int = 1
    crops: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        check_most(self, frames=2**16, clips=2**12, crops=2**8)
        if min(self.frames, self.clips, self.crops) < 1:
            raise ConfigError(f"views must have at least 1 frame, 1 clip and 1 crop, got {self}.")

    def __str__(self) -> str:
        return f"{self.frames}x{self.clips}x{self.crops}"

    @property
    def num_views(self) -> int:
        """Views of each video."""
        return self.clips * self.crops

    @classmethod
    def parse(cls, text: str) -> Self:
        """The views that "8x2x3" names: 8 frames, 2 clips, 3 crops.

        Raises:
            ConfigError: the text is not of this form, or a number is 0.
        """
        match = re.fullmatch(r"\s*(\d{1,9})\s*x\s*(\d{1,9})\s*x\s*(\d{1,9})\s*", text)
        if match is None:
            raise ConfigError(f'views are written frames x clips x crops, as in "8x2x3", got {text!r}.')
        frames, clips, crops = (int(number) for number in match.groups())
        return cls(frames=frames, clips=clips, crops=crops)


def segment_indices(
    num_frames_in_video: int,
    num_segments: int,
    *,
    position: Literal["random", "middle"],
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """One frame from each of equal parts of a video.

    Args:
        num_frames_in_video: N.
        num_segments: T. Where T > N, frames repeat, in order; in the middle position none is left out.
        position: a random position inside each part (training), or its middle (test).
        generator: of the random positions.

    Returns:
        [T] int64, not decreasing.

    Raises:
        ConfigError: a count is below 1.

    Source: TSN (arXiv 1608.00859), sect. 3.1.

    Example:
        >>> segment_indices(32, 4, position="middle").tolist()
        [4, 12, 20, 28]
        >>> segment_indices(3, 6, position="middle").tolist()
        [0, 0, 1, 1, 2, 2]
    """
    _check_counts(num_frames_in_video=num_frames_in_video, num_segments=num_segments)
    if position == "random":
        within = torch.rand(num_segments, generator=generator, dtype=torch.float64)
    else:
        within = torch.full((num_segments,), 0.5, dtype=torch.float64)
    return _indices_in_parts(num_frames_in_video, within)


def dense_indices(
    num_frames_in_video: int,
    num_frames: int,
    *,
    frame_stride: int,
    position: Literal["random", "middle"],
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Frames at a fixed distance, from a random or the middle stretch of a video.

    Args:
        num_frames_in_video: N.
        num_frames: T. Where the video is shorter than the stretch, its last frame repeats.
        frame_stride: distance of two frames, in frames.
        position: where the stretch lies.
        generator: of the random position.

    Returns:
        [T] int64, not decreasing.

    Raises:
        ConfigError: a count is below 1.

    Example:
        >>> dense_indices(32, 4, frame_stride=4, position="middle").tolist()
        [9, 13, 17, 21]
    """
    _check_counts(num_frames_in_video=num_frames_in_video, num_frames=num_frames, frame_stride=frame_stride)
    room = max(0, num_frames_in_video - _span(num_frames, frame_stride))
    start = int(torch.randint(room + 1, (), generator=generator)) if position == "random" else room // 2
    return _stretch(num_frames_in_video, start, num_frames, frame_stride)


def window_indices(
    num_frames_in_video: int,
    num_frames: int,
    *,
    num_windows: int,
    position: Literal["random", "middle"],
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """One frame from each of equal parts of a window of the video, for long files.

    Args:
        num_frames_in_video: N.
        num_frames: T.
        num_windows: the window is as long as the video over this number.
        position: a random window and random positions in its parts, or the middle of each.
        generator: of the random positions.

    Returns:
        [T] int64, not decreasing.

    Raises:
        ConfigError: a count is below 1.

    Example:
        >>> window_indices(96, 4, num_windows=3, position="middle").tolist()
        [36, 44, 52, 60]
    """
    _check_counts(num_frames_in_video=num_frames_in_video, num_frames=num_frames, num_windows=num_windows)
    room = num_frames_in_video * (1 - 1 / num_windows)
    if position == "middle":
        start, within = room / 2, torch.full((num_frames,), 0.5, dtype=torch.float64)
    else:
        start = room * float(torch.rand((), generator=generator, dtype=torch.float64))
        within = torch.rand(num_frames, generator=generator, dtype=torch.float64)
    return _indices_in_parts(num_frames_in_video, within, start=start, num_windows=num_windows)


def even_positions(pts_seconds: torch.Tensor, frame_seconds: float) -> torch.Tensor:
    """The frame that is nearest to each of evenly spaced times, from the first frame's to the last one's.

    No time falls into a pause of more than `longest_gap`: they begin anew behind it.

    Args:
        pts_seconds: [N] float64, increasing: when each frame is shown.
        frame_seconds: between two of the times.

    Returns:
        [n] int64, not decreasing; of two frames as near, the earlier one.

    Example:
        >>> even_positions(torch.tensor([0.0, 0.1, 0.2, 0.5, 0.6], dtype=torch.float64), 0.2).tolist()
        [0, 2, 3, 4]
    """
    pauses = torch.nonzero(pts_seconds.diff() > longest_gap(frame_seconds)).flatten() + 1
    starts = [0, *pauses.tolist()]
    stops = [*pauses.tolist(), len(pts_seconds)]
    parts = [
        start + _even_positions(pts_seconds[start:stop], frame_seconds)
        for start, stop in zip(starts, stops, strict=True)
    ]
    return torch.cat(parts)


def _even_positions(pts_seconds: torch.Tensor, frame_seconds: float) -> torch.Tensor:
    times = pts_seconds.double() - pts_seconds[0]
    count = int(float(times[-1]) / frame_seconds + _SLACK) + 1
    wanted = torch.arange(count, dtype=torch.float64) * frame_seconds
    middles = (times[1:] + times[:-1]) / 2 + _SLACK * frame_seconds
    return torch.searchsorted(middles, wanted)


def clip_indices(
    num_frames_in_video: int,
    num_frames: int,
    *,
    sampling: Sampling,
    frame_stride: int = 1,
    num_windows: int = 1,
    frame_rate: float = 0.0,
    pts_seconds: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """The frames of a training clip, sampled at random.

    Args:
        num_frames_in_video: N.
        num_frames: T.
        sampling: how (see `Preprocessing`).
        frame_stride: for "dense", in frames.
        num_windows: for "windows".
        frame_rate: for "rate", frames a second.
        pts_seconds: [N], for "rate": when each frame is shown.
        generator: of the random positions.

    Returns:
        [T] int64, not decreasing.

    Raises:
        ConfigError: a count is below 1, or "rate" lacks rate or times.

    Example:
        >>> clip_indices(4, 4, sampling="segments").tolist()
        [0, 1, 2, 3]
    """
    if sampling == "segments":
        return segment_indices(num_frames_in_video, num_frames, position="random", generator=generator)
    if sampling == "dense":
        return dense_indices(
            num_frames_in_video, num_frames, frame_stride=frame_stride, position="random", generator=generator
        )
    if sampling == "rate":
        indices = _timed_positions(frame_rate, pts_seconds)
        return indices[dense_indices(len(indices), num_frames, frame_stride=1, position="random", generator=generator)]
    return window_indices(
        num_frames_in_video, num_frames, num_windows=num_windows, position="random", generator=generator
    )


def view_indices(
    num_frames_in_video: int,
    *,
    num_frames: int,
    num_clips: int,
    sampling: Sampling,
    frame_stride: int = 1,
    num_windows: int = 1,
    frame_rate: float = 0.0,
    dense_rate: float = 0.0,
    pts_seconds: torch.Tensor | None = None,
) -> FrameIndices:
    """The frames of every clip that is scored in test.

    Args:
        num_frames_in_video: N; where it is less than a clip needs, frames repeat in order.
        num_frames: T, of each clip.
        num_clips: V.
        sampling: "segments": clip v takes the (v + 0.5) / V point of each of T equal parts; "dense": stretches of
            frames `frame_stride` apart, the first at the start of the video and the last at its end (one: the middle);
            "windows": the middle of each of T parts of V windows, the first at the start and the last at the end: with
            as many clips as windows, they cover the whole video, each moment once; "rate": as "dense", of the frames
            that are nearest to evenly spaced times.
        frame_stride: for "dense", in frames.
        num_windows: for "windows": each is as long as the video over this number.
        frame_rate: for "rate", frames a second.
        dense_rate: for "dense", frames a second of the videos that `frame_stride` was chosen for: it counts frames of
            that rate, taken by their times. 0 counts the video's own.
        pts_seconds: [N], for "rate" and with `dense_rate`: when each frame is shown.

    Returns:
        [V, T] int64, not decreasing along T.

    Raises:
        ConfigError: a count is below 1, or "rate" lacks rate or times.

    Example:
        >>> view_indices(32, num_frames=4, num_clips=2, sampling="segments").tolist()
        [[2, 10, 18, 26], [6, 14, 22, 30]]
        >>> view_indices(32, num_frames=4, num_clips=3, sampling="dense", frame_stride=4).tolist()
        [[0, 4, 8, 12], [9, 13, 17, 21], [19, 23, 27, 31]]
        >>> view_indices(32, num_frames=4, num_clips=2, sampling="windows", num_windows=2).tolist()
        [[2, 6, 10, 14], [18, 22, 26, 30]]
    """
    _check_counts(num_frames_in_video=num_frames_in_video, num_frames=num_frames)
    _check_counts(num_clips=num_clips, frame_stride=frame_stride, num_windows=num_windows)
    if sampling == "segments":
        points = (torch.arange(num_clips, dtype=torch.float64) + 0.5) / num_clips
        return torch.stack([_indices_in_parts(num_frames_in_video, point.expand(num_frames)) for point in points])
    if sampling == "windows":
        room = num_frames_in_video * (1 - 1 / num_windows)
        starts = [room / 2] if num_clips == 1 else [room * clip / (num_clips - 1) for clip in range(num_clips)]
        middle = torch.full((num_frames,), 0.5, dtype=torch.float64)
        return torch.stack(
            [_indices_in_parts(num_frames_in_video, middle, start=start, num_windows=num_windows) for start in starts]
        )
    if sampling == "rate" or dense_rate:
        stride = 1 if sampling == "rate" else frame_stride
        indices = _timed_positions(frame_rate if sampling == "rate" else dense_rate, pts_seconds)
        inner = view_indices(
            len(indices), num_frames=num_frames, num_clips=num_clips, sampling="dense", frame_stride=stride
        )
        return indices[inner]
    if num_clips == 1:
        one = dense_indices(num_frames_in_video, num_frames, frame_stride=frame_stride, position="middle")
        return one[None]
    room = max(0, num_frames_in_video - _span(num_frames, frame_stride))
    first_frames = [room * clip // (num_clips - 1) for clip in range(num_clips)]
    return torch.stack([_stretch(num_frames_in_video, first, num_frames, frame_stride) for first in first_frames])


def _timed_positions(frame_rate: float, pts_seconds: torch.Tensor | None) -> torch.Tensor:
    if not frame_rate > 0 or pts_seconds is None:
        raise ConfigError(
            f'sampling "rate" needs frame_rate and the times of the frames, got {frame_rate} and '
            f"{'no times' if pts_seconds is None else 'times'}."
        )
    return even_positions(pts_seconds, 1 / frame_rate)


def _indices_in_parts(
    num_frames_in_video: int, within: torch.Tensor, *, start: float = 0.0, num_windows: int = 1
) -> torch.Tensor:
    """Frames at the points `within` [0, 1) each of equal parts of a window that begins at `start`, in frames."""
    parts = torch.arange(len(within), dtype=torch.float64)
    indices = (start + (parts + within) * num_frames_in_video / len(within) / num_windows).long()
    return indices.clamp(max=num_frames_in_video - 1)


def _stretch(num_frames_in_video: int, start: int, num_frames: int, frame_stride: int) -> torch.Tensor:
    return (start + frame_stride * torch.arange(num_frames)).clamp(max=num_frames_in_video - 1)


def _span(num_frames: int, frame_stride: int) -> int:
    return (num_frames - 1) * frame_stride + 1


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{name} must be at least 1, got {count}.")
