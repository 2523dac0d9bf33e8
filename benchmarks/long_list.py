"""A list of a million lines, a hundred of them bad, through `kinescan predict LIST --engine ray`: memory and time.

Run: OMP_NUM_THREADS=1 python benchmarks/long_list.py            (about three minutes on a quiet machine)
What is measured is the handling of the list, and not a million predictions: the list names eight short videos again and
again, and the worker predicts each of them once and remembers its row. Every bad line goes its whole way. Then two
parts are taken away, and the same job does these two alone.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import torch

import measure
from kinescan.data.video import write_video
from kinescan.inference.batch_predictor import BatchPredictor
from kinescan.models.saving.shipped import MOTION, SHIPPED
from kinescan.runs.predict_ray import listed_paths, predict_by_ray
from kinescan.runs.ray_cluster import RaySettings

NAME = "long_list"
SEED = 0
BAD = ("nowhere/x.mp4", "http://127.0.0.1:9/x.mp4", '"a quote', "folder", "\tx", "control/\x01.mp4", "s3://", "a" * 300)


class Remembering(BatchPredictor):
    """Predicts each video once; a line that failed is tried each time."""

    def rows(self, paths: Sequence[str]) -> list[dict[str, Any]]:
        kept: dict[str, dict[str, Any]] = self.__dict__.setdefault("_rows", {})
        for path in {path for path in paths if path not in kept}:
            [row] = super().rows([path])
            if row["error"] is None:
                kept[path] = row
        return [kept[path] if path in kept else super(Remembering, self).rows([path])[0] for path in paths]


def make(root: Path, lines: int, bad: int) -> None:
    (root / "folder").mkdir()
    for index in range(8):
        pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
        write_video(root / f"{index}.mp4", pixels, fps=8)
    broken = dict(zip(random.Random(SEED).sample(range(lines), bad), (BAD * bad)[:bad], strict=True))
    with (root / "list.txt").open("w") as file:
        file.writelines(f"{broken.get(line, f'{line % 8}.mp4')}\n" for line in range(lines))


def measured(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it gives, and the time and memory of this process for it, in a process of its own."""
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()

    def run() -> None:
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        found = work()
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        grown = (after.ru_maxrss - before.ru_maxrss) / 1024
        told.put({**found, "cpu_seconds": cpu, "seconds": time.perf_counter() - started, "mib_more_at_most": grown})

    process = context.Process(target=run)
    process.start()
    found: dict[str, Any] = told.get()
    process.join()
    return found


def differing(root: Path, parts: Sequence[Path], lines: int) -> int:
    """Rows that are not those of one process; bad ones are compared by having no labels and a reason.

    Raises:
        SystemExit: rows are missing, doubled or in another order.
    """
    names = [str(root / f"{index}.mp4") for index in range(8)]
    alone = BatchPredictor(str(SHIPPED / MOTION), device="cpu", top=1).rows(names)
    expected = {row["path"]: (row["labels"], row["scores"], None) for row in alone}
    number, found = 0, 0
    for part in parts:
        for row in parquet.read_table(part).to_pylist():
            if row["number"] != number:
                raise SystemExit(f"row {number} is missing, doubled or in another place.")
            number += 1
            own = (row["labels"], row["scores"], row["error"])
            is_right = expected[row["path"]] == own if row["path"] in expected else not own[0] and bool(own[2])
            found += not is_right
    if number != lines:
        raise SystemExit(f"{number} rows of {lines}.")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--bad", type=int, default=100)
    parser.add_argument("--part-rows", type=int, default=2000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make(root, given.lines, given.bad)

        def listing() -> dict[str, Any]:
            return {"rows": len(listed_paths([root / "list.txt"]))}

        def job() -> dict[str, Any]:
            predictor = Remembering(str(SHIPPED / MOTION), device="cpu", top=1)
            report = predict_by_ray(
                [root / "list.txt"], root / "out", predictor, RaySettings(part_rows=given.part_rows)
            )
            return {"rows": report.num_rows, "with_a_reason": report.num_failed, "parts_there": report.num_skipped}

        results = {"reading the list": measured(listing), "the job": measured(job)}
        print(json.dumps(results), flush=True)
        parts = sorted((root / "out").glob("part-*.parquet"))
        for part in (parts[0], parts[-1]):
            part.unlink()
        results["the job again, two parts taken away"] = measured(job)
        results["parity"] = {"rows_that_differ_from_one_process": differing(root, parts, given.lines)}
    results["load_average"] = os.getloadavg()[0]  # type: ignore[assignment]
    settings = {"lines": given.lines, "bad": given.bad, "part_rows": given.part_rows, "workers": 1}
    packages = (*measure.PACKAGES, "ray", "pyarrow")
    print(measure.write_result(NAME, seed=SEED, n=1, settings=settings, results=results, packages=packages))


if __name__ == "__main__":
    main()
