"""Accuracy against training compute: PKS4 beside six other ways to make a video model, on motions made here.

Run, again and again until it says "complete":   OMP_NUM_THREADS=1 python benchmarks/training_compute.py --seconds 900
One row or seed:   --rows PKS4 TimeSformer --seeds 0        Learning rates to search:   --rates 5e-4 2e-3 8e-3

All models but VideoMamba start from one ViT that was trained on stills; VideoMamba starts from a VideoMamba trained on
the same stills, and all of its training on videos is counted. All see the same clips in the same order, through
`kinescan.training.fit`. Half of the classes are the others played backwards, with the same frames: what averages over
frames cannot be right in more than half of the cases. After every epoch the model is scored on test clips, whose
textures no training clip has; that is not counted. FLOPs are counted operation by operation
(`kinescan.profiling.count_training_macs`), seconds are CPU time of the process. The learning rate of a row is the one,
of those that were run on the first seed, that is best on held-out clips of the training textures.

Writes from what is done: benchmarks/results/training_compute.json, the points of all curves beside it in raw/, and
docs/figures/training_compute.svg.
"""

import argparse
import json
import math
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import measure
import peers.registered  # noqa: F401  (registers the peers)
import training_compute_plot
from kinescan.config import load_recipe
from kinescan.data.synthetic import NUM_STILL_TARGETS, StillClips
from kinescan.data.synthetic.motion import MotionConfig, render_motion
from kinescan.models.classifier import VideoClassifier
from kinescan.models.mode import evaluation_view
from kinescan.models.videomamba.videomamba import VideoMamba
from kinescan.models.zoo import create_model
from kinescan.preprocessing import Preprocessing
from kinescan.profiling.cost import FLOPS_PER_MAC
from kinescan.profiling.training_cost import count_training_macs
from kinescan.runs.stills import still_task, train_on_stills
from kinescan.training.accelerator import TrainConfig
from kinescan.training.callbacks import Callback, Epoch, Start
from kinescan.training.loop import fit
from kinescan.training.optim import OptimConfig
from memory_clips import MEAN, STD, MemoryClips, start_like_mamba, to_clips

