"""Several streams of one model, pushed and asked as one batch, against one by one.

Run: OMP_NUM_THREADS=1 python benchmarks/statekv_together.py         (two minutes on one core)

A decoder of random weights whose weights (50 MB) do not fit into a core's caches, few tokens a frame, so that reading
weights weighs. Both ways are timed in turn, frame by frame, after their states are full; answers of a few tokens
likewise. Parity first: first logits of answers agree to 1e-4, tokens are the same. CPU time of one thread; nothing is
claimed about a GPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import measure
from kinescan.vlm import ask_together, open_stream, push_together
from statekv_model import Sizes

SIZES = Sizes(layers=4, width=512, heads=8, key_heads=2, frame_tokens=4)
BUDGET, QUESTION, ANSWER = 64, [1, 2, 3], 8
COUNTS = (1, 2, 4, 8)
SEED = 0
TOLERANCE = 1e-4


def timed(run: Callable[[], Any]) -> float:
    before = time.process_time()
    run()
    return time.process_time() - before


def compare(model: Any, count: int, frames: int) -> dict[str, Any]:
    """Milliseconds for a frame, and for an answer's token, of each of so many streams."""
    generator = torch.Generator().manual_seed(SEED)
    single = [open_stream(model, budget=BUDGET) for _ in range(count)]
    together = [open_stream(model, budget=BUDGET) for _ in range(count)]
    seconds: dict[str, list[float]] = {name: [] for name in ("push", "push_together", "ask", "ask_together")}

    def push_single(parts: list[Any]) -> None:
        for stream, part in zip(single, parts, strict=True):
            stream.push(part)

    for index in range(BUDGET // SIZES.frame_tokens + frames):
        parts = [SIZES.features(generator) for _ in range(count)]
        taken = timed(lambda: push_single(parts)), timed(lambda: push_together(together, parts))  # noqa: B023
        if index >= BUDGET // SIZES.frame_tokens:
            seconds["push"].append(taken[0])
            seconds["push_together"].append(taken[1])
    found: dict[str, Any] = {}

    def ask_single() -> None:
        found["single"] = [stream.ask(QUESTION, max_new_tokens=ANSWER) for stream in single]

    def ask_all() -> None:
        found["together"] = ask_together(together, [QUESTION] * count, max_new_tokens=ANSWER)

    for _ in range(5):
        seconds["ask"].append(timed(ask_single))
        seconds["ask_together"].append(timed(ask_all))
    apart = 0.0
    for one, other in zip(found["single"], found["together"], strict=True):
        apart = max(apart, float((one.logits - other.logits).abs().max()))
        if apart > TOLERANCE or one.token_ids != other.token_ids:
            raise SystemExit(f"together differs from one by one by {apart}: no speed is reported.")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "streams": count,
        "largest_difference_of_logits": apart,
        "milliseconds_of_a_frame": {name: 1000 * medians[name] / count for name in ("push", "push_together")},
        "milliseconds_of_an_answers_token": {
            name: 1000 * medians[name] / count / ANSWER for name in ("ask", "ask_together")
        },
        "push_together_over_push": medians["push_together"] / medians["push"],
        "ask_together_over_ask": medians["ask_together"] / medians["ask"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--streams", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--folder", type=Path, default=measure.RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = SIZES.build(SEED)
    rows = [compare(model, count, given.frames) for count in given.streams]
    settings = {
        **vars(SIZES),
        "budget": BUDGET,
        "parameters_of_the_decoder": sum(part.numel() for part in model.model.language_model.parameters()),
        "clock": "process CPU time, one thread",
    }
    packages = (*measure.PACKAGES, "transformers")
    path = measure.write_result(
        "statekv_together_cpu",
        seed=SEED,
        n=given.frames,
        settings=settings,
        results={"rows": rows},
        folder=given.folder,
        packages=packages,
    )
    for row in rows:
        print(row)
    print(path)


if __name__ == "__main__":
    main()
