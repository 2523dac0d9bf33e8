"""A stream whose decoder layers run through torch.compile, against the same stream without.

Run: OMP_NUM_THREADS=1 python benchmarks/statekv_compiled.py         (three minutes on one core, most of it compiling)

A decoder of random weights. Both streams take the same features in turn, frame by frame, after their states are full,
and answer the same question. Parity first: first logits agree to 1e-4 and tokens are the same, else nothing is
reported. CPU time of one thread, the compiler's own apart; nothing is claimed about a GPU.
"""

import argparse
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import measure
from kinescan.vlm import open_stream
from statekv_model import Sizes

SIZES = Sizes(layers=4, width=512, heads=8, key_heads=2, frame_tokens=16)
BUDGET, QUESTION, ANSWER, ANSWERS = 128, [1, 2, 3], 8, 5
SEED = 0
TOLERANCE = 1e-4


def spent() -> float:
    """CPU seconds of this process and of the compilers that it started."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def compare(frames: int) -> dict[str, Any]:
    """Milliseconds of a frame and of an answer's token, both ways, and what compiling took."""
    model, generator = SIZES.build(SEED), torch.Generator().manual_seed(SEED)
    streams = {name: open_stream(model, budget=BUDGET, compiled=name == "compiled") for name in ("plain", "compiled")}
    full = BUDGET // SIZES.frame_tokens + 2
    before = dict.fromkeys(streams, 0.0)
    seconds: dict[str, list[float]] = {f"{name} {step}": [] for name in streams for step in ("frame", "token")}
    said: dict[str, Any] = {}
    for index in range(full + frames):
        part = SIZES.features(generator)
        for name in list(streams)[:: 1 if index % 2 else -1]:
            started = spent()
            streams[name].push(part)
            taken = spent() - started
            if index < full:
                before[name] += taken
            else:
                seconds[f"{name} frame"].append(taken)
    for index in range(1 + ANSWERS):
        for name in list(streams)[:: 1 if index % 2 else -1]:
            started = spent()
            said[name] = streams[name].ask(QUESTION, max_new_tokens=ANSWER)
            taken = spent() - started
            if index:
                seconds[f"{name} token"].append(taken / ANSWER)
            else:
                before[name] += taken
    apart = float((said["plain"].logits - said["compiled"].logits).abs().max())
    if apart > TOLERANCE or said["plain"].token_ids != said["compiled"].token_ids:
        raise SystemExit(f"the compiled stream differs by {apart}: no speed is reported.")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "largest_difference_of_logits": apart,
        "seconds_before_the_state_is_full": before,
        "milliseconds_of_a_frame": {name: 1000 * medians[f"{name} frame"] for name in streams},
        "milliseconds_of_an_answers_token": {name: 1000 * medians[f"{name} token"] for name in streams},
        "compiled_over_plain_frame": medians["compiled frame"] / medians["plain frame"],
        "compiled_over_plain_token": medians["compiled token"] / medians["plain token"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=measure.RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    row = compare(given.frames)
    path = measure.write_result(
        "statekv_compiled_cpu",
        seed=SEED,
        n=given.frames,
        settings={**vars(SIZES), "budget": BUDGET, "clock": "process CPU time, one thread, compilers included"},
        results=row,
        folder=given.folder,
        packages=(*measure.PACKAGES, "transformers"),
    )
    print(row)
    print(path)


if __name__ == "__main__":
    main()
