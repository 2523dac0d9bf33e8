"""Windows of long videos with a label for each frame."""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kinescan.data.datasets import Sample, Samples, Unreadable, as_clip, new_block, stable_seed
from kinescan.data.frame_labels import IGNORED, frame_targets, frame_truth
from kinescan.data.intervals import Interval, IntervalVideo
from kinescan.data.kept_frames import frames_of_videos
from kinescan.data.memory import MARGIN
from kinescan.data.mirroring import mirrored_labels
from kinescan.data.storage import is_gone
from kinescan.data.timestamps import timed_frames
from kinescan.data.transforms import TrainTransform, chance, resize
from kinescan.data.video import Frames, Limits, VideoReader
from kinescan.data.window_plan import FollowedWindows, SampledWindows, Span, Window, WindowPlan
from kinescan.errors import ConfigError, VideoError
from kinescan.preprocessing import Preprocessing
from kinescan.runtime.addresses import shown_path
from kinescan.shapes import BACKGROUND

logger = logging.getLogger(__name__)

MOST_OPEN = 16
"""Videos that each process keeps open."""


@dataclass(frozen=True, eq=False)
class MeasuredVideo:
    """A labelled video and the times of its frames at the rate of the training.

    Attributes:
        video: the video with its labels.
        seconds: [n] float64, the time of each frame; empty where it could not be read.
        positions: [n] int64, each frame's position in the file.
        lengths: how many frames follow on each other, again and again: more than one number where the video has a
            pause that no window is stretched over.
        reason: why it could not be read; empty where it could.
        gone: its file is not there.
        height: of its frames.
        width: of its frames.
    """

    video: IntervalVideo
    seconds: NDArray[np.float64]
    positions: NDArray[np.int64]
    lengths: tuple[int, ...] = ()
    reason: str = ""
    gone: bool = False
    height: int = 0
    width: int = 0


def measure_videos(
    videos: Sequence[IntervalVideo],
    preprocessing: Preprocessing,
    *,
    limits: Limits | None = None,
    allow_short: bool = False,
) -> list[MeasuredVideo]:
    """The times of the frames of every video; several are opened at a time.

    Args:
        videos: that are trained on.
        preprocessing: its `frame_rate` counts.
        limits: what one file may take.
        allow_short: take what is there of cut or damaged files (see VideoReader).

    Raises:
        ConfigError: no rate is set.
    """
    if not preprocessing.frame_rate:
        raise ConfigError(
            'labels with a start and an end need frames at a fixed rate. Set preprocessing.sampling = "rate" and '
            "preprocessing.frame_rate, the frames a second, such as 8."
        )

    def measured(video: IntervalVideo) -> MeasuredVideo:
        try:
            with VideoReader(
                video.path, limits=limits, allow_short=allow_short, square_pixels=preprocessing.square_pixels
            ) as reader:
                frames = timed_frames(reader, preprocessing.frame_rate)
                return MeasuredVideo(
                    video,
                    frames.seconds,
                    frames.positions.numpy(),
                    tuple(frames.lengths),
                    height=reader.height,
                    width=reader.width,
                )
        except VideoError as error:
            return MeasuredVideo(
                video, np.zeros(0), np.zeros(0, dtype=np.int64), reason=error.reason, gone=is_gone(video.path)
            )

    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        return list(threads.map(measured, videos))


@dataclass(frozen=True)
class _Part:
    """Frames of a video that follow on each other.

    Attributes:
        video: index of the video.
        first: index of the part's first frame in the video.
        length: number of frames.
    """

    video: int
    first: int
    length: int


