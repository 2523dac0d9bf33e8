import logging
from collections.abc import Sequence

import torch

from kinescan.data.datasets import VideoDataset
from kinescan.data.kept_frames import frames_of_videos
from kinescan.data.listing import VideoItem
from kinescan.data.sampling import segment_indices
from kinescan.data.storage import is_gone
from kinescan.data.transforms import TrainTransform, resize
from kinescan.data.video import Frames, Limits
from kinescan.errors import ConfigError, VideoError
from kinescan.preprocessing import Preprocessing

logger = logging.getLogger(__name__)

MARGIN = 1.5
"""Short side of a kept frame over the side of a clip, so that random crops lose little."""
LONG_OVER_SHORT = 16 / 9


class VideoMemory(VideoDataset):
    """Training clips of few videos out of memory: each file is decoded once, not once an epoch, nor in the next run.

    Of every video, `kept_frames` evenly spaced frames are kept, resized; an epoch samples one of them from each part of
    the video. What a sample shows depends on (seed, epoch, video) only, as in `VideoDataset`, but it is not the same
    clip as there.

    Args:
        items: the videos.
        classes: label texts.
        transform: makes clips from frames.
        preprocessing: how many frames a clip has; `sampling` must be "segments".
        kept_frames: frames of each video; more sample finer.
        seed: of the random numbers.
        limits: what one file may take.
        allow_short: take what is there of cut or damaged files (see VideoReader).

    Raises:
        ConfigError: the sampling is dense, or fewer frames are kept than a clip has.
    """

    def __init__(
        self,
        items: Sequence[VideoItem],
        classes: Sequence[str],
        transform: TrainTransform,
        *,
        preprocessing: Preprocessing,
        kept_frames: int,
        seed: int = 0,
        limits: Limits | None = None,
        allow_short: bool = False,
    ) -> None:
        super().__init__(
            items,
            classes,
            transform,
            preprocessing=preprocessing,
            mode="train",
            seed=seed,
            limits=limits,
            allow_short=allow_short,
        )
        if preprocessing.sampling != "segments":
            raise ConfigError('frames in memory need preprocessing.sampling = "segments". Set data.kept_frames = 0.')
        if kept_frames < preprocessing.num_frames:
            raise ConfigError(
                f"data.kept_frames must be at least preprocessing.num_frames, {preprocessing.num_frames}, or 0; "
                f"got {kept_frames}. Four times as many are a good start."
            )
        self.kept_frames = kept_frames
        self._kept: list[Frames | VideoError] | None = None
        self._gone: frozenset[int] = frozenset()

    def fill(self, process: tuple[int, int] = (0, 1)) -> None:
        """Decodes every video that is not on the disk already; without a call, the first sample does it.

        Args:
            process: (index, count) of those that read the same videos.
        """
        logger.info("reading %d videos into memory, %d frames of each", len(self.items), self.kept_frames)
        settings, limits = self.preprocessing, self.limits
        key = (
            f"{self.kept_frames} frames, size {settings.size} * {MARGIN} {settings.interpolation}, "
            f"square {settings.square_pixels}, short {self.allow_short}, most {limits.max_pixels}"
        )
        self._kept = frames_of_videos(
            [item.path for item in self.items],
            [key] * len(self.items),
            lambda index: self._read(self.items[index]),
            num_bytes=round(estimated_gib(len(self.items), self.kept_frames, settings.size) * 2**30),
            process=process,
        )
        # Asked now: when a clip is sampled, the storage may be back.
        self._gone = frozenset(
            index
            for index, entry in enumerate(self._kept)
            if isinstance(entry, VideoError) and is_gone(self.items[index].path)
        )
        num_bytes = sum(entry.pixels.numel() for entry in self._kept if isinstance(entry, Frames))
        logger.info("%d videos take %.2f GiB", len(self.items), num_bytes / 2**30)

    def _sample_frames(self, index: int, generator: torch.Generator) -> Frames:
        if self._kept is None:
            self.fill()
            assert self._kept is not None
        frames = self._kept[index]
        if isinstance(frames, VideoError):
            raise frames
        count = len(frames.pixels)
        indices = segment_indices(count, self.preprocessing.num_frames, position="random", generator=generator)
        return Frames(frames.pixels[indices], frames.pts_seconds[indices])

    def _is_gone(self, index: int) -> bool:
        return index in self._gone

    def _read(self, item: VideoItem) -> Frames:
        """As many as are kept; fewer where the video has fewer."""
        with self._open(item) as video:
            num_kept = min(self.kept_frames, video.num_frames)
            frames = video.read(segment_indices(video.num_frames, num_kept, position="middle"))
        height, width = frames.pixels.shape[2:]
        scale = min(1.0, MARGIN * self.preprocessing.size / min(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        pixels = resize(frames.pixels, size, self.preprocessing.interpolation).contiguous()
        return Frames(pixels, frames.pts_seconds)


def estimated_gib(num_videos: int, kept_frames: int, size: int) -> float:
    """What `VideoMemory` will take in GiB for videos of 16:9.

    Example:
        >>> round(estimated_gib(300, 32, 64), 2)
        0.44
    """
    short = MARGIN * size
    return num_videos * kept_frames * 3 * short * short * LONG_OVER_SHORT / 2**30
