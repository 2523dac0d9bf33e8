"""How `ask` takes frames from a file, or from a live source."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kinescan.data.video import LiveVideo, VideoReader, is_live, shown_every
from kinescan.errors import VideoError
from kinescan.training.interruption import Interruption
from kinescan.vlm import Features, VideoStream

logger = logging.getLogger(__name__)

FRAMES_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Group:
    """What is pushed at once: features of whole temporal patches, or a lone frame as it is; and when they are shown."""

    frames: Tensor | list[Features]
    seconds: list[float]


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
        """Frames that went through the vision tower of the stream's model."""
        merged = stream.family.temporal_patch
        step = max(merged, FRAMES_AT_ONCE - FRAMES_AT_ONCE % merged)
        first = float(self._reader.pts_seconds[0])
        for start in range(0, len(self._times), step):
            part = self._times[start : start + step]
            yield from _groups_of(self._reader.read_at(part).pixels, [time - first for time in part], stream)


class Live:
    """A source that cannot be gone back in, as it comes; ends with it, with an error of it, or with Ctrl-C or SIGTERM.

    Attributes:
        name: for the report.
        num_frames: None, as nobody knows.
    """

    num_frames: int | None = None

    def __init__(self, video: LiveVideo, fps: float) -> None:
        self._video = video
        self.name = video.source
        self._seconds = 1 / fps

    def groups(self, stream: VideoStream) -> Iterator[Group]:
        """Frames that went through the vision tower of the stream's model, as soon as they fill a temporal patch."""
        merged = stream.family.temporal_patch
        frames: list[Tensor] = []
        seconds: list[float] = []
        for pixels, time in shown_every(self._frames(), self._seconds):
            frames.append(pixels)
            seconds.append(time)
            if len(frames) == merged:
                yield from _groups_of(torch.stack(frames), seconds, stream)
                frames, seconds = [], []
        if frames:
            yield from _groups_of(torch.stack(frames), seconds, stream)

    def _frames(self) -> Iterator[tuple[Tensor, float]]:
        """Ends without an error, once there are frames."""
        with Interruption() as stop:
            try:
                for frame in self._video:
                    yield frame
                    if stop.requested is not None:
                        logger.warning("%s: watched until %s", self._video.source, stop.requested)
                        return
            except VideoError as error:
                if not self._video.num_frames:
                    raise
                logger.warning("%s The questions are about what came until then.", error)


@contextmanager
def open_watched(video: str | Path, fps: float, *, allow_short: bool) -> Iterator[Recorded | Live]:
    """A file or a live source, closed at the end.

    Raises:
        VideoError: it cannot be read.
    """
    if is_live(video):
        with LiveVideo(video) as live:
            yield Live(live, fps)
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
