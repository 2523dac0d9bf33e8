"""Frames on their way into a stream: checked, timed, grouped into temporal patches and steps."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from kinescan.errors import ConfigError, NonFiniteError, ShapeError
from kinescan.fields import fits
from kinescan.vlm.config import StreamConfig
from kinescan.vlm.families import Family, Features

LATEST_SECONDS = 1e10
"""Seconds since 1970 fit; milliseconds do not."""


@dataclass(frozen=True, kw_only=True)
class PendingPatch:
    """A temporal patch that waits for its step.

    Attributes:
        features: what the encoder made of it.
        number: of its first frame, counted from 1.
        seconds: times of its first and last frame.
    """

    features: Features
    number: int
    seconds: tuple[float, float]


class Intake:
    """The frames of one stream that fill no step yet.

    A frame is taken once its step, where it fills one, has gone through: what fails leaves the intake as it was.

    Args:
        family: merges frames into temporal patches and runs the vision encoder.
        config: of the stream.

    Attributes:
        num_frames: frames taken, those that wait included.
        last_seconds: time of the newest, of the first frame of a patch that was taken as features; None before the
            first.
        newest_seconds: time of the newest frame; of features, the last frame of their patch as `fps` says.
        base_seconds: frames without a time follow one another at `fps` from here on.
        frame_size: height and width of all frames, in pixels; None before the first.
        grid: rows and columns of a frame's tokens; None before the first.
        frames: that wait for a temporal patch to be whole, uint8 [3, H, W] with their times in seconds.
        patches: that wait for a step to be whole.
    """

    def __init__(self, family: Family, config: StreamConfig) -> None:
        self.family = family
        self.config = config
        self.num_frames = 0
        self.last_seconds: float | None = None
        self.newest_seconds = 0.0
        self.base_seconds = 0.0
        self.frame_size: tuple[int, int] | None = None
        self.grid: tuple[int, int] | None = None
        self.frames: list[tuple[Tensor, float]] = []
        self.patches: list[PendingPatch] = []

    def clear(self) -> None:
        """Forgets what waits."""
        self.frames.clear()
        self.patches.clear()

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Where the block fails, nothing was taken in it."""
        names = ("num_frames", "last_seconds", "newest_seconds", "base_seconds", "frame_size", "grid")
        before = {name: getattr(self, name) for name in names}
        frames, patches = [*self.frames], [*self.patches]
        try:
            yield
        except BaseException:
            for name, value in before.items():
                setattr(self, name, value)
            self.frames, self.patches = frames, patches
            raise

    def take_frame(self, frame: UInt8[Tensor, "3 H W"], seconds: float) -> list[PendingPatch] | None:
        """One frame; gives the step that it fills."""
        self._count(1, seconds, seconds)
        self.frame_size = (frame.shape[1], frame.shape[2])
        self.frames.append((frame, seconds))
        if len(self.frames) < self.family.temporal_patch:
            return None
        patch = self._encode_waiting()
        self.frames.clear()
        return self._take_patch(patch)

    def take_patch(self, features: Features, seconds: float) -> list[PendingPatch] | None:
        """Takes a temporal patch that the encoder has seen already; gives the step that it fills, else None.

        Raises:
            ConfigError: a frame still waits for its patch.
            ShapeError: the features are not those of this family.
        """
        merged = self.family.temporal_patch
        if self.frames:
            raise ConfigError(f"a frame still waits for another {merged - len(self.frames)}; push that first.")
        check_features(features, self.family)
        last = seconds + (merged - 1) / self.config.fps
        patch = PendingPatch(features=features, number=self.num_frames + 1, seconds=(seconds, last))
        self._count(merged, seconds, last)
        return self._take_patch(patch)

    def waiting(self) -> list[PendingPatch]:
        """All that waits, a lone frame repeated as the processors do; it continues waiting."""
        return [*self.patches, self._encode_waiting()] if self.frames else list(self.patches)

    def check_size(self, frames: UInt8[Tensor, "T 3 H W"]) -> None:
        """Raises ShapeError where frames are of another size than those before."""
        size = (frames.shape[2], frames.shape[3])
        if self.frame_size is not None and size != self.frame_size:
            raise ShapeError(
                f"frames changed from {self.frame_size} to {size} (height, width) within the stream. "
                "Resize them to one size, or open another stream."
            )

    def times(self, count: int, seconds: Any, *, spacing: int) -> list[float]:
        """A time for each of `count` frames or patches, `spacing` frames apart where none are given.

        Raises:
            ConfigError: times are not numbers, not as many, or run backwards.
        """
        if seconds is None:
            return [self.base_seconds + self._default_seconds(spacing * index) for index in range(count)]
        if isinstance(seconds, str | bytes):
            raise ConfigError(f"seconds must hold {count} ascending times, one for each, got text ({seconds!r}).")
        try:
            given = [*seconds] if isinstance(seconds, Iterable) else [seconds]
            if any(isinstance(time, str | bytes | bool) for time in given):
                raise TypeError("a time is a number")
            times = [float(time) for time in given]
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"seconds must hold {count} ascending times, got {seconds!r:.200}.") from None
        if len(times) != count or not all(abs(time) <= LATEST_SECONDS for time in times) or sorted(times) != times:
            raise ConfigError(
                f"seconds must hold {count} ascending times, one for each, finite and at most {LATEST_SECONDS:g}, "
                f"got {times}."
            )
        if self.last_seconds is not None and times[0] < self.last_seconds:
            raise ConfigError(
                f"seconds must ascend over all pushes: the frames before end at {self.last_seconds:g} s, and these "
                f"begin at {times[0]:g} s. Push frames in their order, or open another stream."
            )
        return times

    def check_horizon(self, count: int) -> None:
        """Raises ConfigError where so many frames more are too many."""
        horizon = self.config.horizon_frames if self.config.horizon_is_limit else None
        if horizon is not None and self.num_frames + count > horizon:
            raise ConfigError(
                f"the declared horizon of {horizon} frames is exceeded: {self.num_frames} are in the stream, {count} "
                "were pushed. Open the stream with a larger horizon_frames."
            )

    def _count(self, num_frames: int, seconds: float, last: float) -> None:
        """Frames of which the first and the last are shown at these times."""
        if seconds != self.base_seconds + self._default_seconds(0):
            self.base_seconds = seconds - self._default_seconds(0)
        self.last_seconds, self.newest_seconds = seconds, last
        self.num_frames += num_frames

    def _default_seconds(self, ahead: int) -> float:
        return (self.num_frames + ahead) / self.config.fps

    def _encode_waiting(self) -> PendingPatch:
        frames = torch.stack([frame for frame, _ in self.frames])
        return PendingPatch(
            features=encoded(self.family, frames),
            number=self.num_frames - len(self.frames) + 1,
            seconds=(self.frames[0][1], self.frames[-1][1]),
        )

    def _take_patch(self, patch: PendingPatch) -> list[PendingPatch] | None:
        grid = patch.features.grid
        if self.grid is None:
            self.grid = grid
        if grid != self.grid:
            raise ShapeError(
                f"tokens of a frame changed from {self.grid} to {grid} (rows, columns) within the stream. "
                "Resize frames to one size, or open another stream."
            )
        self.patches.append(patch)
        if len(self.patches) < self.config.patches_per_step:
            return None
        step = list(self.patches)
        self.patches.clear()
        return step


