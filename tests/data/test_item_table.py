"""A table of videos is the list that it was made of, in every process, without a copy in each."""

import multiprocessing
import os
import pickle
import sys
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pytest

from kinescan.data.item_table import LEAST_ITEMS, ItemTable, shared_items
from kinescan.data.listing import VideoItem


def _items(number: int) -> list[VideoItem]:
    return [
        VideoItem(Path(f"/data/ü {i % 7}/{i:07d}.mp4"), i % 700, f"ü {i % 7}/{i:07d}.mp4", f"p{i}" if i % 3 else "")
        for i in range(number)
    ]


def test_a_table_is_its_list() -> None:
    items = [*_items(50), VideoItem(Path(os.fsdecode(b"\xff.mp4")), 2, os.fsdecode(b"\xff.mp4"))]
    table = ItemTable(items)
    assert list(table) == items
    assert table == items
    assert table != items[:-1]
    assert [table[index] for index in (0, 7, -1, 50)] == [items[0], items[7], items[-1], items[50]]
    assert table[3:40:5] == items[3:40:5]
    assert (len(table), items[4] in table) == (51, True)
    assert repr(table) == "ItemTable(51 videos)"
    assert pickle.loads(pickle.dumps(table)) == items
    assert list(ItemTable([])) == []
    for wrong in (51, -52):
        with pytest.raises(IndexError):
            table[wrong]


def test_few_are_kept_as_they_are() -> None:
    assert shared_items(_items(3)) == tuple(_items(3))
    assert isinstance(shared_items(_items(LEAST_ITEMS)), ItemTable)


def _tables_in_memory() -> set[int]:
    """Inodes of the mapped files of tables in this process."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return {int(line.split()[4]) for line in maps if "kinescan items" in line}


def _look(table: ItemTable, queue: "SimpleQueue[tuple[int, bool, set[int]]]") -> None:
    found = [table[index].video_id for index in range(0, len(table), 97)]
    queue.put((len(found), table[len(table) - 1] == _items(len(table))[-1], _tables_in_memory()))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mapped files are listed as Linux does")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_share_one_table(method: str) -> None:
    table, context = ItemTable(_items(20_000)), multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=_look, args=(table, queue))
    process.start()
    number, same, mapped = queue.get()
    process.join()
    assert (number, same, process.exitcode) == (-(-20_000 // 97), True, 0)
    # the same file, and no other one beside it
    assert len(mapped & _tables_in_memory()) == len(mapped) > 0
