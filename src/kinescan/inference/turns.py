"""The frames of a video source that a stream feeds to its model, each in its turn."""

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, uint8

from kinescan.data.resampling import longest_gap, resample
from kinescan.data.video import LiveVideo, Reconnect, ReconnectingVideo, VideoReader, is_live
from kinescan.data.video.given import (
    check_input,
    input_name,
    is_file_object,
    is_frames,
    open_video,
    pipe_path,
    to_frame,
    to_frames,
)
from kinescan.errors import ShapeError
from kinescan.inference.exported import CausalModel

logger = logging.getLogger(__name__)

Frame = Tensor | NDArray[np.uint8]
FrameSource = str | Path | bytes | BinaryIO | Frame | Iterable[Frame | tuple[Frame, float]]
"""A video file; "-" (standard input), a URL or a named pipe; a file's bytes, or a file object (a pipe is read as it
comes); or frames uint8, [3, H, W] or [H, W, 3], as they come, each alone or with its time in seconds, or all of them
together, [T, 3, H, W] or [T, H, W, 3]."""


class Turn(NamedTuple):
    """A frame that is to be fed.

    Attributes:
        frame_index: its index in the video source.
        pixels: uint8 [3, H, W].
        seconds: when, counted from the video source's first frame; None where it came without a time.
        is_cut: the stream begins anew with it.
    """

    frame_index: int
    pixels: Tensor
    seconds: float | None
    is_cut: bool


def frames_of(
    source: FrameSource,
    model: CausalModel,
    allow_short: bool,
    reconnect: Reconnect | None = None,
    on_outage: Callable[[bool], None] | None = None,
) -> Iterable[Tensor | tuple[Tensor, float]]:
    """The frames of a video source, each alone or with its time in seconds; nothing is opened before the first.

    Times of frames that are decoded here are counted from the first one; those of an iterable stay as they are. For
    `on_outage` see `ReconnectingVideo`.
    """
    given: Any = as_path(source)
    if is_frames(given):
        return to_frames(given)
    if isinstance(given, bytes) or is_file_object(given):
        return from_first(_spooled(given, allow_short, model.preprocessing.square_pixels))
    if not isinstance(given, str | Path):
        return map(_entry, given)
    square_pixels = model.preprocessing.square_pixels
    if reconnect is not None and is_live(given):
        video = ReconnectingVideo(given, reconnect=reconnect, square_pixels=square_pixels, on_outage=on_outage)
        return from_first(video)
    return from_first(_decoded(given, allow_short=allow_short, square_pixels=square_pixels))


def as_path(source: Any) -> Any:
    """A pipe that is open as a file object by its path, which is read as it comes; bytes of any kind as bytes."""
    if isinstance(source, bytearray | memoryview):
        return bytes(source)
    return pipe_path(source) or source if is_file_object(source) else source


def _entry(entry: Any) -> Any:
    if isinstance(entry, tuple) and len(entry) == 2:
        return to_frame(entry[0]), entry[1]
    return to_frame(entry)


def _spooled(source: Any, allow_short: bool, square_pixels: bool) -> Iterator[tuple[Tensor, float]]:
    """The frames of a file that was given by its bytes, or as a file object with an end."""
    with open_video(
        check_input(source), name=input_name(source), allow_short=allow_short, square_pixels=square_pixels
    ) as video:
        yield from video.in_order(range(video.num_frames))


def from_first(frames: Iterable[tuple[Tensor, float]]) -> Generator[tuple[Tensor, float], None, None]:
    """The frames with their times counted from the first one, wherever the clock of the video source starts.

    Example:
        >>> [seconds for _, seconds in from_first([(torch.zeros(3, 2, 2), 1.5), (torch.zeros(3, 2, 2), 1.75)])]
        [0.0, 0.25]
    """
    iterator = iter(frames)
    try:
        first: float | None = None
        for pixels, seconds in iterator:
            first = seconds if first is None else first
            yield pixels, seconds - first
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def _decoded(source: str | Path, *, allow_short: bool, square_pixels: bool) -> Iterator[tuple[Tensor, float]]:
    if is_live(source):
        opened: LiveVideo | VideoReader = LiveVideo(source, square_pixels=square_pixels)
    else:
        opened = VideoReader(source, allow_short=allow_short, square_pixels=square_pixels)
    with opened as video:
        yield from video


