"""Which normalisation the kinematic encoder takes: batch against group, over three seeds, on motions made here.

Run, again and again until it says "complete":   OMP_NUM_THREADS=1 python benchmarks/kinematic_norm.py --seconds 500

The demo's model (64 wide, 4 blocks, 64x64 pixels, 8 frames) starts from a ViT trained on stills, as in `kinescan demo`,
and learns the twelve motions; both norms see the same clips in the same order. Test clips come from other textures.
BatchNorm is scored twice: with its running statistics, as it is used, and with those of the test batch, which shows
whether the two agree. Writes benchmarks/results/kinematic_norm.json from what is done.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import measure
from kinescan.config import RunConfig, load_recipe
from kinescan.data.synthetic.motion import USUAL_PAIRS, MotionConfig, render_motion
from kinescan.models.mode import evaluation_view
from kinescan.models.zoo import create_model
from kinescan.runs.stills import train_on_stills
from kinescan.training.loop import fit
from memory_clips import MemoryClips, to_clips

WORK = Path("runs/kinematic_norm")
RECIPES = measure.HERE.parent / "src" / "kinescan" / "recipes"
NORMS, SEEDS = ("batch", "group"), (0, 1, 2)
TRAIN_PER_CLASS, TEST_PER_CLASS, EPOCHS, STILLS_PER_EPOCH = 80, 25, 8, 3200


def render(split: Any, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clips [n, 8, 3, 64, 64] uint8 of every motion and their labels [n]; a class and its reversal share frames."""
    config = MotionConfig(frame_size=64, num_frames=8, seed=seed)
    clips = [render_motion(config, split, pair, index) for pair in USUAL_PAIRS for index in range(per_class)]
    both = torch.stack([turned for clip in clips for turned in (clip, clip.flip(0))])
    pairs = torch.arange(len(USUAL_PAIRS)).repeat_interleave(per_class)
    return both, torch.stack([2 * pairs, 2 * pairs + 1], dim=1).flatten()


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorm takes the statistics of the batch, and its running ones stay as they are."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:
            norm.train()
            norm.track_running_stats = False
        yield
    finally:
        for norm, was in zip(norms, kept, strict=True):
            norm.eval()
            norm.track_running_stats = was


def accuracy(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """Top-1 over clips in a mixed order, so that a batch holds all classes."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        hits = [model(to_clips(pixels[some])).argmax(1) == labels[some] for some in order.split(50)]
    return torch.cat(hits).float().mean().item()


def run(norm: str, seed: int, config: RunConfig, weights: Path) -> dict[str, float]:
    torch.manual_seed(seed)
    model = create_model(
        config.model.name,
        num_classes=12,
        weights=weights,
        preprocessing=config.preprocessing,
        **(config.model.options | {"norm": norm}),
    )
    pixels, labels = render("train", TRAIN_PER_CLASS, seed)
    clips = MemoryClips(pixels, labels, num_classes=12, seed=seed)
    output = WORK / "run"
    shutil.rmtree(output, ignore_errors=True)
    optim = replace(config.optim, epochs=EPOCHS)
    fit(model, clips, output=output, train=config.train, optim=optim, seed=seed)
    test = render("test", TEST_PER_CLASS, 0)
    view = evaluation_view(model)
    result = {"accuracy": accuracy(view, *test), "accuracy_train": accuracy(view, pixels, labels)}
    if norm == "batch":
        with batch_statistics(view):
            result["accuracy_batch_statistics"] = accuracy(view, *test)
    return result


def summarise(done: dict[str, dict[str, float]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for norm in NORMS:
        runs = [done[f"{norm}|{seed}"] for seed in SEEDS if f"{norm}|{seed}" in done]
        if runs:
            summary[norm] = {
                "seeds": len(runs),
                **{key: statistics.mean(run[key] for run in runs) for key in runs[0]},
                "accuracy_lowest": min(run["accuracy"] for run in runs),
                "accuracy_highest": max(run["accuracy"] for run in runs),
            }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=500, help="Start nothing new after this time.")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    started, record = time.monotonic(), WORK / "done.json"
    done: dict[str, dict[str, float]] = json.loads(record.read_text()) if record.exists() else {}
    weights = WORK / "stills" / "checkpoints" / "last"
    if not weights.exists():
        train_on_stills(load_recipe(RECIPES / "demo_stills.toml"), WORK / "stills", STILLS_PER_EPOCH)
    config = load_recipe(RECIPES / "demo_motion_pks4.toml")
    for seed in SEEDS:
        for norm in NORMS:
            key = f"{norm}|{seed}"
            if key in done:
                continue
            if time.monotonic() - started > arguments.seconds:
                return
            done[key] = run(norm, seed, config, weights)
            record.write_text(json.dumps(done, indent=1))
            print(key, done[key], flush=True)
            settings = {
                "train_clips": 12 * TRAIN_PER_CLASS,
                "test_clips": 12 * TEST_PER_CLASS,
                "epochs": EPOCHS,
                "batch_size": 16,
                "chance": 1 / 12,
            }
            measure.write_result(
                "kinematic_norm", seed=SEEDS[0], n=len(SEEDS), settings=settings, results=summarise(done)
            )
    print("complete")


if __name__ == "__main__":
    main()
