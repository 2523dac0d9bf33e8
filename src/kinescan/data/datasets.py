"""Labelled videos: where they are, how they are split, and the samples that come out of them."""

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from kinescan.data.item_table import shared_items
from kinescan.data.listing import VideoItem
from kinescan.data.mirroring import mirrored_labels
from kinescan.data.sampling import Views, clip_indices, view_indices
from kinescan.data.storage import is_gone
from kinescan.data.transforms import EvalTransform, SampledAugmentation, TrainTransform, chance, finish_clip
from kinescan.data.video import Frames, Limits, VideoReader
from kinescan.errors import ConfigError, VideoError
from kinescan.preprocessing import Preprocessing
from kinescan.runtime.addresses import shown_path
from kinescan.runtime.torch_internals import shared_storage

__all__ = ["Sample", "Unreadable", "VideoDataset", "split_items", "stable_seed"]


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One video as a model takes it.

    Attributes:
        clip: [T, 3, size, size] in training, [V, T, 3, size, size] in test; float32, normalised.
        label: index of the class that the clip shows: of a mirrored clip, that of the opposite direction. Of a window
            with a label for each frame, [T] int64, or [T, K] float32 for classes that overlap.
        item_index: position among the data set's items.
        frame_seconds: in training, from frame to frame of the clip; 0 where nothing tells.
        starts: no window of the same video goes before it in its row of the batch.
        left: of a clip in bytes, what `finish_clip` is still to do to it; None for a finished clip.
    """

    clip: torch.Tensor
    label: int | torch.Tensor
    item_index: int
    frame_seconds: float = 0.0
    starts: bool = True
    left: SampledAugmentation | None = None

    def __repr__(self) -> str:
        return f"Sample(clip={list(self.clip.shape)}, label={_shown(self.label)}, item_index={self.item_index})"


@dataclass(frozen=True)
class Unreadable:
    """A video that could not be read; it stands in for its sample, no other video does.

    Attributes:
        path: the file.
        reason: why it could not be read, as a sentence.
        item_index: position among the data set's items.
        gone: the file is not there, or the system cannot read it; otherwise what it holds is broken.
    """

    path: str
    reason: str
    item_index: int
    gone: bool = False


@dataclass(frozen=True)
class Samples:
    """The samples of a batch.

    Attributes:
        samples: with an Unreadable instead of each video that could not be read.
        clips: [B, ...] float32, or uint8 for clips that are finished later: the block that they lie in, one index for
            each, also for the unreadable.
    """

    samples: Sequence[Sample | Unreadable]
    clips: torch.Tensor

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        return f"Samples({len(self.samples)}, clips={list(self.clips.shape)})"


class VideoDataset(torch.utils.data.Dataset[Sample | Unreadable]):
    """Labelled videos as samples; what a sample shows depends on (seed, epoch, video) only.

    Args:
        items: the videos.
        classes: label texts.
        transform: makes clips from frames: a TrainTransform in training, an EvalTransform in test.
        preprocessing: how many frames a clip has, and which.
        mode: "train" samples a clip, "test" takes the views.
        seed: of the random numbers.
        views: of every video in test; by default one clip and the transform's crops.
        allow_short: take what is there of cut or damaged files (see VideoReader).
        limits: what one file may take.
        dense_rate: in test, see `view_indices`.

    Attributes:
        in_bytes: training clips stay bytes, a quarter of the size, and `Sample.left` says what is still to be done to
            them, on the device that trains. The clips are the same. False until it is set.

    Raises:
        ConfigError: there is no item, a label is not among the classes, or views and transform do not fit together.
    """

    def __init__(
        self,
        items: Sequence[VideoItem],
        classes: Sequence[str],
        transform: TrainTransform | EvalTransform,
        *,
        preprocessing: Preprocessing,
        mode: Literal["train", "test"],
        seed: int = 0,
        views: Views | None = None,
        allow_short: bool = False,
        limits: Limits | None = None,
        dense_rate: float = 0.0,
    ) -> None:
        self.items, self.classes = shared_items(items), tuple(classes)
        self.transform, self.preprocessing = transform, preprocessing
        self.mode, self.seed, self.allow_short = mode, seed, allow_short
        self.limits, self.dense_rate = limits or Limits(), dense_rate
        self.epoch, self.in_bytes = 0, False
        self._mirrored_labels = mirrored_labels(self.classes)
        crops = transform.crops if isinstance(transform, EvalTransform) else 1
        self.views = views or Views(frames=preprocessing.num_frames, clips=1, crops=crops)
        if not self.items:
            raise ConfigError("no video in the data set. Check the folder or list that it was read from.")
        unknown = next((item for item in self.items if not 0 <= item.label < len(self.classes)), None)
        if unknown is not None:
            raise ConfigError(f"{unknown.path}: label {unknown.label} is not one of the {len(self.classes)} classes.")
        fitting = TrainTransform if mode == "train" else EvalTransform
        if not isinstance(transform, fitting):
            raise ConfigError(f'mode="{mode}" takes a {fitting.__name__}, got {type(transform).__name__}.')
        if mode == "test" and crops != self.views.crops:
            raise ConfigError(f"views {self.views} have {self.views.crops} crops, the transform makes {crops}.")

    def __len__(self) -> int:
        return len(self.items)

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """[T, 3, size, size] in training, [V, T, 3, size, size] in test."""
        size, frames = self.preprocessing.size, self.preprocessing.num_frames
        leading = (frames,) if self.mode == "train" else (self.views.num_views, self.views.frames)
        return (*leading, 3, size, size)

    @property
    def clip_dtype(self) -> torch.dtype:
        """Of the clips: float32, or uint8 with `in_bytes` in training."""
        return torch.uint8 if self.in_bytes and self.mode == "train" else torch.float32

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next samples; worker processes get it with each index (see `make_loader`)."""
        self.epoch = epoch

    def is_readable(self, item_index: int) -> bool:
        """Whether an item's file can be read now."""
        return isinstance(self[item_index], Sample)

    def __getitem__(self, index: int | tuple[int, int]) -> Sample | Unreadable:
        """The sample of an item, or of (epoch, item)."""
        epoch, index = index if isinstance(index, tuple) else (self.epoch, index)
        return self._sample(epoch, index, None)

    def __getitems__(self, indices: Sequence[int | tuple[int, int]]) -> "Samples":
        """The samples of several items, their clips written side by side into one block of memory.

        In a worker process the block is shared memory: the batch reaches the main process without being copied.
        """
        clips = new_block(len(indices), *self.clip_shape, dtype=self.clip_dtype)
        samples = []
        for position, entry in enumerate(indices):
            epoch, index = entry if isinstance(entry, tuple) else (self.epoch, entry)
            samples.append(self._sample(epoch, index, clips[position]))
        return Samples(samples, clips)

    def _sample(self, epoch: int, index: int, out: torch.Tensor | None) -> Sample | Unreadable:
        """The sample of an item; its clip is written into `out` where there is one."""
        item = self.items[index]
        try:
            if self.mode == "test":
                return Sample(self._read_views(item, out), item.label, index)
            generator = torch.Generator().manual_seed(stable_seed(self.seed, epoch, item.video_id))
            frames = self._sample_frames(index, generator)
        except VideoError as error:
            return Unreadable(shown_path(item.path), error.reason, index, gone=self._is_gone(index))
        assert isinstance(self.transform, TrainTransform)
        label = self._sample_mirrored_label(item, epoch)
        sampled = self.transform.sample(frames.pixels, generator=generator, mirror=label is not None)
        clip, left = as_clip(*sampled, self.preprocessing, out, in_bytes=self.in_bytes)
        seconds = mean_step(frames.pts_seconds)
        return Sample(clip, item.label if label is None else label, index, seconds, left=left)

    def _is_gone(self, index: int) -> bool:
        """Of an item that could not be read: whether its file is gone."""
        return is_gone(self.items[index].path)

    def _sample_frames(self, index: int, generator: torch.Generator) -> Frames:
        """The T frames of a training clip."""
        item, settings = self.items[index], self.preprocessing
        with self._open(item) as video:
            indices = clip_indices(
                video.num_frames,
                settings.num_frames,
                sampling=settings.sampling,
                frame_stride=settings.frame_stride,
                num_windows=settings.num_windows,
                frame_rate=settings.frame_rate,
                pts_seconds=video.pts_seconds,
                generator=generator,
            )
            return video.read(indices)

    def _sample_mirrored_label(self, item: VideoItem, epoch: int) -> int | None:
        """The label of the clip's mirror image where it is to be mirrored."""
        assert isinstance(self.transform, TrainTransform)
        generator = torch.Generator().manual_seed(stable_seed(self.seed, epoch, item.video_id, "mirror"))
        wanted = chance(self.transform.augment.flip_rate, generator)
        return self._mirrored_labels[item.label] if wanted else None

    def _open(self, item: VideoItem) -> VideoReader:
        return VideoReader(
            item.path,
            allow_short=self.allow_short,
            limits=self.limits,
            square_pixels=self.preprocessing.square_pixels,
        )

    def _read_views(self, item: VideoItem, out: torch.Tensor | None) -> torch.Tensor:
        """[clips * crops, T, 3, size, size], all crops of the first clip first."""
        with self._open(item) as video:
            indices = view_indices(
                video.num_frames,
                num_frames=self.views.frames,
                num_clips=self.views.clips,
                sampling=self.preprocessing.sampling,
                frame_stride=self.preprocessing.frame_stride,
                num_windows=self.preprocessing.num_windows,
                frame_rate=self.preprocessing.frame_rate,
                dense_rate=self.dense_rate,
                pts_seconds=video.pts_seconds,
            )
            pixels = video.read(indices.flatten()).pixels
        assert isinstance(self.transform, EvalTransform)
        if out is None:
            size = self.preprocessing.size
            out = torch.empty(self.views.num_views, self.views.frames, 3, size, size)
        self.transform(pixels, out=out.unflatten(0, (self.views.clips, self.views.crops)).transpose(0, 1))
        return out


