"""An hour of a camera's recording by `kinescan ask --watch`: resident memory of the process, minute by minute.

Run: OMP_NUM_THREADS=1 python benchmarks/statekv_hour.py             (some twenty minutes on one core)
Aim: with a limit, the process is no larger at the end than after its first third, but for 1 %.

The recording is made here: small, a square that wanders over a dark ground with noise, five frames a second. The model
has random weights (three layers of width 64, four tokens a frame and the text around each); the command is the one that
a user types, run as a process of its own, whose resident memory is read every two seconds. Three ways in turn: the file
with a limit and with `--save` beside it, the file without a limit, to show what a limit spares, and the first as a live
source (file://). Answers are those of random weights: only their number and
times are looked at.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

import measure
from kinescan.data.video.writer import write_frames
from statekv_model import Sizes, save_folder

SIZES = Sizes(layers=3, width=64, heads=4, key_heads=2, frame_tokens=4, spread=0.15, vocabulary=320)
HEIGHT, WIDTH, RATE = 96, 128, 5
LIMIT_TOKENS, BUDGET, EVERY, ANSWER = 2000, 256, 30, 8
READ_SECONDS = 2.0
SEED = 0
LIMIT = ["--memory", f"{LIMIT_TOKENS} tokens"]


def frames(seconds: int) -> Iterator[torch.Tensor]:
    """uint8 [3, H, W], one after another."""
    generator = torch.Generator().manual_seed(SEED)
    top, left = HEIGHT / 2, WIDTH / 2
    for _ in range(seconds * RATE):
        step = torch.randn(2, generator=generator) * 3
        top, left = (top + float(step[0])) % (HEIGHT - 16), (left + float(step[1])) % (WIDTH - 16)
        shown = torch.randint(20, 30, (1, HEIGHT, WIDTH), generator=generator).expand(3, -1, -1).clone()
        shown[:, int(top) : int(top) + 16, int(left) : int(left) + 16] = 220
        yield shown.to(torch.uint8)


def watched(source: str, model: Path, *options: str) -> dict[str, Any]:
    """The command with these options: resident bytes over time, and its answers."""
    command = [sys.executable, "-m", "kinescan", "ask", source, "--model", str(model), "--watch", "What moves?"]
    command += ["--every", f"{EVERY}s", "--max-new-tokens", str(ANSWER), "--budget", str(BUDGET), "--json"]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        child = subprocess.Popen([*command, "--device", "cpu", *options], stdout=out, stderr=said)
        process, readings, cpu_seconds = psutil.Process(child.pid), [], 0.0
        while child.poll() is None:
            try:
                used = process.cpu_times()
                readings.append(process.memory_info().rss)
                cpu_seconds = used.user + used.system
            except psutil.Error:
                break
            time.sleep(READ_SECONDS)
        child.wait()
        wall_seconds = time.perf_counter() - started
        out.seek(0)
        said.seek(0)
        if child.returncode:
            raise SystemExit(f"the command failed ({child.returncode}): {said.read()}")
        answers = [json.loads(line) for line in out.read().splitlines()]
    third = len(readings) // 3
    after = readings[third:]
    # the interpreter ends with a smaller process: its last reading is left out
    return {
        "answers": len(answers),
        "seen_seconds_of_the_last_answer": answers[-1]["seen_seconds"],
        "seconds_from_start_to_end": wall_seconds,
        "process_seconds": cpu_seconds,
        "readings": len(readings),
        "resident_bytes_of_each_twentieth": twentieths(readings[:-1]),
        "lowest_after_the_first_third": min(after[:-1]),
        "highest_after_the_first_third": max(after[:-1]),
        "end_over_first_third": mean(after[-third // 2 : -1]) / mean(after[: third // 2]),
    }


def mean(values: list[int]) -> float:
    """Of readings."""
    return sum(values) / len(values)


def twentieths(readings: list[int]) -> list[int]:
    """Means of twenty parts of a run, in bytes."""
    edges = [round(part * len(readings) / 20) for part in range(21)]
    return [round(mean(readings[one:other])) for one, other in itertools.pairwise(edges) if other > one]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--folder", type=Path, default=measure.RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as kept:
        model, video = Path(kept) / "model", Path(kept) / "hour.mp4"
        save_folder(SIZES, SEED, model)
        times = [index / RATE for index in range(given.seconds * RATE)]
        write_frames(video, frames(given.seconds), size=(HEIGHT, WIDTH), fps=RATE, pts_seconds=times, crf=30)
        save = ["--save", str(Path(kept) / "hour.state")]
        ways = {
            "limit and --save": (str(video), *LIMIT, *save),
            "no limit": (str(video),),
            "limit and --save, as a live source": (f"file://{video}", *LIMIT, *save),
        }
        results: dict[str, Any] = {}
        for name, (source, *options) in ways.items():
            results[name] = watched(source, model, *options)
            print(name, results[name], flush=True)
        video_bytes = video.stat().st_size
    settings = {
        **vars(SIZES),
        "seconds_of_video": given.seconds,
        "frames_per_second_of_the_file": RATE,
        "frames_per_second_shown": 1,
        "size": [HEIGHT, WIDTH],
        "file_bytes": video_bytes,
        "memory_tokens": LIMIT_TOKENS,
        "budget": BUDGET,
        "every_seconds": EVERY,
        "tokens_of_an_answer": ANSWER,
        "read_every_seconds": READ_SECONDS,
    }
    path = measure.write_result(
        "statekv_hour_cpu",
        seed=SEED,
        n=1,
        settings=settings,
        results=results,
        folder=given.folder,
        packages=(*measure.PACKAGES, "transformers"),
    )
    print(path)


if __name__ == "__main__":
    main()
