"""Tells broken files, which a run leaves out, from a storage that is gone, which ends it."""

import logging
from collections.abc import Sequence

from kinescan.data.loader import Batch
from kinescan.errors import VideoError
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
        self._readable_item: int | None = None
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
        indices = next((part.item_indices for part in parts if len(part.item_indices)), None)
        if indices is not None:
            self._readable_item = int(indices[0])
        if not unreadable:
            return
        own = [self._clips.path(int(index)) for part in parts for index in part.item_indices]
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
        found = [
            entry for own in self._processes.gather([(entry.path, entry.reason) for entry in lost]) for entry in own
        ]
        if found:
            (path, reason), number = found[0], len(found)
            raise VideoError(
                path, f"{reason}; {number} files of this batch that were there when the run began are gone"
            )
        if not any_clip and not any(self._processes.gather(self._reads_another(unreadable))):
            problem = next(entry for own in self._processes.gather(unreadable) for entry in own)
            raise VideoError(problem.path, f"{problem.reason}; and no other video can be read now")

    def _reads_another(self, unreadable: Sequence[object]) -> bool:
        """Whether a video beside those of the batch can be read: one that could be read before, or one of a few."""
        assert self._stored is not None
        if self._readable_item is not None:
            return self._stored.is_readable(self._readable_item)
        inside = {getattr(problem, "item_index", None) for problem in unreadable}
        others = [index for index in range(self._stored.num_items) if index not in inside and index not in self._absent]
        step = max(1, len(others) // _TRIED)
        return any(self._stored.is_readable(index) for index in others[::step][:_TRIED])
