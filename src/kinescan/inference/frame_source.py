"""How `ask` takes frames from a file, or from a live source."""

import logging
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from kinescan.data.video import Reconnect, ReconnectingVideo, VideoReader, is_live, shown_every
from kinescan.errors import KinescanError, VideoError
from kinescan.runtime.signals import Interruption
from kinescan.runtime.urls import mask_url, mask_urls
from kinescan.vlm import Features, VideoStream

logger = logging.getLogger(__name__)

FRAMES_AT_ONCE = 8
_LOOK_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Group:
    """What is pushed at once: features of whole temporal patches, or a lone frame as it is; and when they are shown."""

    frames: Tensor | list[Features]
    seconds: list[float]

    def singly(self) -> "list[Group]":
        """The same, each patch or frame by itself."""
        return [Group(frames=self.frames[at : at + 1], seconds=[time]) for at, time in enumerate(self.seconds)]


class Recorded:
    """A file, a few frames at a time.

    Attributes:
        name: for the report.
        num_frames: how many will be pushed.
    """

    def __init__(self, reader: VideoReader, fps: float) -> None:
        self._reader = reader
        self.name = str(reader.path)
        self._times = sample_times(reader, fps)
        self.num_frames: int | None = len(self._times)

    def groups(self, stream: VideoStream) -> Iterator[Group]:
        """Frames that went through the vision encoder of the stream's model."""
        merged = stream.family.temporal_patch
        step = max(merged, FRAMES_AT_ONCE - FRAMES_AT_ONCE % merged)
        first = float(self._reader.pts_seconds[0])
        for start in range(0, len(self._times), step):
            part = self._times[start : start + step]
            yield from _groups_of(self._reader.read_at(part).pixels, [time - first for time in part], stream)


class Live:
    """A video source that cannot be gone back in, as it comes; ends with it, with its error, or with Ctrl-C or SIGTERM.

    Attributes:
        name: for the report.
        num_frames: None, as it is unknown.
    """

    num_frames: int | None = None

    def __init__(self, source: str | Path, fps: float, reconnect: Reconnect | None = None) -> None:
        self._stop = _Stop()
        self._video = ReconnectingVideo(source, reconnect=reconnect, stop=self._stop)
        self._came = False
        self.name = mask_url(source)
        self._seconds = 1 / fps

    def groups(self, stream: VideoStream) -> Iterator[Group]:
        """Frames that went through the vision encoder of the stream's model, as soon as they fill a temporal patch."""
        merged = stream.family.temporal_patch
        fitted = FitToFirst(self.name)
        frames: list[Tensor] = []
        seconds: list[float] = []
        for pixels, shown_at in shown_every(self._frames(), self._seconds):
            frames.append(fitted(pixels))
            seconds.append(shown_at)
            if len(frames) == merged:
                yield from _groups_of(torch.stack(frames), seconds, stream)
                frames, seconds = [], []
        if frames:
            yield from _groups_of(torch.stack(frames), seconds, stream)

    def ended_by(self, error: Exception) -> None:
        """Says that the questions are about what was watched until an error."""
        logger.warning("%s: %s The questions are about what came until then.", self.name, _sentence(error))

    def _frames(self) -> Iterator[tuple[Tensor, float]]:
        """Ends without an error, once there are frames."""
        with Interruption() as stop:
            self._stop.interruption = stop
            try:
                for frame in self._video:
                    self._came = True
                    yield frame
            # What a video source sends may break a decoder in any way; hours of watching are not lost for it.
            except Exception as error:
                if not self._came:
                    raise
                self.ended_by(error)
            if stop.requested is not None:
                logger.warning("%s: watched until %s", self.name, stop.requested)


class _Stop(threading.Event):
    """Ends a wait for a video source that is away once Ctrl-C or SIGTERM comes."""

    interruption: Interruption | None = None

    def is_set(self) -> bool:
        """Whether one came."""
        return super().is_set() or (self.interruption is not None and self.interruption.requested is not None)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until one comes, or for so long."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not self.is_set() and (left := end - time.monotonic()) > 0:
            super().wait(min(left, _LOOK_SECONDS))
        return self.is_set()


class FitToFirst:
    """Brings every frame to the size of the first: the whole picture, black beside it where its shape differs.

    Args:
        name: of the video source, for the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._size: tuple[int, int] | None = None
        self._told = False

    def __call__(self, pixels: Tensor) -> Tensor:
        """A frame, uint8 [3, H, W], in the size of the first one; a change of size is logged once."""
        size = (pixels.shape[1], pixels.shape[2])
        if self._size is None:
            self._size = size
        if size == self._size:
            return pixels
        if not self._told:
            self._told = True
            logger.warning(
                "%s: frames change from %d x %d to %d x %d (width x height); they are brought to the first size",
                *(self._name, *self._size[::-1], *size[::-1]),
            )
        return fit(pixels, self._size)


def fit(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """A frame [3, H, W] as uint8 [3, *size], whole and undistorted, in the middle of black.

    Example:
        >>> fit(torch.full((3, 10, 20), 9, dtype=torch.uint8), (20, 20))[0, :, 0].tolist()
        [0, 0, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 0, 0, 0, 0, 0]
    """
    scale = min(side / given for side, given in zip(size, pixels.shape[1:], strict=True))
    height, width = (max(1, round(scale * given)) for given in pixels.shape[1:])
    resized = functional.interpolate(
        pixels[None].float(), size=(height, width), mode="bilinear", antialias=True, align_corners=False
    )
    fitted = pixels.new_zeros(3, *size)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    fitted[:, top : top + height, left : left + width] = resized[0].round().clamp(0, 255).to(torch.uint8)
    return fitted


def _sentence(error: Exception) -> str:
    """What happened, ended by a full stop; the video source's name before it is left out."""
    reason = error.reason if isinstance(error, VideoError) else str(error)
    kind = "" if isinstance(error, KinescanError) else f"{type(error).__name__}: "
    text = mask_urls(kind + (reason.strip() or "it ended"))
    return text if text.endswith(".") else f"{text}."


@contextmanager
def open_watched(
    video: str | Path, fps: float, *, allow_short: bool, reconnect: Reconnect | None = None
) -> Iterator[Recorded | Live]:
    """A file, closed at the end, or a live source, opened when its first frame is asked for.

    Raises:
        VideoError: it cannot be read.
    """
    if is_live(video):
        yield Live(video, fps, reconnect)
    else:
        with VideoReader(video, allow_short=allow_short) as reader:
            yield Recorded(reader, fps)


def sample_times(reader: VideoReader, fps: float) -> list[float]:
    """Times in the file's own clock, 1 / fps apart from its first frame on."""
    first = float(reader.pts_seconds[0])
    count = max(1, int(reader.duration_seconds * fps + 1e-6))
    return [min(first + index / fps, first + reader.duration_seconds) for index in range(count)]


def _groups_of(pixels: Tensor, seconds: list[float], stream: VideoStream) -> Iterator[Group]:
    merged = stream.family.temporal_patch
    whole = len(pixels) - len(pixels) % merged
    if whole:
        yield Group(frames=stream.encode(pixels[:whole]), seconds=seconds[:whole:merged])
    if whole < len(pixels):
        yield Group(frames=pixels[whole:], seconds=seconds[whole:])
