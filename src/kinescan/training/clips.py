"""Where training clips come from."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from kinescan.data.loader import Batch


class ClipSource(Protocol):
    """Training clips in batches, in an order that depends on the epoch (and the clip source's seed) only.

    Of several processes, each has a clip source of its own: as many batches as the others, and its part of each.
    """

    @property
    def num_batches(self) -> int:
        """Batches in an epoch."""

    @property
    def batch_size(self) -> int:
        """Clips in a full batch of this process."""

    @property
    def num_classes(self) -> int:
        """Classes; every label is below it."""

    def batches(self, epoch: int, first_batch: int) -> Iterable[Batch]:
        """The batches of an epoch from `first_batch` on."""

    def path(self, item_index: int) -> str:
        """The video of an item, for messages."""


@runtime_checkable
class StoredClips(Protocol):
    """What a clip source may know of the files behind them; with it, an outage of the storage ends a run."""

    @property
    def num_items(self) -> int:
        """Videos in all."""

    def absent(self) -> list[int]:
        """Items whose files are not there now."""

    def is_readable(self, item_index: int) -> bool:
        """Whether an item's file can be read now."""