def turns_of(
    model: CausalModel,
    frames: Iterable[Tensor | tuple[Tensor, float]],
    every: int | None,
    name: str,
    *,
    after_seconds: float | None = None,
    left_time: float | None = None,
) -> Iterator[Turn]:
    """The frames to feed, each in its turn.

    Args:
        model: that is fed.
        frames: each alone or with its time.
        every: as for `stream`.
        name: of the video source, for the log.
        after_seconds: frames up to there were fed before, and are left out.
        left_time: when an earlier program took the last frame of this live source, by `time.time()`. After a longer
            pause than `kinescan.data.resampling.longest_gap` the model begins anew, as it does within a stream.
    """
    for turn in _in_turn(model, frames, every, name):
        if after_seconds is not None and turn.seconds is not None and turn.seconds <= after_seconds:
            continue
        if left_time is not None and every is None and model.frame_seconds is not None:
            turn = _behind_pause(turn, time.time() - left_time, model, name)
        left_time = None
        yield turn


def _behind_pause(turn: Turn, seconds: float, model: CausalModel, name: str) -> Turn:
    """The first turn after a restart, which is a cut where the video source was left for too long."""
    assert model.frame_seconds is not None, "the caller has looked"
    if seconds <= longest_gap(model.frame_seconds):
        return turn
    logger.warning("%s: was left %.1f s ago; %s begins anew", name, seconds, model.name)
    return turn._replace(is_cut=True)


def _in_turn(
    model: CausalModel, frames: Iterable[Tensor | tuple[Tensor, float]], every: int | None, name: str
) -> Iterator[Turn]:
    entries: Iterator[tuple[Tensor, float | None]]
    entries = iter(entry if isinstance(entry, tuple) else (entry, None) for entry in frames)
    if every is None:
        first = next(entries, None)
        entries = chain([] if first is None else [first], entries)
        distance = model.frame_seconds
        if distance is not None and first is not None and first[1] is not None:
            yield from _by_time(model, entries, distance, name)
            return
        if first is not None:
            _tell_of_count(model, name, has_times=first[1] is not None)
    for index, (pixels, seconds) in enumerate(entries):
        if index % (every or 1) == 0:
            yield Turn(index, pixels, seconds, False)


def _by_time(
    model: CausalModel, entries: Iterable[tuple[Tensor, float | None]], distance: float, name: str
) -> Iterator[Turn]:
    for frame in resample(entries, distance, name=name):
        if frame.gap_seconds:
            logger.warning(
                "%s: no frame lies in %.1f s before %.2f s; %s begins anew there",
                *(name, frame.gap_seconds, frame.seconds, model.name),
            )
        yield Turn(frame.frame_index, frame.pixels, frame.seconds, frame.gap_seconds > 0)


def _tell_of_count(model: CausalModel, name: str, *, has_times: bool) -> None:
    """Says what is assumed where frames cannot be taken by their times."""
    if model.frame_seconds is None:
        logger.warning(
            "%s: %s does not know how far apart in time the frames of its training clips were. Every frame is fed; "
            "where they lie closer than in training, choose every (--every).",
            *(name, model.name),
        )
    elif not has_times:
        logger.warning(
            "%s: its frames come without times. Each is taken to be %.3g s after the one before, as in training; give "
            "them as pairs with their seconds if they are not.",
            *(name, model.frame_seconds),
        )


def check_frame(frame: Tensor, frame_index: int) -> None:
    """Passes what a stream can be fed with.

    Raises:
        ShapeError: it is not uint8 [3, H, W].
    """
    if (
        not isinstance(frame, Tensor)
        or frame.dtype != uint8
        or frame.ndim != 3
        or frame.shape[0] != 3
        or not frame.numel()
    ):
        given = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, Tensor) else type(frame).__name__
        raise ShapeError(
            f"frame {frame_index} must be a uint8 tensor [3, H, W], got {given.removeprefix('torch.')}. "
            "For an array [H, W, 3] use torch.from_numpy(array).permute(2, 0, 1)."
        )
