"""PKS4 beside the bare ViT, TimeSformer, ViViT and VideoMAE on a GPU, in bfloat16: latency, step time, peak memory.

Run on a machine with a CUDA device: python benchmarks/models_gpu.py [--clips 8] [--frames 8 16 32 64]
Writes results/models_gpu.json. The models and the aim are those of models_cpu.py; device events, peers in turn.

python benchmarks/models_gpu.py --dry-run: every line of it on a CPU, with models that say nothing about speed; nothing
is written.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import measure
import models_cpu
from kinescan.profiling.device_clock import DeviceClock, compare_in_turn
from models_cpu import BASE, LARGE, Cell

NAME = "models_gpu"
DTYPE = "bfloat16"
TINY = {"image_size": 32, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def run_of(cell: Cell, name: str, clip: Tensor, sizes: dict[str, int]) -> Callable[[], Any]:
    """A forward pass or a training step of a model on the clip's device."""
    model: nn.Module = models_cpu.build(name, cell.frames, **sizes).to(clip.device)
    make = models_cpu.forward_of if cell.what == "forward" else models_cpu.training_step_of
    return make(model, clip, cell.dtype)


def measure_cell(
    cell: Cell, clips: int, repetitions: int, device: torch.device, sizes: dict[str, int]
) -> dict[str, Any]:
    """Times and memory of all models in turn; a model that does not fit is left out and named."""
    size = sizes.get("image_size", 224)
    clip = torch.randn(clips, cell.frames, 3, size, size, generator=torch.Generator().manual_seed(models_cpu.SEED))
    clock, runs, left_out = DeviceClock(device), {}, {}
    for name in cell.models:
        try:
            run = run_of(cell, name, clip.to(device), sizes)
            run()
        except torch.OutOfMemoryError as error:
            left_out[name] = str(error).splitlines()[0]
            continue
        runs["ours" if name == cell.models[0] else name] = run
    if "ours" not in runs:
        return {"left_out": left_out}
    return {**compare_in_turn(clock, runs, repetitions), **({"left_out": left_out} if left_out else {})}


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8, help="of a batch; half of them for L/14")
    parser.add_argument("--frames", type=int, nargs="+", default=list(models_cpu.FRAMES))
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--dry-run", action="store_true", help="tiny models on a CPU")
    given = parser.parse_args(words)
    if not given.dry_run and given.repetitions < 20:
        parser.error(f"--repetitions must be at least 20, got {given.repetitions}: medians of fewer say little.")
    if not given.dry_run and not torch.cuda.is_available():
        parser.error("there is no CUDA device. --dry-run tries this script without one; models_cpu.py measures a CPU.")
    return given


def cells(frames: list[int]) -> list[tuple[str, Cell]]:
    """Each with the size that its models have."""
    return [
        (size, Cell(what=what, dtype=DTYPE, frames=number, models=models, note=size))
        for size, models in (("B/16", BASE), ("L/14", LARGE))
        for what in ("forward", "training step")
        for number in frames
    ]


def main() -> None:
    given = parse()
    device = torch.device("cpu" if given.dry_run else "cuda")
    results: dict[str, Any] = {"parity": models_cpu.parity()}
    write = partial(measure.write_result, NAME, seed=models_cpu.SEED, n=given.repetitions)
    settings = {"clips": f"{given.clips}, of L/14 half", "image_size": 224, "dtype": DTYPE, "clock": "device events"}
    packages = ("torch", "transformers", "numba", "numpy", "kinescan")
    for size, cell in cells([2] if given.dry_run else given.frames):
        if given.dry_run:
            cell = Cell(what=cell.what, dtype=cell.dtype, frames=cell.frames, models=("videomae", "timesformer"))
            results[str(cell)] = measure_cell(cell, 1, 1, device, TINY)
        else:
            clips = given.clips if size == "B/16" else max(1, given.clips // 2)
            results[str(cell)] = measure_cell(cell, clips, given.repetitions, device, {})
            torch.cuda.empty_cache()
            write(settings=settings, results=results, packages=packages)
        print(cell, json.dumps(results[str(cell)]), flush=True)
    if given.dry_run:
        print("dry run: nothing was measured, nothing is written")


if __name__ == "__main__":
    main()
