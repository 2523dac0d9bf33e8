"""Frames on their way into a stream: checked, timed, grouped into temporal patches and steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from kinescan.errors import ConfigError, ShapeError
from kinescan.vlm.config import StreamConfig
from kinescan.vlm.families import Family, Features


@dataclass(frozen=True, kw_only=True)
class PendingPatch:
    """A temporal patch that waits for its step.

    Attributes:
        features: what the tower made of it.
        number: of its first frame, counted from 1.
        seconds: times of its first and last frame.
    """

    features: Features
    number: int
    seconds: tuple[float, float]


class Intake:
    """The frames of one stream that fill no step yet.

    Args:
        family: merges frames into temporal patches and runs the vision tower.
        config: of the stream.
    """

    def __init__(self, family: Family, config: StreamConfig) -> None:
        self.family = family
        self.config = config
        self.num_frames = 0
        self.frame_size: tuple[int, int] | None = None
        self.grid: tuple[int, int] | None = None
        self.frames: list[tuple[Tensor, float]] = []
        self.patches: list[PendingPatch] = []

    def clear(self) -> None:
        """Forgets what waits."""
        self.frames.clear()
        self.patches.clear()

    def take_frames(
        self, frames: UInt8[Tensor, "T 3 H W"], seconds: Sequence[float] | None
    ) -> Iterator[list[PendingPatch]]:
        """Frames, one after the other; gives each step as it fills."""
        times = self._times(len(frames), seconds, spacing=1)
        self._check_horizon(len(frames))
        for frame, time in zip(frames, times, strict=True):
            self.num_frames += 1
            self.frames.append((frame, time))
            if len(self.frames) == self.family.temporal_patch:
                patch = self._encode_waiting()
                self.frames.clear()
                yield from self._take_patch(patch)

    def take_features(
        self, patches: Sequence[Features], seconds: Sequence[float] | None
    ) -> Iterator[list[PendingPatch]]:
        """Temporal patches that the tower has seen already; gives each step as it fills."""
        merged = self.family.temporal_patch
        if self.frames:
            raise ConfigError(f"a frame still waits for another {merged - len(self.frames)}; push that first.")
        times = self._times(len(patches), seconds, spacing=merged)
        self._check_horizon(len(patches) * merged)
        for features, time in zip(patches, times, strict=True):
            last = time + (merged - 1) / self.config.fps
            patch = PendingPatch(features=features, number=self.num_frames + 1, seconds=(time, last))
            self.num_frames += merged
            yield from self._take_patch(patch)

    def waiting(self) -> list[PendingPatch]:
        """All that waits, a lone frame repeated as the processors do; it goes on waiting."""
        return [*self.patches, self._encode_waiting()] if self.frames else list(self.patches)

    def check_frames(self, frames: Tensor) -> None:
        """Raises ShapeError where frames are no uint8 video, or of another size than those before."""
        if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8 or not len(frames):
            hint = " One stream holds one video: open a stream for each." if frames.ndim == 5 else ""
            given = f"{str(frames.dtype).removeprefix('torch.')} {tuple(frames.shape)}"
            raise ShapeError(f"frames must be uint8 [T, 3, H, W] in RGB, got {given}.{hint}")
        size = (frames.shape[2], frames.shape[3])
        if self.frame_size is None:
            self.frame_size = size
        if size != self.frame_size:
            raise ShapeError(
                f"frames changed from {self.frame_size} to {size} (height, width) within the stream. "
                "Resize them to one size, or open another stream."
            )

    def _encode_waiting(self) -> PendingPatch:
        frames = torch.stack([frame for frame, _ in self.frames])
        return PendingPatch(
            features=self.family.encode(frames),
            number=self.num_frames - len(self.frames) + 1,
            seconds=(self.frames[0][1], self.frames[-1][1]),
        )

    def _take_patch(self, patch: PendingPatch) -> Iterator[list[PendingPatch]]:
        grid = patch.features.grid
        if self.grid is None:
            self.grid = grid
        if grid != self.grid:
            raise ShapeError(
                f"tokens of a frame changed from {self.grid} to {grid} (rows, columns) within the stream. "
                "Resize frames to one size, or open another stream."
            )
        self.patches.append(patch)
        if len(self.patches) == self.config.patches_per_step:
            step = list(self.patches)
            self.patches.clear()
            yield step

    def _times(self, count: int, seconds: Sequence[float] | None, *, spacing: int) -> list[float]:
        if seconds is None:
            return [(self.num_frames + spacing * index) / self.config.fps for index in range(count)]
        times = [float(time) for time in seconds]
        if len(times) != count or sorted(times) != times:
            raise ConfigError(f"seconds must hold {count} ascending times, one for each, got {times}.")
        return times

    def _check_horizon(self, count: int) -> None:
        horizon = self.config.horizon_frames
        if horizon is not None and self.num_frames + count > horizon:
            raise ConfigError(
                f"the declared horizon of {horizon} frames is exceeded: {self.num_frames} are in the stream, {count} "
                "were pushed. Open the stream with a larger horizon_frames."
            )
