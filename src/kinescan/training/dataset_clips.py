from collections.abc import Iterable
from dataclasses import replace

from kinescan.data.datasets import VideoDataset
from kinescan.data.loader import Batch, LoaderConfig, make_loader
from kinescan.data.memory import VideoMemory
from kinescan.data.readers.lists import files_there
from kinescan.data.stored import read_anew
from kinescan.data.window_dataset import WindowDataset
from kinescan.runtime.addresses import shown_path
from kinescan.runtime.distributed import Processes


class DatasetClips:
    """Training batches of a data set, for `fit`; its workers live on from epoch to epoch.

    Args:
        dataset: videos with mode="train", or windows of long videos.
        config: batches and workers.
        seed: of the order.
        processes: those that every batch is divided between; None for this one alone.
        num_passes: over the videos in an epoch; of windows, one.
    """

    def __init__(
        self,
        dataset: VideoDataset | WindowDataset,
        config: LoaderConfig,
        *,
        seed: int,
        processes: Processes | None = None,
        num_passes: int = 1,
    ) -> None:
        self._dataset = dataset
        processes = processes or Processes()
        self._process = processes.index, processes.count
        if self._memory is not None:
            # Nothing is left to decode, and workers would each take a copy.
            config = replace(config, num_workers=0)
        # Augmented and normalised where they are trained on; on a CPU, the workers do that.
        dataset.in_bytes = processes.device.type != "cpu"
        self._loader = make_loader(
            dataset,
            config,
            shuffle=True,
            seed=seed,
            num_processes=processes.count,
            process_index=processes.index,
            num_passes=num_passes,
        )
        self.batch_size = config.batch_size
        self.num_batches = len(self._loader)
        self.num_classes = len(dataset.classes)

    def batches(self, epoch: int, first_batch: int) -> Iterable[Batch]:
        """The batches of an epoch from `first_batch` on."""
        self._loader.set_epoch(epoch, start_item=first_batch * self._loader.global_batch_size)
        return self._loader

    @property
    def num_items(self) -> int:
        """Videos in all."""
        return len(self._dataset.items)

    @property
    def _memory(self) -> VideoMemory | WindowDataset | None:
        """The videos, where they are in memory."""
        if isinstance(self._dataset, VideoMemory):
            return self._dataset
        return self._dataset if isinstance(self._dataset, WindowDataset) and self._dataset.in_memory else None

    def fill(self) -> None:
        """Reads the videos into memory, where that is where they belong; without it, the first batch does."""
        if self._memory is not None:
            self._memory.fill(self._process)

    def absent(self) -> list[int]:
        """Items whose files are not there now."""
        there = files_there([item.path for item in self._dataset.items])
        return [index for index, found in enumerate(there) if not found]

    def is_readable(self, item_index: int) -> bool:
        """Whether an item's file can be read now."""
        read_anew(self._dataset.items[item_index].path)
        return self._dataset.is_readable(item_index)

    def path(self, item_index: int) -> str:
        """The video of an item."""
        return shown_path(self._dataset.items[item_index].path)