def as_clip(
    frames: torch.Tensor,
    left: SampledAugmentation,
    settings: Preprocessing,
    out: torch.Tensor | None,
    *,
    in_bytes: bool,
) -> tuple[torch.Tensor, SampledAugmentation | None]:
    """What `TrainTransform.sample` gave, as a finished clip, or as bytes and the augmentation that is left to do.

    Args:
        frames: uint8 [T, 3, S, S].
        left: augmentation that was sampled and not applied yet.
        settings: mean and standard deviation.
        out: [T, 3, S, S], to write into: float32, or uint8 with `in_bytes`; None: new memory.
        in_bytes: leave the clip in bytes, for a device that finishes it.

    Returns:
        [T, 3, S, S], normalised float32 and None; or, with `in_bytes`, uint8 and `left`.
    """
    if not in_bytes:
        return finish_clip(frames, left, settings, out=out), None
    return (frames.contiguous() if out is None else out.copy_(frames)), left


def new_block(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Memory for a batch; in a worker process, memory that the main process can see."""
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    return torch.empty(0, dtype=dtype).set_(shared_storage(dtype.itemsize * math.prod(shape))).view(shape)


def mean_step(pts_seconds: torch.Tensor) -> float:
    """Seconds from frame to frame of a clip on average, without the last frame's repetitions; 0 for a single frame.

    Example:
        >>> mean_step(torch.tensor([0.0, 0.5, 1.0, 1.0]))
        0.5
    """
    count = int((pts_seconds < pts_seconds[-1]).sum())
    return float(pts_seconds[-1] - pts_seconds[0]) / count if count else 0.0


def _shown(label: int | torch.Tensor) -> int | list[int]:
    return list(label.shape) if isinstance(label, torch.Tensor) else label


def split_items(
    items: Sequence[VideoItem], held_out_ratio: float, seed: int
) -> tuple[list[VideoItem], list[VideoItem]]:
    """A part for training and a part held out, class by class.

    Which videos are held out depends on the seed and their ids only: videos that are added later move no other to the
    other side, up to the rounding of the fraction.

    Args:
        items: all videos.
        held_out_ratio: fraction of each class to hold out, in (0, 1); at least one video stays on each side of every
            class that has two. A class's only video stays in training.
        seed: of the random numbers.

    Returns:
        (training, held out), each in the order of `items`.

    Raises:
        ConfigError: the ratio is out of range.

    Example:
        >>> from pathlib import Path
        >>> videos = [VideoItem(Path(f"{i}.mp4"), i % 2, f"{i}.mp4") for i in range(10)]
        >>> training, held_out = split_items(videos, 0.2, seed=0)
        >>> len(training), sorted(item.label for item in held_out)
        (8, [0, 1])
    """
    if not 0 < held_out_ratio < 1:
        raise ConfigError(f"held_out_ratio must lie between 0 and 1, got {held_out_ratio}.")
    by_class: dict[int, list[VideoItem]] = {}
    for item in items:
        by_class.setdefault(item.label, []).append(item)
    held_out: set[str] = set()
    for members in by_class.values():
        count = min(max(1, round(held_out_ratio * len(members))), len(members) - 1)
        ids = sorted((item.video_id for item in members), key=lambda video_id: stable_seed(seed, video_id))
        held_out.update(ids[:count])
    training = [item for item in items if item.video_id not in held_out]
    return training, [item for item in items if item.video_id in held_out]


def stable_seed(*parts: int | str) -> int:
    """A 63-bit number that depends on these values only, on every machine and in every process.

    Example:
        >>> stable_seed(0, 3, "a.mp4")
        8958502802586020267
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()) >> 1
