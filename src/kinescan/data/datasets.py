"""Labelled videos: where they are, how they are split, and the samples that come out of them."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from kinescan.data.listing import DATASETS, VIDEO_SUFFIXES, VideoItem, find_videos, read_items
from kinescan.data.sampling import Views, dense_indices, segment_indices, view_indices
from kinescan.data.transforms import EvalTransform, TrainTransform
from kinescan.data.video import VideoReader
from kinescan.errors import ConfigError, VideoError
from kinescan.preprocessing import Preprocessing

__all__ = [
    "DATASETS",
    "VIDEO_SUFFIXES",
    "Sample",
    "Unreadable",
    "VideoDataset",
    "VideoItem",
    "find_videos",
    "read_items",
    "split_items",
    "stable_seed",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One video as a model takes it.

    Attributes:
        clip: [T, 3, size, size] in training, [V, T, 3, size, size] in test; float32, normalised.
        label: index of the class.
        item_index: place among the data set's items.
    """

    clip: torch.Tensor
    label: int
    item_index: int

    def __repr__(self) -> str:
        return f"Sample(clip={list(self.clip.shape)}, label={self.label}, item_index={self.item_index})"


@dataclass(frozen=True)
class Unreadable:
    """A video that could not be read; it stands in for its sample, no other video does.

    Attributes:
        path: the file.
        reason: why.
        item_index: place among the data set's items.
    """

    path: str
    reason: str
    item_index: int


class VideoDataset(torch.utils.data.Dataset[Sample | Unreadable]):
    """Labelled videos as samples; what a sample shows depends on (seed, epoch, video) only.

    Args:
        items: the videos.
        classes: label texts.
        transform: makes clips from frames: a TrainTransform in training, an EvalTransform in test.
        preprocessing: how many frames a clip has, and which.
        mode: "train" draws a clip at random, "test" takes the views.
        seed: of the draws.
        views: of every video in test; by default one clip and the transform's crops.
        allow_short: take what is there of cut or damaged files (see VideoReader).

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
    ) -> None:
        self.items, self.classes = tuple(items), tuple(classes)
        self.transform, self.preprocessing = transform, preprocessing
        self.mode, self.seed, self.allow_short = mode, seed, allow_short
        self.epoch = 0
        crops = transform.crops if isinstance(transform, EvalTransform) else 1
        self.views = views or Views(frames=preprocessing.num_frames, clips=1, crops=crops)
        if not self.items:
            raise ConfigError("there is no video in the data set. Check the folder or list that it was read from.")
        unknown = next((item for item in self.items if not 0 <= item.label < len(self.classes)), None)
        if unknown is not None:
            raise ConfigError(f"{unknown.path}: label {unknown.label} is none of the {len(self.classes)} classes.")
        fitting = TrainTransform if mode == "train" else EvalTransform
        if not isinstance(transform, fitting):
            raise ConfigError(f'mode="{mode}" takes a {fitting.__name__}, got {type(transform).__name__}.')
        if mode == "test" and crops != self.views.crops:
            raise ConfigError(f"views {self.views} have {self.views.crops} crops, the transform makes {crops}.")

    def __len__(self) -> int:
        return len(self.items)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next samples; worker processes get it with each index (see `make_loader`)."""
        self.epoch = epoch

    def __getitem__(self, index: int | tuple[int, int]) -> Sample | Unreadable:
        """The sample of an item, or of (epoch, item)."""
        epoch, index = index if isinstance(index, tuple) else (self.epoch, index)
        item = self.items[index]
        try:
            clip = self._read_views(item) if self.mode == "test" else self._draw_clip(item, epoch)
        except VideoError as error:
            return Unreadable(str(item.path), error.reason, index)
        return Sample(clip, item.label, index)

    def _draw_clip(self, item: VideoItem, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(stable_seed(self.seed, epoch, item.video_id))
        settings = self.preprocessing
        with VideoReader(item.path, allow_short=self.allow_short) as video:
            if settings.sampling == "segments":
                indices = segment_indices(video.num_frames, settings.num_frames, position="random", generator=generator)
            else:
                indices = dense_indices(
                    video.num_frames,
                    settings.num_frames,
                    frame_stride=settings.frame_stride,
                    position="random",
                    generator=generator,
                )
            pixels = video.read(indices).pixels
        assert isinstance(self.transform, TrainTransform)
        return self.transform(pixels, generator=generator)

    def _read_views(self, item: VideoItem) -> torch.Tensor:
        """[clips * crops, T, 3, size, size], all crops of the first clip first."""
        with VideoReader(item.path, allow_short=self.allow_short) as video:
            indices = view_indices(
                video.num_frames,
                num_frames=self.views.frames,
                num_clips=self.views.clips,
                sampling=self.preprocessing.sampling,
                frame_stride=self.preprocessing.frame_stride,
            )
            pixels = video.read(indices.flatten()).pixels
        assert isinstance(self.transform, EvalTransform)
        crops = self.transform(pixels)
        return crops.unflatten(1, tuple(indices.shape)).transpose(0, 1).flatten(0, 1)


def split_items(
    items: Sequence[VideoItem], held_out_ratio: float, seed: int
) -> tuple[list[VideoItem], list[VideoItem]]:
    """A part for training and a part held out, class by class.

    Which videos are held out depends on the seed and their ids only: videos that are added later move no other to the
    other side, up to the rounding of the share.

    Args:
        items: all videos.
        held_out_ratio: share of each class to hold out, in (0, 1); at least one video stays on each side of every
            class that has two. A class's only video stays in training.
        seed: of the draw.

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
