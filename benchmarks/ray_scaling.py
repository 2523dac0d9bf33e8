"""Rows a second of `kinescan predict --engine ray` with one and with two workers, on one machine.

Run: OMP_NUM_THREADS=1 python benchmarks/ray_scaling.py            (about five minutes on a quiet machine)
Writes benchmarks/results/ray_scaling.json. Each run is the command itself, with the motion model that comes with
kinescan and a list of made videos; runs with one worker and with two take turns, so that both meet the same other work
on the machine. Before anything is timed, the rows of a run are compared with those of one process, value by value.

Of each run: rows a second from when a quarter of the parts is written until the last is (starting Ray and loading the
model are told apart), and the processor time that the workers took. Where other programs share the cores, speeds depend
on them; processor time does so less. With RAY_ADDRESS set, runs join that cluster; otherwise each starts Ray.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as parquet

import measure
from kinescan.data.synthetic.motion import MotionConfig, render_motion
from kinescan.data.video import write_video
from kinescan.inference.batch_predictor import BatchPredictor
from kinescan.models.saving.shipped import MOTION, SHIPPED
from kinescan.runs.predict import chosen_views

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


def run(folder: Path, list_file: Path, workers: int, part_rows: int) -> dict[str, float]:
    """One command, watched."""
    command = [sys.executable, "-m", "kinescan", "predict", str(list_file), "--engine", "ray", "--output", str(folder)]
    command += ["--model", str(SHIPPED / MOTION), "--device", "cpu"]
    command += ["--set", f"ray.workers={workers}", "--set", f"ray.part_rows={part_rows}"]
    started = time.time()
    taken: dict[int, float] = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            if time.time() > started + DEADLINE_SECONDS:
                process.terminate()
                raise SystemExit(f"{workers} workers were not done in {DEADLINE_SECONDS} s.")
            for worker in psutil.process_iter(["cmdline", "cpu_times", "create_time"]):
                found = worker.info
                if found["create_time"] > started and "MapWorker" in " ".join(found["cmdline"] or []):
                    taken[worker.pid] = found["cpu_times"].user + found["cpu_times"].system
            time.sleep(0.25)
        said = process.stderr.read() if process.stderr is not None else ""
    if process.returncode:
        raise SystemExit(f"the command failed:\n{said[-2000:]}")
    ends = sorted(path.stat().st_mtime for path in folder.glob("part-*.parquet"))
    skipped = len(ends) // 4
    rows = (len(ends) - skipped) * part_rows
    return {
        "rows_per_second": rows / (ends[-1] - ends[skipped - 1]),
        "worker_cpu_seconds": sum(taken.values()),
        "seconds_until_a_quarter": ends[skipped - 1] - started,
        "seconds": time.time() - started,
        "load_average": os.getloadavg()[0],
    }


def rows_in(folder: Path) -> list[dict[str, Any]]:
    rows = [row for file in sorted(folder.glob("part-*.parquet")) for row in parquet.read_table(file).to_pylist()]
    return [{name: row[name] for name in ("labels", "scores", "error")} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1152)
    parser.add_argument("--part-rows", type=int, default=24)
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
        alone = BatchPredictor(model, views=chosen_views([], model), device="cpu")
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
    speed = [two["rows_per_second"] / one["rows_per_second"] / 2 for one, two in zip(runs[1], runs[2], strict=True)]
    cost = [one["worker_cpu_seconds"] / two["worker_cpu_seconds"] for one, two in zip(runs[1], runs[2], strict=True)]
    results = {
        "parity": {"rows_that_differ_from_one_process": 0},
        **{f"{workers} workers": _medians(found) | {"runs": found} for workers, found in runs.items()},
        "of_linear": {"median": statistics.median(speed), "lowest": min(speed), "highest": max(speed), "runs": speed},
        "of_linear_by_cpu_seconds": {"median": statistics.median(cost), "lowest": min(cost), "highest": max(cost)},
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


def _medians(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


if __name__ == "__main__":
    main()
