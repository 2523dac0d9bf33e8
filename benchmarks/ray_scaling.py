"""Rows a second of `kinescan predict --engine ray` with one and with two workers, on one machine.

Run: OMP_NUM_THREADS=1 python benchmarks/ray_scaling.py            (about five minutes on a quiet machine)
Writes benchmarks/results/ray_scaling.json. Each run is the command itself, with the motion model that comes with
kinescan and a list of made videos; runs with one worker and with two take turns, so that both meet the same other work
on the machine. Before anything is timed, the rows of a run are compared with those of one process, value by value.

Everything is counted from when a quarter of the parts is written until the last is: starting Ray and loading the model
are told apart. Of each run: rows a second; rows for each second of processor time of the workers; and the processor
time of the command and of Ray's own processes. `of_linear` is rows a second of two workers over twice those of one, as
the clock says: where workers, Ray and other programs share the cores, it depends on them.

With RAY_ADDRESS set, runs join that cluster; otherwise each starts Ray.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as parquet

import measure
from kinescan.data.synthetic.motion import MotionConfig, render_motion
from kinescan.data.video import write_video
from kinescan.inference.batch_predictor import BatchPredictor
from kinescan.models.saving.shipped import MOTION, SHIPPED

NAME = "ray_scaling"
SEED = 0
UNLIKE = 12
"""Videos; the list names them again and again."""
DEADLINE_SECONDS = 1800


def make_videos(folder: Path, num_frames: int, size: int) -> list[str]:
    """A few drawn motions."""
    config = MotionConfig(num_frames=num_frames, frame_size=size, seed=SEED)
    names = []
    for index in range(UNLIKE):
        pixels = render_motion(config, "test", config.pairs[index % len(config.pairs)], index)
        names.append(f"{index:02d}.mp4")
        write_video(folder / names[-1], pixels, fps=config.fps)
    return names


@dataclass(frozen=True)
class Sample:
    """What stood at one moment of a run.

    Attributes:
        seconds: of the clock.
        parts: that were written.
        workers: process -> seconds on a core of all its threads that there ever were.
        others: process -> seconds on a core, of the command and of Ray's processes but the workers.
    """

    seconds: float
    parts: int
    workers: dict[int, float]
    others: dict[int, float]


def sample(folder: Path, command: int, started: float) -> Sample:
    workers, others = {}, {}
    for process in psutil.process_iter(["cmdline", "create_time", "cpu_times"]):
        said, cpu = " ".join(process.info["cmdline"] or []), process.info["cpu_times"]
        if not cpu:
            continue
        if not ("MapWorker" in said and process.info["create_time"] > started - 1):
            if process.pid == command or said.startswith("ray::") or "/ray/" in said:
                others[process.pid] = cpu.user + cpu.system
            continue
        workers[process.pid] = cpu.user + cpu.system
    return Sample(time.time(), len(list(folder.glob("part-*.parquet"))), workers, others)


def run(folder: Path, list_file: Path, workers: int, part_rows: int) -> dict[str, float]:
    """One command, watched."""
    command = [sys.executable, "-m", "kinescan", "predict", str(list_file), "--engine", "ray", "--output", str(folder)]
    command += ["--model", str(SHIPPED / MOTION), "--device", "cpu"]
    command += ["--set", f"ray.workers={workers}", "--set", f"ray.part_rows={part_rows}"]
    started = time.time()
    samples: list[Sample] = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            if time.time() > started + DEADLINE_SECONDS:
                process.terminate()
                raise SystemExit(f"{workers} workers were not done in {DEADLINE_SECONDS} s.")
            samples.append(sample(folder, process.pid, started))
            time.sleep(0.5)
        said = process.stderr.read() if process.stderr is not None else ""
    if process.returncode:
        raise SystemExit(f"the command failed:\n{said[-2000:]}")
    parts = len(list(folder.glob("part-*.parquet")))
    first = next(one for one in samples if one.parts >= max(parts // 4, workers))
    last = next(one for one in samples if one.parts == parts)
    if set(first.workers) != set(last.workers) or len(last.workers) != workers:
        raise SystemExit(f"workers were replaced within the run: {first.workers} {last.workers}")
    rows, seconds = (last.parts - first.parts) * part_rows, last.seconds - first.seconds
    on_core = sum(last.workers[one] - first.workers[one] for one in last.workers)
    return {
        "rows_per_second": rows / seconds,
        "rows_per_worker_cpu_second": rows / on_core,
        "cpu_seconds_of_ray_itself": sum(last.others[one] - first.others.get(one, 0.0) for one in last.others),
        "worker_cpu_seconds": on_core,
        "rows_counted": rows,
        "seconds_until_a_quarter": first.seconds - started,
        "seconds": time.time() - started,
        "load_average": os.getloadavg()[0],
    }


def rows_in(folder: Path) -> list[dict[str, Any]]:
    rows = [row for file in sorted(folder.glob("part-*.parquet")) for row in parquet.read_table(file).to_pylist()]
    return [{name: row[name] for name in ("labels", "scores", "error")} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=768)
    parser.add_argument("--part-rows", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--size", type=int, default=96)
    given = parser.parse_args()
    runs: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        names = make_videos(root, given.frames, given.size)
        listed = [names[index % len(names)] for index in range(given.rows)]
        (root / "list.txt").write_text("".join(f"{one}\n" for one in listed))
        model = str(SHIPPED / MOTION)
        alone = BatchPredictor(model, device="cpu")
        rows = dict(zip(names, alone.rows([str(root / one) for one in names]), strict=True))
        expected = [{key: rows[one][key] for key in ("labels", "scores", "error")} for one in listed]
        for repetition in range(given.repetitions):
            for workers in (1, 2) if repetition % 2 == 0 else (2, 1):
                folder = root / f"out-{repetition}-{workers}"
                found = run(folder, root / "list.txt", workers, given.part_rows)
                if rows_in(folder) != expected:
                    raise SystemExit(f"rows of {workers} workers are not those of one process.")
                runs[workers].append(found)
                print(json.dumps({"workers": workers, **found}), flush=True)
    pairs = list(zip(runs[1], runs[2], strict=True))
    speed = [two["rows_per_second"] / one["rows_per_second"] / 2 for one, two in pairs]
    cost = [two["rows_per_worker_cpu_second"] / one["rows_per_worker_cpu_second"] for one, two in pairs]
    results = {
        "parity": {"rows_that_differ_from_one_process": 0},
        **{f"{workers} workers": _medians(found) | {"runs": found} for workers, found in runs.items()},
        "of_linear": _spread(speed),
        "rows_per_worker_cpu_second_two_over_one": _spread(cost),
    }
    settings = {
        "rows": given.rows,
        "part_rows": given.part_rows,
        "video": f"{given.frames} frames of {given.size}x{given.size}, H.264",
        "model": MOTION,
        "threads_of_a_worker": 1,
    }
    packages = (*measure.PACKAGES, "ray", "pyarrow")
    print(
        measure.write_result(
            NAME, seed=SEED, n=given.repetitions, settings=settings, results=results, packages=packages
        )
    )


def _spread(values: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values), "runs": values}


def _medians(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


if __name__ == "__main__":
    main()