class WindowDataset(torch.utils.data.Dataset[Sample | Unreadable]):
    """Windows of consecutive frames of labelled videos; what one shows depends on (seed, epoch, index) only.

    Crop, mirroring and colours are the same for all frames of a window; of windows that follow each other, for the
    whole video in that epoch.

    Args:
        measured: the videos.
        classes: label texts in the order of the model's outputs: "background" first, unless classes overlap.
        transform: makes clips from frames.
        preprocessing: how many frames a window has, and how many a second.
        overlapping: several classes may be true at once.
        event_ratio: fraction of the windows that show an event; followed windows show all there is.
        num_windows: in an epoch; 0: as many as cover all videos once.
        num_rows: follow one video in each of so many rows of the batch, of all processes together; 0: windows at
            random positions.
        kept_gib: memory for all frames, resized; where they need more, every window is decoded anew.
        seed: of the random numbers.
        limits: what one file may take.
        allow_short: take what is there of cut or damaged files (see VideoReader).

    Raises:
        ConfigError: there is no video.
    """

    def __init__(
        self,
        measured: Sequence[MeasuredVideo],
        classes: Sequence[str],
        transform: TrainTransform,
        *,
        preprocessing: Preprocessing,
        overlapping: bool = False,
        event_ratio: float = 0.5,
        num_windows: int = 0,
        num_rows: int = 0,
        kept_gib: float = 0.0,
        seed: int = 0,
        limits: Limits | None = None,
        allow_short: bool = False,
    ) -> None:
        if not measured:
            raise ConfigError("there is no video in the data set. Check the list that it was read from.")
        self.measured, self.classes = tuple(measured), tuple(classes)
        self.items = tuple(entry.video for entry in measured)
        self.transform, self.preprocessing, self.overlapping = transform, preprocessing, overlapping
        self.seed, self.epoch, self.in_bytes = seed, 0, False
        self._limits, self._allow_short = limits, allow_short
        self.truth = [frame_truth(entry.video.intervals, entry.seconds, self.classes) for entry in measured]
        self._parts = list(_parts(measured))
        self.plan = self._make_plan(event_ratio, num_rows, num_windows)
        self._mirrored = [self._mirrored_columns(truth) for truth in self.truth]
        self._kept: list[Frames | VideoError] | None = None
        self._readers: dict[int, VideoReader] = {}
        wanted = sum(_kept_bytes(entry, preprocessing.size) for entry in measured) / 2**30
        self.in_memory = wanted <= kept_gib
        if not self.in_memory and kept_gib:
            logger.info(
                "decoding anew in every epoch: all frames of %d videos would take %.1f GiB, more than data.kept_gib",
                *(len(measured), wanted),
            )

    def __len__(self) -> int:
        return len(self.plan)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next samples; worker processes get it with each index (see `make_loader`)."""
        self.epoch = epoch

    def __getitem__(self, index: int | tuple[int, int]) -> Sample | Unreadable:
        """The window of an index, or of (epoch, index)."""
        epoch, index = index if isinstance(index, tuple) else (self.epoch, index)
        return self._sample(epoch, index, None)

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """[T, 3, size, size]."""
        return (self.preprocessing.num_frames, 3, self.preprocessing.size, self.preprocessing.size)

    @property
    def clip_dtype(self) -> torch.dtype:
        """Of the clips: float32, or uint8 with `in_bytes` (see `VideoDataset`)."""
        return torch.uint8 if self.in_bytes else torch.float32

    def __getitems__(self, indices: Sequence[int | tuple[int, int]]) -> Samples:
        """Several windows, their clips side by side in one block of memory."""
        clips = new_block(len(indices), *self.clip_shape, dtype=self.clip_dtype)
        samples = []
        for row, entry in enumerate(indices):
            epoch, index = entry if isinstance(entry, tuple) else (self.epoch, entry)
            samples.append(self._sample(epoch, index, clips[row]))
        return Samples(samples, clips)

    def is_readable(self, item_index: int) -> bool:
        """Whether a frame of a video can be read now."""
        try:
            self._read(item_index, [0])
        except VideoError:
            return False
        return True

    @property
    def event_fraction(self) -> float:
        """Fraction of all frames in which something happens."""
        total = sum(map(len, self.truth))
        busy = sum(int(truth[:, 0 if self._all_are_events else 1 :].any(axis=1).sum()) for truth in self.truth)
        return busy / total if total else 0.0

    @property
    def _all_are_events(self) -> bool:
        return self.classes[:1] != (BACKGROUND,)

    def _make_plan(self, event_ratio: float, num_rows: int, num_windows: int) -> WindowPlan:
        lengths = [part.length for part in self._parts]
        num_frames = self.preprocessing.num_frames
        if num_rows:
            ids = [self.items[part.video].video_id for part in self._parts]
            return FollowedWindows(
                *(lengths, ids), num_frames=num_frames, num_rows=num_rows, num_windows=num_windows, seed=self.seed
            )
        spans = [
            Span(index, interval.label, int(inside[0]), int(inside[-1]))
            for index, part in enumerate(self._parts)
            for interval in self.items[part.video].intervals
            if len(inside := self._inside(part, interval))
        ]
        return SampledWindows(
            *(lengths, spans), num_frames=num_frames, event_ratio=event_ratio, num_windows=num_windows, seed=self.seed
        )

    def _inside(self, part: _Part, interval: Interval) -> NDArray[np.intp]:
        """The frames of a part that lie in an interval, counted from its first."""
        seconds = self.measured[part.video].seconds[part.first : part.first + part.length]
        return np.flatnonzero((seconds >= interval.start_seconds) & (seconds < interval.end_seconds))

    def _mirrored_columns(self, truth: NDArray[np.bool_]) -> list[int] | None:
        """For each class, the class whose mirror image shows it; None where a class of the video has none."""
        opposite = mirrored_labels(self.classes)
        if any(opposite[column] is None for column in np.flatnonzero(truth.any(axis=0))):
            return None
        return [column if opposite[column] is None else int(opposite[column] or 0) for column in range(len(opposite))]

    def _sample(self, epoch: int, index: int, out: torch.Tensor | None) -> Sample | Unreadable:
        window = self.plan.window(epoch, index)
        item = self._parts[window.video].video
        try:
            positions, truth, counted = self._frames_of(window)
            pixels = self._read(item, positions)
        except VideoError as error:
            return Unreadable(shown_path(self.items[item].path), error.reason, item, gone=self._is_gone(item))
        columns = self._mirrored[item]
        mirroring = torch.Generator().manual_seed(stable_seed(self.seed, epoch, window.sample_key, "mirror"))
        mirror = chance(self.transform.augment.flip_rate, mirroring) and columns is not None
        targets = frame_targets(truth[:, columns] if mirror else truth, overlapping=self.overlapping)
        targets[~counted] = IGNORED
        generator = torch.Generator().manual_seed(stable_seed(self.seed, epoch, window.sample_key))
        sampled = self.transform.sample(pixels, generator=generator, mirror=mirror)
        clip, left = as_clip(*sampled, self.preprocessing, out, in_bytes=self.in_bytes)
        frame_seconds = 1 / self.preprocessing.frame_rate
        return Sample(clip, targets, item, frame_seconds, starts=window.starts, left=left)

    def _frames_of(self, window: Window) -> tuple[list[int], NDArray[np.bool_], torch.Tensor]:
        """Positions of the window's frames, their truth, and which of them are there; the last one is repeated."""
        part = self._parts[window.video]
        if not part.length:
            raise self._unreadable_now(part.video)
        wanted = np.arange(window.first, window.first + self.preprocessing.num_frames)
        inside = np.minimum(wanted, part.length - 1)
        positions = part.first + inside
        return positions.tolist(), self.truth[part.video][positions], torch.from_numpy(wanted == inside)

    def _unreadable_now(self, item_index: int) -> VideoError:
        entry = self.measured[item_index]
        return VideoError(entry.video.path, entry.reason)

    def _is_gone(self, item_index: int) -> bool:
        entry = self.measured[item_index]
        return entry.gone if not len(entry.seconds) else is_gone(entry.video.path)

    def _read(self, item_index: int, positions: Sequence[int]) -> torch.Tensor:
        """[T, 3, H, W] uint8: frames of a video by their positions among those at the rate."""
        if not self.in_memory:
            return self._decode(item_index, positions)
        if self._kept is None:
            self.fill()
            assert self._kept is not None
        kept = self._kept[item_index]
        if isinstance(kept, VideoError):
            raise kept
        return kept.pixels[list(positions)]

    def fill(self, process: tuple[int, int] = (0, 1)) -> None:
        """Decodes every video that is not on the disk already into memory.

        Args:
            process: (index, count) of those that read the same videos.
        """
        logger.info("reading all frames of %d videos into memory", len(self.items))
        self._kept = frames_of_videos(
            [item.path for item in self.items],
            [self._key(entry) for entry in self.measured],
            self._keep,
            num_bytes=sum(_kept_bytes(entry, self.preprocessing.size) for entry in self.measured),
            process=process,
        )

    def _key(self, entry: MeasuredVideo) -> str:
        """All that the kept frames of a video depend on."""
        settings = self.preprocessing
        positions = hashlib.blake2b(entry.positions.tobytes(), digest_size=8).hexdigest()
        most = (self._limits or Limits()).max_pixels
        return (
            f"positions {positions}, size {settings.size} * {MARGIN} {settings.interpolation}, "
            f"square {settings.square_pixels}, short {self._allow_short}, most {most}"
        )

    def _keep(self, item_index: int) -> Frames:
        entry = self.measured[item_index]
        if not len(entry.seconds):
            raise self._unreadable_now(item_index)
        frames = []
        with self._open(item_index) as reader:
            size = _kept_size(entry.height, entry.width, self.preprocessing.size)
            for pixels, _ in reader.in_order(entry.positions.tolist()):
                frames.append(resize(pixels[None], size, self.preprocessing.interpolation)[0].contiguous())
        return Frames(torch.stack(frames), torch.from_numpy(entry.seconds))

    def _decode(self, item_index: int, positions: Sequence[int]) -> torch.Tensor:
        reader = self._readers.pop(item_index, None) or self._open(item_index)
        chosen = self.measured[item_index].positions[list(positions)]
        try:
            if int(chosen.max()) >= reader.num_frames:
                raise VideoError(reader.path, "has fewer frames than when the training began. Bring it back.")
            pixels = reader.read(chosen.tolist()).pixels
        except VideoError:
            reader.close()
            raise
        # Windows come back to a video, and opening a long one means to read all of its packets.
        self._readers[item_index] = reader
        if len(self._readers) > MOST_OPEN:
            self._readers.pop(next(iter(self._readers))).close()
        return pixels

    def __getstate__(self) -> dict[str, Any]:
        """Without open files: each worker opens its own."""
        return {**self.__dict__, "_readers": {}}

    def _open(self, item_index: int) -> VideoReader:
        return VideoReader(
            self.items[item_index].path,
            allow_short=self._allow_short,
            limits=self._limits,
            square_pixels=self.preprocessing.square_pixels,
        )


def _parts(measured: Sequence[MeasuredVideo]) -> Iterator[_Part]:
    """The parts of all videos; of one that cannot be read, one without a frame."""
    for index, entry in enumerate(measured):
        first = 0
        for length in entry.lengths or (0,):
            yield _Part(index, first, length)
            first += length


def _kept_size(height: int, width: int, size: int) -> tuple[int, int]:
    scale = min(1.0, MARGIN * size / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _kept_bytes(entry: MeasuredVideo, size: int) -> int:
    if not len(entry.seconds):
        return 0
    height, width = _kept_size(entry.height, entry.width, size)
    return 3 * height * width * len(entry.seconds)
