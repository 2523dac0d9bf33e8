"""A full KV cache with a limit: resident memory over many frames, and what retrieval of chunks leaves of an answer.

Run: OMP_NUM_THREADS=1 python benchmarks/statekv_memory.py           (some minutes on one core)
Aims: resident memory flat from the first time the limit is reached on; retrieval of all chunks exact.

A decoder of two layers, width 32, four tokens a frame, 10 frames a step, random weights: this shows memory and
exactness, and no accuracy. Memory is the process's resident size, read every 1,000 frames; "flat" compares the mean of
its last tenth with that of the tenth after the first. Retrieval: the largest difference of a question's first logits
from those of the whole cache, in parts of the largest logit, and how often the likeliest token is the same, over
questions of random tokens. Random weights attend to everything alike, which is the hardest case for retrieval.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import psutil
import torch

import measure
from kinescan.vlm import open_stream
from statekv_model import Sizes

WIDTH, FRAME_TOKENS, BUDGET, LIMIT = 32, 4, 64, 2048
FRAMES_OF_STEP, READ_EVERY = 10, 1000
QUESTIONS, FRAMES_OF_RETRIEVAL, CHUNK_TOKENS = 20, 500, 20
SEED = 0


SIZES = Sizes(layers=2, width=WIDTH, heads=2, key_heads=1, frame_tokens=FRAME_TOKENS, spread=0.2)


def resident_memory(model: Any, frames: int, policy: str) -> dict[str, Any]:
    """Resident memory in bytes while frames enter."""
    process, generator = psutil.Process(), torch.Generator().manual_seed(SEED)
    readings, started = [], time.process_time()
    options: dict[str, Any] = {"memory_budget": LIMIT, "memory_policy": policy, "patches_per_step": FRAMES_OF_STEP}
    with open_stream(model, budget=BUDGET, **options) as stream:
        for seen in range(FRAMES_OF_STEP, frames + 1, FRAMES_OF_STEP):
            stream.push([SIZES.features(generator) for _ in range(FRAMES_OF_STEP)])
            if seen % READ_EVERY == 0:
                readings.append(process.memory_info().rss)
        stats = stream.stats
        stream.ask([3, 5, 7], max_new_tokens=2)
    tenth = max(1, len(readings) // 10)
    before, after = (sum(part) / tenth for part in (readings[tenth : 2 * tenth], readings[-tenth:]))
    return {
        "frames": frames,
        "process_seconds": time.process_time() - started,
        "tokens": stats.num_tokens,
        "seen_tokens": stats.num_seen_tokens,
        "allocated_bytes": stats.allocated_bytes,
        "resident_bytes": readings,
        "growth_bytes": after - before,
        "growth_without_limit_bytes": 8 * tenth * READ_EVERY * FRAME_TOKENS * 2 * 2 * 16 * 4,
    }


def retrieval(model: Any) -> dict[str, dict[str, Any]]:
    """What answers from some chunks leave of those from all."""
    options: dict[str, Any] = {"budget": BUDGET, "storage": "offload", "chunk_tokens": CHUNK_TOKENS}
    generator = torch.Generator().manual_seed(SEED)
    video = [SIZES.features(generator) for _ in range(FRAMES_OF_RETRIEVAL)]
    questions = torch.randint(0, 120, (QUESTIONS, 6), generator=generator).tolist()
    chunks = -(-FRAMES_OF_RETRIEVAL * FRAME_TOKENS // CHUNK_TOKENS)
    rows: dict[str, dict[str, Any]] = {}
    whole = None
    for kept in (None, chunks, chunks // 2, chunks // 4, chunks // 16):
        with open_stream(model, retrieved_chunks=kept, **options) as stream:
            stream.push(video)
            logits = torch.stack([stream.ask(question, max_new_tokens=1).logits for question in questions])
        whole = logits if whole is None else whole
        apart = (logits - whole).abs().amax(-1) / whole.abs().amax(-1)
        rows["the whole cache" if kept is None else f"{kept} of {chunks} chunks"] = {
            "largest_difference": float(apart.max()),
            "mean_difference": float(apart.mean()),
            "same_token": float((logits.argmax(-1) == whole.argmax(-1)).float().mean()),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--policies", nargs="+", default=["uniform", "h2o", "redundancy", "merging"])
    parser.add_argument("--folder", type=Path, default=measure.RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = SIZES.build(SEED)
    results = {
        "retrieval": retrieval(model),
        "memory": {policy: resident_memory(model, given.frames, policy) for policy in given.policies},
    }
    settings = {
        "budget": BUDGET,
        "memory_tokens": LIMIT,
        "frame_tokens": FRAME_TOKENS,
        "frames_of_step": FRAMES_OF_STEP,
        "layers": 2,
        "width": WIDTH,
    }
    print(
        measure.write_result(
            "statekv_memory_cpu", seed=SEED, n=1, settings=settings, results=results, folder=given.folder
        )
    )


if __name__ == "__main__":
    main()
