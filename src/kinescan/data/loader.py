"""Samples in batches, read by worker processes, in an order that nothing but seed and epoch decides."""

import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Literal, cast

import torch

from kinescan.data.datasets import Sample, Samples, Unreadable, VideoDataset, stable_seed
from kinescan.data.disk_cache import say_again, take_said, tell_later
from kinescan.data.shared_memory import LOWERED, check_shared_memory
from kinescan.data.transforms import SampledAugmentation
from kinescan.data.window_dataset import WindowDataset
from kinescan.data.window_plan import FollowedWindows, RowOrder
from kinescan.errors import ConfigError, KinescanError, WorkerError
from kinescan.fields import check_most, check_types
from kinescan.runtime.launch import local_world_size
from kinescan.runtime.torch_internals import ended_worker
from kinescan.settings import renamed

StartMethod = Literal["auto", "spawn", "forkserver", "fork"]

_READ_NOW: weakref.WeakSet[Any] = weakref.WeakSet()
"""Iterators of DataLoaders in this process whose workers are asked whether they live when an error comes."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How samples are read; what they show does not depend on it.

    Attributes:
        batch_size: videos in a batch of each process.
        num_workers: processes that read videos, each with one thread; 0 reads in the main process.
        prefetch_batches: batches that each worker prepares ahead.
        start_method: how workers start; "auto" is "forkserver" where there is one and "spawn" elsewhere. Scripts that
            read with workers need `if __name__ == "__main__":` around what they do.
    """

    batch_size: int = 8
    num_workers: int = 2
    prefetch_batches: int = 2
    start_method: StartMethod = "auto"

    def __post_init__(self) -> None:
        check_types(self)
        check_most(self, batch_size=2**20, num_workers=1024, prefetch_batches=1024)
        for name, least in (("batch_size", 1), ("num_workers", 0), ("prefetch_batches", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")


@renamed(places="positions")
@dataclass(frozen=True)
class Batch:
    """Samples of several videos.

    Attributes:
        clips: [B, T, 3, size, size], or [B, V, T, 3, size, size] in test; float32, or uint8 with `left`; [0] where no
            video could be read.
        labels: [B] int64; of windows with a label for each frame, [B, T] int64, or [B, T, K] float32 for classes that
            overlap.
        item_indices: indices of the B videos among the data set's items.
        unreadable: videos of this batch that could not be read; they are not among the B.
        positions: of the B videos in the batch as it was ordered, before unreadable ones were left out: `mix` pairs by
            them, and they are the rows whose state is carried. None where nothing was left out.
        frame_seconds: in training, of each of the B clips, from frame to frame; empty where it is unknown.
        starts: of each of the B, whether a state that is carried from batch to batch begins anew; empty for all.
        left: of each of the B in bytes, what `finish_clips` is still to do; empty where the clips are finished.
        said: what the worker that read them has for the log of the main process, as `take_said` gives it.
    """

    clips: torch.Tensor
    labels: torch.Tensor
    item_indices: list[int]
    unreadable: list[Unreadable]
    positions: list[int] | None = None
    frame_seconds: list[float] = field(default_factory=list)
    starts: list[bool] = field(default_factory=list)
    left: list[SampledAugmentation] = field(default_factory=list)
    said: list[tuple[str, str]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Batch(clips={list(self.clips.shape)}, {len(self.unreadable)} unreadable)"

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, for faster copies to a GPU."""
        left = [own.pin_memory() for own in self.left]
        return replace(self, clips=self.clips.pin_memory(), labels=self.labels.pin_memory(), left=left)


VIDEOS_A_WORKER = 32
"""A worker takes seconds to start: with fewer videos for each, they are read sooner without it."""
MOST_USUAL_WORKERS = 8


def usual_workers(num_videos: int) -> int:
    """How many processes read videos to evaluate on, by default: at most one for each core that this process may use.

    Example:
        >>> usual_workers(10)
        0
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = local_world_size()
    return min(cores // processes or 1, MOST_USUAL_WORKERS, num_videos // (VIDEOS_A_WORKER * processes))


def check_room(dataset: VideoDataset | WindowDataset, config: LoaderConfig, num_batches: int) -> None:
    """Passes where the batches of worker processes fit into shared memory.

    Args:
        dataset: what they read.
        config: how.
        num_batches: of an epoch, of this process.

    Raises:
        ConfigError: they do not; says how much is needed and how to get it.
    """
    if not config.num_workers:
        return
    batch_bytes = dataset.clip_dtype.itemsize * min(config.batch_size, len(dataset)) * math.prod(dataset.clip_shape)
    # Each worker prepares so many ahead, and one more is in use.
    at_once = min(config.num_workers * config.prefetch_batches, num_batches) + 1
    of_views = ("evaluation.views",) if isinstance(dataset, VideoDataset) and dataset.mode == "test" else ()
    check_shared_memory(batch_bytes, at_once, lowered=(*of_views, *LOWERED))


class VideoLoader:
    """Batches of one epoch after another; iterate it once per epoch.

    The workers live on between epochs. `len` counts the batches that the next iteration gives, in every process alike.

    With several processes, each takes its part of every global batch of `num_processes * batch_size` videos: laid one
    after another, the parts are the batch that one process with that batch size would give. Each video of the epoch is
    given by exactly one process. The last global batch may be smaller: it is shared out evenly, so that a process may
    get fewer videos than the others, or an empty batch.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from kinescan.data import AugmentConfig, TrainTransform, VideoItem, write_video
        >>> from kinescan.preprocessing import Preprocessing
        >>> settings = Preprocessing(num_frames=4, size=32)
        >>> transform = TrainTransform(settings, AugmentConfig())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/a.mp4", torch.zeros(8, 3, 24, 32, dtype=torch.uint8), fps=8)
        ...     items = [VideoItem(Path(folder, name), 0, name) for name in ("a.mp4", "lost.mp4")]
        ...     dataset = VideoDataset(items, ["jump"], transform, preprocessing=settings, mode="train")
        ...     loader = make_loader(dataset, LoaderConfig(num_workers=0), shuffle=True, seed=0)
        ...     for epoch in range(2):
        ...         loader.set_epoch(epoch)
        ...         for batch in loader:
        ...             print(batch)
        Batch(clips=[1, 4, 3, 32, 32], 1 unreadable)
        Batch(clips=[1, 4, 3, 32, 32], 1 unreadable)
    """

    def __init__(
        self,
        dataset: VideoDataset | WindowDataset,
        config: LoaderConfig,
        *,
        shuffle: bool,
        seed: int,
        num_processes: int = 1,
        process_index: int = 0,
        num_passes: int = 1,
    ) -> None:
        if not 0 <= process_index < num_processes:
            raise ConfigError(f"process_index must lie in [0, {num_processes}), got {process_index}.")
        if num_passes < 1:
            raise ConfigError(f"num_passes must be at least 1, got {num_passes}.")
        self.dataset, self.config = dataset, config
        self.global_batch_size = num_processes * config.batch_size
        self._order: _BatchOrder | RowOrder
        if isinstance(dataset, WindowDataset) and isinstance(dataset.plan, FollowedWindows):
            self._order = RowOrder(
                dataset.plan, config.batch_size, num_processes=num_processes, process_index=process_index
            )
        else:
            self._order = _BatchOrder(
                len(dataset),
                config.batch_size,
                shuffle=shuffle,
                seed=seed,
                num_processes=num_processes,
                process_index=process_index,
                num_passes=num_passes,
            )
        self._num_ordered = len(dataset) * num_passes
        check_room(dataset, config, len(self._order))
        workers = config.num_workers
        self._loader: torch.utils.data.DataLoader[Sample | Unreadable] = torch.utils.data.DataLoader(
            dataset,
            batch_sampler=self._order,
            num_workers=workers,
            # what `VideoDataset.__getitems__` gives, whole
            collate_fn=cast(Any, collate),
            prefetch_factor=config.prefetch_batches if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=start_worker,
            multiprocessing_context=worker_context(config.start_method) if workers else None,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )

    def set_epoch(self, epoch: int, *, start_item: int = 0) -> None:
        """Which epoch the next iteration gives, and from where.

        Args:
            epoch: from 0; decides order and augmentation.
            start_item: videos of the epoch's order to leave out at its start, all processes together, for resuming in
                its middle: batches done times `global_batch_size`.

        Raises:
            ConfigError: start_item is negative or beyond the epoch's order.
        """
        if not 0 <= start_item <= self._num_ordered:
            raise ConfigError(f"start_item must lie in [0, {self._num_ordered}], got {start_item}.")
        self._order.epoch, self._order.start_item = epoch, start_item

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the epoch.

        Raises:
            WorkerError: a worker was ended by the system.
        """
        batches = iter(self._loader)
        _READ_NOW.add(batches)
        try:
            while (batch := _next_batch(batches)) is not None:
                say_again(batch.said)
                yield batch
        finally:
            _READ_NOW.discard(batches)


def make_loader(
    dataset: VideoDataset | WindowDataset,
    config: LoaderConfig,
    *,
    shuffle: bool,
    seed: int,
    epoch: int = 0,
    start_item: int = 0,
    num_processes: int = 1,
    process_index: int = 0,
    num_passes: int = 1,
) -> VideoLoader:
    """Batches of a data set: the same ones, in the same order, for any number of workers and processes.

    Args:
        dataset: the videos.
        config: batches and workers.
        shuffle: a new order in each epoch, by (seed, epoch); otherwise the order of the items.
        seed: of the order; augmentation depends on the data set's own seed.
        epoch: of the first iteration.
        start_item: where its order starts.
        num_processes: that train or evaluate together, each with a loader of its own (see `VideoLoader`).
        process_index: which of them this is.
        num_passes: over the videos in an epoch, each with an order and augmentations of its own. Windows that are
            followed from batch to batch have one.

    Raises:
        ConfigError: start_item, process_index or num_passes is out of range, the start method does not exist on this
            system, or the batches of the workers do not fit into shared memory.
    """
    loader = VideoLoader(
        *(dataset, config),
        shuffle=shuffle,
        seed=seed,
        num_processes=num_processes,
        process_index=process_index,
        num_passes=num_passes,
    )
    loader.set_epoch(epoch, start_item=start_item)
    return loader


def collate(gathered: Samples) -> Batch:
    """Samples as one batch; unreadable videos are listed beside them."""
    samples = gathered.samples
    positions = [position for position, sample in enumerate(samples) if isinstance(sample, Sample)]
    read = [sample for sample in samples if isinstance(sample, Sample)]
    whole = len(read) == len(samples)
    return Batch(
        clips=torch.empty(0) if not read else gathered.clips if whole else gathered.clips[positions],
        labels=_stacked([sample.label for sample in read]),
        item_indices=[sample.item_index for sample in read],
        unreadable=[sample for sample in samples if isinstance(sample, Unreadable)],
        positions=None if whole else positions,
        frame_seconds=[sample.frame_seconds for sample in read],
        starts=[sample.starts for sample in read],
        left=[sample.left for sample in read if sample.left is not None],
        said=take_said(),
    )


def _stacked(labels: Sequence[int | torch.Tensor]) -> torch.Tensor:
    if any(isinstance(label, torch.Tensor) for label in labels):
        return torch.stack([torch.as_tensor(label) for label in labels])
    return torch.tensor(labels, dtype=torch.int64)


class _BatchOrder:
    """Batches of (pass, item): with the pass over the items beside it, an index means the same in every process.

    Passes are counted over all epochs, `num_passes` in each; with one in each, they are the epochs.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        num_processes: int,
        process_index: int,
        num_passes: int,
    ) -> None:
        self.num_items, self.batch_size, self.shuffle, self.seed = num_items, batch_size, shuffle, seed
        self.num_processes, self.process_index = num_processes, process_index
        self.num_passes = num_passes
        self.epoch, self.start_item = 0, 0

    def __len__(self) -> int:
        left = self.num_items * self.num_passes - self.start_item
        return -(-left // (self.num_processes * self.batch_size))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        ordered: list[tuple[int, int]] = []
        for number in range(self.epoch * self.num_passes, (self.epoch + 1) * self.num_passes):
            order = torch.arange(self.num_items)
            if self.shuffle:
                generator = torch.Generator().manual_seed(stable_seed(self.seed, number))
                order = torch.randperm(self.num_items, generator=generator)
            ordered += [(number, index) for index in order.tolist()]
        left = ordered[self.start_item :]
        for first in range(0, len(left), self.num_processes * self.batch_size):
            yield self._own_part(left[first : first + self.num_processes * self.batch_size])

    def _own_part(self, together: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """This process's part of a global batch; parts start at even positions where they can, since `mix` pairs."""
        unit = 2 if self.batch_size % 2 == 0 else 1
        num_units = -(-len(together) // unit)
        start, end = (num_units * index // self.num_processes for index in (self.process_index, self.process_index + 1))
        return together[unit * start : unit * end]


def _next_batch(batches: Iterator[Batch]) -> Batch | None:
    """The next batch; None after the last one."""
    try:
        return next(batches)
    except StopIteration:
        return None
    except RuntimeError as error:
        lost = worker_lost(error)
        if lost is None:
            raise
        raise lost from error
    except (OSError, EOFError) as error:  # the connection to a worker that ends while it hands a batch on
        ended = ended_worker(batches)
        if ended is None:
            raise
        raise _worker_error(ended) from error


def worker_lost(error: RuntimeError) -> WorkerError | None:
    """What to raise instead of `error` where a worker process has ended; None where all of them live, and for our own.

    torch raises a plain RuntimeError for a worker that the system ended, in the middle of whatever the main process
    does. So the workers are asked, and not the error.
    """
    if isinstance(error, KinescanError):
        return None
    for batches in list(_READ_NOW):
        ended = ended_worker(batches, seconds=0.0)
        if ended is not None:
            _READ_NOW.discard(batches)  # told once: a later error of this process has another cause
            return _worker_error(ended)
    return None


def _worker_error(ended: str) -> WorkerError:
    script = _unguarded_script()
    guard = f' Or {script} starts work when it is imported: put the call below `if __name__ == "__main__":`.'
    return WorkerError(
        f"a process that reads videos was ended by the system ({ended}), most likely for lack of memory. "
        f"Lower loader.num_workers, loader.prefetch_batches or loader.batch_size.{guard * bool(script)}"
    )


def _unguarded_script() -> str | None:
    """The name of the user's script, which every new process imports, where it does not look at `__name__`."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is None or not file.endswith(".py"):
        return None
    try:
        return None if "__name__" in Path(file).read_text(encoding="utf-8") else Path(file).name
    except (OSError, UnicodeDecodeError):
        return None


def worker_context(start_method: StartMethod = "auto") -> BaseContext:
    """How worker processes are started here.

    Args:
        start_method: see `LoaderConfig`.

    Raises:
        ConfigError: the method does not exist on this system.
    """
    there = multiprocessing.get_all_start_methods()
    method: str = start_method
    if method == "auto":
        method = "forkserver" if "forkserver" in there else "spawn"
    if method not in there:
        raise ConfigError(f"start_method {start_method!r} does not exist here. Allowed: auto, {', '.join(there)}.")
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        # imported once, for the workers of this loader and the next ones
        context.set_forkserver_preload([__name__])
    return context


def start_worker(_: int = 0) -> None:
    """What a worker process does first."""
    tell_later()
    torch.set_num_threads(1)
    # Ctrl-C is for the main process, which ends the workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        # So is a closed terminal.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _end_with_parent()


def _end_with_parent() -> None:
    """Ends this worker process as soon as the one that reads from it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, name="end with parent", daemon=True).start()
