"""Frames of few videos in memory, decoded once and kept on disk for the next run."""

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from kinescan.data.disk_cache import DiskCache, cache_folder
from kinescan.data.video import Frames
from kinescan.errors import VideoError
from kinescan.runtime.counter import Counter
from kinescan.runtime.quantities import byte_size

logger = logging.getLogger(__name__)

FOLDER = "kept_frames"
"""Beside the tables of frames, or below the folder that was chosen for them."""
FORMAT = f"1 av {av.__version__} torch {torch.__version__}"
"""Of a file; other versions may decode or resize otherwise."""
_MOST_OF_FREE = 0.5
"""Of the free space of the disk, what frames may take."""


def frames_of_videos(
    paths: Sequence[Path],
    keys: Sequence[str],
    decode: Callable[[int], Frames],
    *,
    num_bytes: int,
    process: tuple[int, int] = (0, 1),
) -> list[Frames | VideoError]:
    """The frames of each video: read from the disk where they are kept, otherwise decoded and kept; with a bar.

    As many videos are read at a time as there are cores. Several processes begin at different videos, so that on one
    machine they share the work.

    Args:
        paths: the videos.
        keys: of each, all settings that its frames depend on.
        decode: makes the frames of a video by its index.
        num_bytes: that all frames take, about.
        process: (index, count) of those that read the same videos.

    Returns:
        Frames, or why a video cannot be read, in the order of `paths`.
    """
    cache, (process_index, num_processes) = frame_cache(), process
    kept = [] if cache is None else [cache.holds(path, key) for path, key in zip(paths, keys, strict=True)]
    writes = cache is not None and _fits(cache, num_bytes * kept.count(False) // max(1, len(kept)))

    def frames_of(index: int) -> tuple[int, Frames | VideoError, bool]:
        path, key = paths[index], keys[index]
        found: Frames | None = None if cache is None else cache.read(path, key, _from_arrays)
        if found is not None:
            return index, found, True
        try:
            frames = decode(index)
        except VideoError as error:
            return index, error, False
        if cache is not None and writes:
            cache.write(path, key, _to_arrays(frames), compressed=False)
        return index, frames, False

    first = process_index * len(paths) // num_processes
    result: dict[int, Frames | VideoError] = {}
    num_kept = 0
    with Counter("decoding", "videos") as counter, ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        counter.update(0, len(paths))
        for index, frames, was_kept in threads.map(frames_of, [*range(first, len(paths)), *range(first)]):
            result[index] = frames
            num_kept += was_kept
            counter.update(len(result), len(paths))
    if num_kept and cache is not None:
        logger.info("%d of %d videos were decoded before: their frames lie in %s", num_kept, len(paths), cache.folder)
    return [result[index] for index in range(len(paths))]


def frame_cache() -> DiskCache | None:
    """Where frames are kept; None where tables are turned off (see `cache_folder`)."""
    tables = cache_folder()
    if tables is None:
        return None
    return DiskCache(tables.parent / FOLDER if tables.name == "frame_tables" else tables / FOLDER, FORMAT, "frames")


def _fits(cache: DiskCache, num_bytes: int) -> bool:
    """Whether frames may be written; it is reported where they may not."""
    there = next((folder for folder in (cache.folder, *cache.folder.parents) if folder.is_dir()), None)
    try:
        free = 0 if there is None else shutil.disk_usage(there).free
    except OSError:
        free = 0
    if num_bytes <= _MOST_OF_FREE * free:
        return True
    logger.info(
        "frames are not kept on disk: they take about %s, and %s are free in %s",
        *(byte_size(num_bytes), byte_size(free), cache.folder),
    )
    return False


def _to_arrays(frames: Frames) -> dict[str, Any]:
    return {"pixels": frames.pixels.numpy(), "pts_seconds": frames.pts_seconds.numpy()}


def _from_arrays(arrays: dict[str, Any]) -> Frames:
    """The frames; others than were written are a ValueError."""
    pixels, seconds = arrays["pixels"], arrays["pts_seconds"]
    if pixels.dtype != np.uint8 or seconds.dtype != np.float64:
        raise ValueError("other numbers")
    return Frames(torch.from_numpy(pixels), torch.from_numpy(seconds))
