"""Memory of a long list of videos in each worker process: a list in each, against one table that all see.

Run: OMP_NUM_THREADS=1 python benchmarks/item_memory.py            (about two minutes)

What is counted is a worker's own memory (private pages, as Linux tells them) after it looked at items all over the
list, less that of a worker with an empty list.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
from kinescan.data.item_table import ItemTable
from kinescan.data.listing import VideoItem

NAME = "item_memory"
SEED = 0
METHODS = ("fork", "spawn", "forkserver")


def make_items(number: int) -> list[VideoItem]:
    """Paths and ids as those of Kinetics-700."""
    return [
        VideoItem(
            Path(f"/data/kinetics700/train/class {i % 700:03d}/{i:011x}_000012_000022.mp4"), i % 700, f"{i:011x}_12"
        )
        for i in range(number)
    ]


def own_bytes() -> int:
    """Memory that this process alone has: private pages, without those of the table's file, which belong to nobody."""
    total, counts = 0, True
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if " kB" not in line and "-" in line.split(" ")[0]:
            counts = "memfd:kinescan" not in line
        elif counts and line.startswith(("Private_Dirty", "Private_Clean")):
            total += int(line.split()[1]) * 1024
    return total


def look(items: Sequence[VideoItem], queue: Any) -> None:
    before = own_bytes()
    numbers = range(0, len(items), 7)
    started = time.perf_counter()
    letters = sum(len(items[index].video_id) for index in numbers)
    seconds = time.perf_counter() - started
    queue.put((letters, own_bytes(), own_bytes() - before, seconds / max(1, len(numbers))))


def one(kind: str, method: str, number: int) -> dict[str, Any]:
    """A worker's memory and time, in a process that holds nothing else."""
    listed = tuple(make_items(number)) if kind != "nothing" else ()
    items: Sequence[VideoItem] = ItemTable(listed) if kind == "one table" else listed
    if kind == "one table":
        assert items[number // 2] == listed[number // 2]
        del listed
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    started = time.perf_counter()
    process = context.Process(target=look, args=(items, queue))
    process.start()
    _, private, grown, seconds = queue.get()
    total = time.perf_counter() - started
    process.join()
    return {
        # a forked process begins with its parent's pages, and makes those that it touches its own
        "bytes": grown if method == "fork" else private,
        "start_seconds": round(total, 2),
        "microseconds_an_item": round(1e6 * seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--one", nargs=2)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(*args.one, args.items)))
        return
    results: dict[str, Any] = {}
    for method in METHODS:
        rows = {}
        for kind in ("nothing", "a list in each", "one table"):
            command = [sys.executable, __file__, "--items", str(args.items), "--one", kind, method]
            rows[kind] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        empty = rows.pop("nothing")["bytes"]
        for row in rows.values():
            row["MiB_of_a_worker"] = round(max(0, row.pop("bytes") - empty) / 2**20, 1)
        results[method] = rows
        print(method, json.dumps(rows), flush=True)
    measure.write_result(NAME, seed=SEED, n=1, settings={"items": args.items}, results=results)


if __name__ == "__main__":
    main()
