"""A list of many videos in memory that all worker processes see, instead of a copy in each."""

import itertools
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from kinescan.data.listing import VideoItem

LEAST_ITEMS = 4096
"""Fewer are kept as they are."""
_TEXTS = 3
_ALIGNED = 8


class ItemTable(Sequence[VideoItem]):
    """Videos as columns of bytes and numbers in one mapped file that has no name.

    A worker process gets the open file, however it is started; nothing is left behind when the last one ends, and the
    memory does not count as /dev/shm's. An item is made when it is asked for.

    Args:
        items: the videos.

    Example:
        >>> table = ItemTable([VideoItem(Path("a.mp4"), 1, "a.mp4"), VideoItem(Path("b.mp4"), 0, "b.mp4", "p")])
        >>> len(table), table[1].path.name, table[-1].group
        (2, 'b.mp4', 'p')
    """

    def __init__(self, items: Sequence[VideoItem]) -> None:
        texts = [
            text.encode("utf-8", "surrogateescape")
            for item in items
            for text in (str(item.path), item.video_id, item.group)
        ]
        ends = np.fromiter(itertools.accumulate(map(len, texts)), dtype=np.int64, count=len(texts))
        labels = np.fromiter((item.label for item in items), dtype=np.int64, count=len(items))
        file = _nameless_file()
        for part in (ends.tobytes(), labels.tobytes()):
            _write_all(file, part)
        for first in range(0, len(texts), 2**16):
            _write_all(file, b"".join(texts[first : first + 2**16]))
        self._map(file, len(items))

    def _map(self, file: int, num_items: int) -> None:
        self._file, self._num_items = file, num_items
        self._memory = mmap.mmap(file, 0, access=mmap.ACCESS_READ) if num_items else None
        data = b"" if self._memory is None else self._memory
        self._ends: NDArray[np.int64] = np.frombuffer(data, np.int64, _TEXTS * num_items)
        self._labels: NDArray[np.int64] = np.frombuffer(data, np.int64, num_items, _TEXTS * num_items * _ALIGNED)
        self._first = (_TEXTS + 1) * num_items * _ALIGNED

    def __len__(self) -> int:
        return self._num_items

    @overload
    def __getitem__(self, index: int) -> VideoItem: ...

    @overload
    def __getitem__(self, index: slice) -> list[VideoItem]: ...

    def __getitem__(self, index: int | slice) -> VideoItem | list[VideoItem]:
        """The video at an index, or those of a slice."""
        if isinstance(index, slice):
            return [self._item(number) for number in range(*index.indices(self._num_items))]
        number = index + self._num_items if index < 0 else index
        if not 0 <= number < self._num_items:
            raise IndexError(index)
        return self._item(number)

    def _item(self, number: int) -> VideoItem:
        assert self._memory is not None
        first = _TEXTS * number
        begin = int(self._ends[first - 1]) if first else 0
        parts = []
        for end in self._ends[first : first + _TEXTS].tolist():
            data = self._memory[self._first + begin : self._first + end]
            parts.append(data.decode("utf-8", "surrogateescape"))
            begin = end
        path, video_id, group = parts
        return VideoItem(Path(path), int(self._labels[number]), video_id, group)

    def __iter__(self) -> Iterator[VideoItem]:
        return map(self._item, range(self._num_items))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(VideoItem.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ItemTable({self._num_items} videos)"

    def __reduce__(self) -> tuple[Callable[..., "ItemTable"], tuple[Any, ...]]:
        """A process that is being started gets the open file; any other pickle holds the items."""
        if os.name == "nt" or get_spawning_popen() is None:
            return ItemTable, (list(self),)
        return _opened, (DupFd(self._file), self._num_items)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


def shared_items(items: Sequence[VideoItem]) -> Sequence[VideoItem]:
    """The videos as worker processes should get them: many as a table, few as they are."""
    return tuple(items) if len(items) < LEAST_ITEMS else ItemTable(items)


def _opened(file: Any, num_items: int) -> ItemTable:
    table = ItemTable.__new__(ItemTable)
    table._map(file.detach(), num_items)
    return table


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("kinescan items")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