def encoded(family: Family, frames: UInt8[Tensor, "T 3 H W"]) -> Features:
    """One temporal patch through the vision encoder, checked.

    Raises:
        NonFiniteError: the encoder gives NaN or infinity.
    """
    features = family.encode(frames)
    check_features(features, family)
    return features


def check_features(features: Features, family: Family) -> None:
    """Raises where features are not those of a temporal patch of this family.

    Raises:
        ShapeError: they are of another shape.
        NonFiniteError: they hold NaN or infinity, which would stay in everything that sees them.
    """
    if not isinstance(features, Features):
        raise ShapeError(f"a list of features must hold Features alone, got {type(features).__name__}. See encode.")
    if not fits(features.grid, tuple[int, int]) or min(features.grid) < 1:
        raise ShapeError(f"the grid of features must be (rows, columns), got {features.grid!r:.60}. See encode.")
    rows, columns = features.grid
    width = family.embedding.shape[1]
    if len(features.deepstack) != family.num_levels:
        raise ShapeError(
            f"features for this model have {family.num_levels} further levels (deepstack), got "
            f"{len(features.deepstack)}. Push what encode of a stream of the same model gave."
        )
    for level in (features.tokens, *features.deepstack):
        if not isinstance(level, Tensor):
            raise ShapeError(f"features must be tensors, got a {type(level).__name__}. See encode.")
        if level.ndim != 2 or tuple(level.shape) != (rows * columns, width) or not level.is_floating_point():
            raise ShapeError(
                f"features of {rows} x {columns} tokens must be [{rows * columns}, {width}] for this model, got "
                f"{list(level.shape)}. Push what encode of a stream of the same model gave."
            )
        if not bool(torch.isfinite(level).all()):
            raise NonFiniteError(
                "the features of a frame hold NaN or infinity, and were not taken. Use weights that are sound, or "
                "bfloat16 or float32 where float16 overflows."
            )