NAME = "training_compute"
WORK = Path("runs/training_compute")
PLOT = measure.HERE.parent / "docs" / "figures" / "training_compute.svg"
RECIPES = measure.HERE.parent / "src" / "kinescan" / "recipes"
OURS, AVERAGING, MAMBA = "PKS4", "frame averaging", "VideoMamba"
ROWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    OURS: ("pks4_vit_ti16", {"insert_after": 2, "kinematic_width": 16, "window": 5}),
    AVERAGING: ("vit_ti16", {}),
    "TSM": ("vit_ti16", {"class_token_route": "tsm"}),
    "TimeSformer": ("peer_timesformer", {}),
    "joint attention": ("peer_joint", {}),
    "ST-Adapter": ("peer_st_adapter", {}),
    MAMBA: ("videomamba_tiny", {}),
}
"""Row -> model and its options."""
AIMS = {"best_peer": 1 / 3, MAMBA: 1 / 10}
SIZE, NUM_FRAMES, PAIRS = 32, 8, ("horizontal", "scaling")
MAMBA_SIZES: dict[str, Any] = {"image_size": SIZE, "patch_size": 8, "width": 64, "depth": 5}
"""As many parameters as the ViT, within a tenth."""
TRAIN_PER_CLASS, HELD_OUT_PER_CLASS, TEST_PER_CLASS, FIRST_HELD_OUT = 96, 20, 40, 50_000
STILLS_PER_EPOCH, STILL_EPOCHS, STILL_BATCH = 1600, 8, 64
EPOCHS, BATCH, RATES, SEEDS = 10, 16, (2e-3,), (0, 1, 2)
PIXELS = Preprocessing(size=SIZE, num_frames=1, mean=(MEAN,) * 3, std=(STD,) * 3)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A model at the end of an epoch; the first is before any training.

    Attributes:
        clips: seen in training so far.
        flops: of training so far.
        cpu_seconds: of training so far, evaluations left out.
        held_out: accuracy on clips with textures of training; of the last epoch only.
        test: accuracy on clips with other textures.
    """

    clips: int
    flops: float
    cpu_seconds: float
    held_out: float | None
    test: float


def render(split: Any, per_class: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """Clips [n, T, 3, S, S] uint8 and labels [n] of every pair, each clip and the same backwards."""
    config = MotionConfig(frame_size=SIZE, num_frames=NUM_FRAMES)
    pixels, labels = [], []
    for k, pair in enumerate(PAIRS):
        for index in range(first, first + per_class):
            clip = render_motion(config, split, pair, index)
            pixels += [clip, clip.flip(0)]
            labels += [2 * k, 2 * k + 1]
    return torch.stack(pixels), torch.tensor(labels)


def accuracy(model: VideoClassifier, pixels: Tensor, labels: Tensor) -> float:
    view = evaluation_view(model)
    with torch.inference_mode():
        batches = zip(pixels.split(60), labels.split(60), strict=True)
        hits = [view(to_clips(some)).argmax(1) == true for some, true in batches]
    return torch.cat(hits).float().mean().item()


class Curve(Callback):
    """Collects the points of a run."""

    def __init__(self, model: VideoClassifier, flops_per_clip: float, num_clips: int) -> None:
        self.model, self.flops_per_clip, self.num_clips = model, flops_per_clip, num_clips
        self.held_out = render("train", HELD_OUT_PER_CLASS, FIRST_HELD_OUT)
        self.test = render("test", TEST_PER_CLASS)
        self.points: list[Point] = []
        self.seconds = 0.0
        self.since = 0.0

    def on_start(self, start: Start) -> None:
        self.add(0)
        self.since = time.process_time()

    def on_epoch(self, epoch: Epoch) -> None:
        self.seconds += time.process_time() - self.since
        self.add((epoch.epoch + 1) * self.num_clips)
        self.since = time.process_time()

    def add(self, clips: int) -> None:
        self.points.append(
            Point(
                clips=clips,
                flops=clips * self.flops_per_clip,
                cpu_seconds=self.seconds,
                held_out=accuracy(self.model, *self.held_out) if clips == EPOCHS * self.num_clips else None,
                test=accuracy(self.model, *self.test),
            )
        )


def image_weights(row: str) -> Path:
    """The folder of the model of single pictures that a row starts from; trained once."""
    folder = WORK / ("stills_mamba" if row == MAMBA else "stills_vit")
    last, done = folder / "stills" / "checkpoints" / "last", folder / "done"
    if done.exists():
        return last
    shutil.rmtree(folder, ignore_errors=True)
    config = load_recipe(RECIPES / "demo_stills.toml")
    optim = replace(config.optim, epochs=STILL_EPOCHS)
    if row != MAMBA:
        config = replace(config, preprocessing=replace(PIXELS, sampling=config.preprocessing.sampling), optim=optim)
        train_on_stills(config, folder / "stills", STILLS_PER_EPOCH)
    else:
        torch.manual_seed(0)
        model = create_model(
            "videomamba_tiny", num_classes=NUM_STILL_TARGETS, num_frames=1, preprocessing=PIXELS, **MAMBA_SIZES
        )
        assert isinstance(model, VideoMamba)
        start_like_mamba(model)
        source = StillClips(PIXELS, num_batches=STILLS_PER_EPOCH // STILL_BATCH, batch_size=STILL_BATCH)
        fit(model, source, output=folder / "stills", train=config.train, optim=optim, task=still_task)
    done.touch()
    return last


def build(row: str) -> VideoClassifier:
    name, options = ROWS[row]
    labels = [f"{pair}_{way}" for pair in PAIRS for way in ("forwards", "backwards")]
    frames = {} if name in ("vit_ti16", "pks4_vit_ti16") else {"num_frames": NUM_FRAMES}
    heads = {} if row == MAMBA else {"heads": 4, "activation": "gelu"}
    return create_model(name, labels=labels, weights=image_weights(row), **heads, **frames, **options)


def train(row: str, seed: int, rate: float) -> dict[str, Any]:
    """One run: its curve, and what the model is."""
    image_weights(row)
    torch.manual_seed(seed)
    model = build(row)
    pixels, labels = render("train", TRAIN_PER_CLASS)
    clips = MemoryClips(pixels, labels, num_classes=2 * len(PAIRS), seed=seed, batch_size=BATCH)
    macs = count_training_macs(model, num_frames=NUM_FRAMES)
    curve = Curve(model, FLOPS_PER_MAC * macs.with_attention, clips.num_batches * BATCH)
    output = WORK / "run" / f"{row}_{seed}_{rate}".replace(" ", "_")
    shutil.rmtree(output, ignore_errors=True)
    optim = OptimConfig(
        lr=rate, lr_batch_size=BATCH, epochs=EPOCHS, warmup_epochs=0.5, layer_decay=1.0, label_smoothing=0.0
    )
    settings = TrainConfig(device="cpu", trackers=(), checkpoint_minutes=0)
    fit(model, clips, output=output, train=settings, optim=optim, seed=seed, callbacks=[curve])
    shutil.rmtree(output, ignore_errors=True)
    return {
        "parameters": model.num_parameters,
        "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "training_gflops_per_clip": FLOPS_PER_MAC * macs.with_attention / 1e9,
        "points": [asdict(point) for point in curve.points],
    }


def jobs(done: Mapping[str, Any], rows: Sequence[str], seeds: Sequence[int], rates: Sequence[float]) -> Iterator[str]:
    """Keys "row|seed|rate" of what is not done, first all rates of the first seed, then the other seeds at the best."""
    for rate in rates:
        for row in rows:
            if SEEDS[0] in seeds and key_of(row, SEEDS[0], rate) not in done:
                yield key_of(row, SEEDS[0], rate)
    for seed in seeds:
        for row in rows:
            best = best_rate(done, row)
            if best is not None and key_of(row, seed, best) not in done:
                yield key_of(row, seed, best)


def key_of(row: str, seed: int, rate: float) -> str:
    return f"{row}|{seed}|{rate}"


def rates_run(done: Mapping[str, Any], row: str) -> dict[float, float]:
    """Rate -> accuracy on held-out clips at the end, of the first seed."""
    prefix = f"{row}|{SEEDS[0]}|"
    found = {key.removeprefix(prefix): run for key, run in done.items() if key.startswith(prefix)}
    return {float(rate): run["points"][-1]["held_out"] for rate, run in found.items()}


def best_rate(done: Mapping[str, Any], row: str) -> float | None:
    found = rates_run(done, row)
    return max(found, key=lambda rate: found[rate]) if found else None


def cost_of(points: Sequence[Mapping[str, float]], target: float, unit: str) -> float | None:
    """What it cost to reach an accuracy for the first time; None where it was not reached.

    Linear between the end of the epoch before and that of the epoch in which it was reached.
    """
    if points[0]["test"] >= target:
        return points[0][unit]
    for before, after in pairwise(points):
        if after["test"] >= target:
            fraction = (target - before["test"]) / (after["test"] - before["test"])
            return before[unit] + fraction * (after[unit] - before[unit])
    return None


def best(points: Sequence[Mapping[str, float]]) -> float:
    return max(point["test"] for point in points)


def compare(curves: Mapping[str, Sequence[Mapping[str, float]]], row: str) -> dict[str, float | None]:
    """PKS4 beside another row of the same seed, at the best accuracy that the other reached."""
    target = best(curves[row])
    found: dict[str, float | None] = {"accuracy": target}
    for unit in ("flops", "cpu_seconds"):
        theirs, ours = (cost_of(curves[name], target, unit) for name in (row, OURS))
        found[f"{unit}_ratio"] = ours / theirs if ours is not None and theirs else None
    return found


def at_equal_accuracy(runs: Mapping[str, Mapping[int, Sequence[Mapping[str, float]]]]) -> dict[str, Any]:
    """For every other row, and the best of them: compute of PKS4 over theirs, mean and spread over the seeds."""
    result: dict[str, Any] = {}
    seeds = sorted(set(runs.get(OURS, {})))
    others = [row for row in runs if row not in (OURS, AVERAGING)]
    for row in (*others, "best_peer"):
        found = []
        for seed in seeds:
            curves = {name: curve[seed] for name, curve in runs.items() if seed in curve}
            candidates = [name for name in others if name in curves and name != MAMBA]
            other = max(candidates, key=lambda name: best(curves[name]), default=None) if row == "best_peer" else row
            if other in curves:
                found.append(compare(curves, other) | {"peer": other, "seed": seed})
        if found:
            result[row] = {"seeds": len(found), "each": found} | {
                f"{unit}_ratio": spread([one[f"{unit}_ratio"] for one in found]) for unit in ("flops", "cpu_seconds")
            }
    return result


def spread(ratios: Sequence[float | None]) -> dict[str, Any]:
    """Mean (of logarithms), lowest and highest; and in how many seeds the accuracy was not reached."""
    known = [ratio for ratio in ratios if ratio]
    if not known:
        return {"not_reached": len(ratios)}
    return {
        "mean": math.exp(statistics.mean(math.log(ratio) for ratio in known)),
        "lowest": min(known),
        "highest": max(known),
        "not_reached": len(ratios) - len(known),
    }


def summarise(done: Mapping[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    runs: dict[str, dict[int, Any]] = {}
    for row, found in runs_of(done).items():
        rate = best_rate(done, row)
        runs[row] = {seed: run["points"] for seed, run in found.items()}
        last = [run["points"][-1] for run in found.values()]
        first = next(iter(found.values()))
        rows[row] = {
            "seeds": len(found),
            "rate": rate,
            "rates_on_held_out": {str(key): value for key, value in sorted(rates_run(done, row).items())},
            "accuracy": statistics.mean(point["test"] for point in last),
            "accuracy_lowest": min(point["test"] for point in last),
            "accuracy_highest": max(point["test"] for point in last),
            "accuracy_best": statistics.mean(best(curve) for curve in runs[row].values()),
            "parameters": first["parameters"],
            "trained": first["trained"],
            "training_gflops_per_clip": first["training_gflops_per_clip"],
            "training_tflops": last[0]["flops"] / 1e12,
            "cpu_seconds": statistics.median(point["cpu_seconds"] for point in last),
        }
    return {
        "rows": rows,
        "pks4_over": at_equal_accuracy(runs),
        "interpolation": "linear between the ends of epochs, at the first end of an epoch that reaches the accuracy; "
        "the accuracy is the best that the other row reaches at any end of an epoch, on test clips of the same seed; "
        "means of ratios are geometric",
        "aims": AIMS,
        # TimeSformer and joint attention against transformers': tests/benchmarks/test_video_peers.py
        "parity_tested_to": 1e-5,
        "test_accuracy_by_epoch": by_epoch(runs),
    }


def runs_of(done: Mapping[str, Any]) -> dict[str, dict[int, Any]]:
    """Row -> seed -> its run at the best rate, for what is done."""
    found: dict[str, dict[int, Any]] = {}
    for row in ROWS:
        rate = best_rate(done, row)
        runs = {seed: done[key_of(row, seed, rate)] for seed in SEEDS if rate and key_of(row, seed, rate) in done}
        if runs:
            found[row] = runs
    return found


def by_epoch(runs: Mapping[str, Mapping[int, Sequence[Mapping[str, float]]]]) -> dict[str, Any]:
    """Test accuracy at the end of every epoch, the mean over the seeds."""
    lines = {
        row: [statistics.mean(point["test"] for point in column) for column in zip(*seeds.values(), strict=True)]
        for row, seeds in runs.items()
    }
    return {"epochs_done": list(range(EPOCHS + 1)), "accuracy": lines}


def publish(done: Mapping[str, Any]) -> None:
    summary = summarise(done)
    curves = {row: {str(seed): run["points"] for seed, run in seeds.items()} for row, seeds in runs_of(done).items()}
    settings = {
        "image_size": SIZE,
        "patch_size": 8,
        "width": 64,
        "depth": 4,
        "num_frames": NUM_FRAMES,
        "pairs": PAIRS,
        "chance_of_averaging": 0.5,
        "train_clips": 2 * len(PAIRS) * TRAIN_PER_CLASS,
        "test_clips": 2 * len(PAIRS) * TEST_PER_CLASS,
        "epochs": EPOCHS,
        "batch": BATCH,
        "stills": STILLS_PER_EPOCH * STILL_EPOCHS,
    }
    fewest = min((row["seeds"] for row in summary["rows"].values()), default=0)
    measure.write_result(NAME, seed=SEEDS[0], n=fewest, settings=settings, results=summary)
    raw = measure.RESULTS / "raw" / f"{NAME}.json"
    raw.parent.mkdir(parents=True, exist_ok=True)
    raw.write_text(json.dumps(curves, indent=1) + "\n")
    if measure.RESULTS == measure.PUBLISHED:
        training_compute_plot.write(curves, PLOT)


def read_done() -> dict[str, Any]:
    """What all processes have done: a file for each run."""
    runs = [json.loads(path.read_text()) for path in sorted((WORK / "done").glob("*.json"))]
    return {run["key"]: run for run in runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900, help="Start nothing new after this time.")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--publish", action="store_true", help="Only write the JSON and the plot again.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    (WORK / "done").mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    if arguments.publish:
        publish(read_done())
        return
    while key := next(jobs(read_done(), arguments.rows, arguments.seeds, arguments.rates), None):
        if time.monotonic() - started > arguments.seconds:
            return
        row, seed, rate = key.split("|")
        run = train(row, int(seed), float(rate))
        path = WORK / "done" / f"{key.replace('|', ', ')}.json"
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps({"key": key, **run}, indent=1))
        aside.replace(path)
        print(key, [round(point["test"], 3) for point in run["points"]], run["points"][-1]["cpu_seconds"], flush=True)
        publish(read_done())
    print("complete")


if __name__ == "__main__":
    main()
