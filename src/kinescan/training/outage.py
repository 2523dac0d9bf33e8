"""Tells broken files, which a run leaves out, from a storage that is gone, which ends it."""

import logging
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from kinescan.data.datasets import Unreadable
from kinescan.data.loader import Batch
from kinescan.errors import VideoError
from kinescan.runtime.addresses import address_of
from kinescan.runtime.distributed import Processes
from kinescan.training.clips import ClipSource, StoredClips

logger = logging.getLogger(__name__)

_TRIED = 4
"""Other videos that are tried before a first batch without a clip is called an outage."""


class OutageWatch:
    """Looks at every batch with unreadable videos; knows which files were there when the run began.

    Args:
        clips: the clip source; nothing is watched where it does not know its files.
        processes: that train together; all call every method.
        absent: items whose files were not there when the run began; None looks now.

    Attributes:
        absent: the same; None where nothing is watched.
    """

    def __init__(self, clips: ClipSource, processes: Processes, absent: list[int] | None = None) -> None:
        self._clips = clips
        self._stored = clips if isinstance(clips, StoredClips) else None
        self._processes = processes
        self._readable: dict[str, int] = {}
        self._was_read = bytearray(self._stored.num_items if self._stored is not None else 0)
        if absent is None and self._stored is not None:
            absent = processes.broadcast(self._stored.absent())
        self.absent = absent
        self._absent = frozenset(absent or ())

    def note_readable(self, parts: Sequence[Batch], unreadable: dict[str, str]) -> None:
        """Remembers a video that could be read, and takes those that can be read again from the list.

        Args:
            parts: of the batch in this process.
            unreadable: path -> reason of videos that could not be read so far; changed.
        """
        indices = [int(index) for part in parts for index in part.item_indices]
        if self._stored is not None and indices:
            self._readable[_store(self._clips.path(indices[0]))] = indices[0]
            for index in indices:
                self._was_read[index] = True
        if not unreadable:
            return
        own = [self._clips.path(index) for index in indices]
        for path in {path for paths in self._processes.gather(own) for path in paths} & unreadable.keys():
            logger.info("can be read again: %s", path)
            del unreadable[path]

    def note_unreadable(self, parts: Sequence[Batch], unreadable: dict[str, str]) -> None:
        """Lists the videos that could not be read, each once; every process learns of them.

        Args:
            parts: of the batch in this process.
            unreadable: path -> reason of videos that could not be read so far; changed.
        """
        own = {problem.path: problem.reason for batch in parts for problem in batch.unreadable}
        for met in self._processes.gather(own):
            for path, reason in met.items():
                if path not in unreadable and self._processes.is_main:
                    logger.warning("left out, cannot be read: %s: %s", path, reason)
                unreadable.setdefault(path, reason)

    def check(self, parts: Sequence[Batch], known: frozenset[str], *, any_clip: bool) -> None:
        """Passes when the unreadable videos of a batch are broken files, one by one.

        A store is not asked for all of its files when the run begins: one there is gone where this run has read it
        before, or where the store gives out no other one.

        Args:
            parts: of the batch in this process.
            known: paths of videos that were unreadable before.
            any_clip: whether a process got a clip of this batch.

        Raises:
            VideoError: files that were there when the run began are gone, or nothing can be read any more.
        """
        if self._stored is None:
            return
        unreadable = [problem for part in parts for problem in part.unreadable]
        lost = [
            problem
            for problem in unreadable
            if problem.gone and problem.item_index not in self._absent and problem.path not in known
        ]
        told = [(entry.path, entry.reason, entry.item_index) for entry in lost]
        found = [entry for own in self._processes.gather(told) for entry in own]
        gone = [(path, reason) for path, reason, _ in found if not _store(path)]
        gone += self._gone_at_addresses([entry for entry in found if _store(entry[0])], unreadable)
        if gone:
            (path, reason), number = gone[0], len(gone)
            raise VideoError(
                path, f"{reason}; {number} files of this batch that were there when the run began are gone"
            )
        if not any_clip and not any(self._processes.gather(self._reads_another(unreadable))):
            problem = next(entry for own in self._processes.gather(unreadable) for entry in own)
            raise VideoError(problem.path, f"{problem.reason}; and no other video can be read now")

    def _gone_at_addresses(
        self, lost: Sequence[tuple[str, str, int]], unreadable: Sequence[Unreadable]
    ) -> list[tuple[str, str]]:
        """Path and reason of those that this run has read before, or whose store gives out nothing else."""
        if not lost:
            return []
        read = self._processes.gather([bool(self._was_read[index]) for _, _, index in lost])
        were_read = [any(of_one) for of_one in zip(*read, strict=True)]
        stores = sorted({_store(path) for (path, _, _), was_read in zip(lost, were_read, strict=True) if not was_read})
        silent = {store for store in stores if not any(self._processes.gather(self._reads_another(unreadable, store)))}
        return [
            (path, reason)
            for (path, reason, _), was_read in zip(lost, were_read, strict=True)
            if was_read or _store(path) in silent
        ]

    def _reads_another(self, unreadable: Sequence[Unreadable], store: str | None = None) -> bool:
        """Whether a video beside those of the batch can be read: one that could be read before, or one of a few.

        Args:
            unreadable: videos of the batch.
            store: where it lies, as `_store` says; None: anywhere.
        """
        assert self._stored is not None
        known = [index for where, index in self._readable.items() if store in (None, where)]
        if known:
            return any(self._stored.is_readable(index) for index in known)
        inside = self._absent | {problem.item_index for problem in unreadable}
        return any(map(self._stored.is_readable, islice(self._others(inside, store), _TRIED)))

    def _others(self, inside: frozenset[int], store: str | None) -> Iterator[int]:
        """Items but those inside, the first ones far from each other; of a store, where one is named."""
        assert self._stored is not None
        number = self._stored.num_items
        step = max(1, number // _TRIED)
        for index in chain.from_iterable(range(first, number, step) for first in range(step)):
            if index not in inside and store in (None, _store(self._clips.path(index))):
                yield index


def _store(path: str) -> str:
    """The server or bucket that a video lies at; empty on this machine."""
    address = address_of(path)
    return "" if address is None else "/".join(address.split("/", 3)[:3])
