"""Tuners of one frozen VideoMamba on motions that it has not seen: accuracy against trained parameters, memory, time.

Run, again and again until it says "complete":   OMP_NUM_THREADS=1 python benchmarks/ssp_tuners.py --seconds 330

1. A small VideoMamba is trained on the look of objects (12 classes) and on three pairs of motions (6 classes).
2. Each tuner gets it with a new head and a few clips of three other pairs of motions. Every pair is one motion forwards
   and backwards, with the same frames: what averages over frames cannot be right in more than half of the cases
   (50 % of 6 classes if it knows the pairs); guessing is right in 16.7 %.
3. Three seeds each: of the new parameters, the order of the clips and which clips they are. The base is the same.

Videos are rendered into memory. SSP, Adapter, ST-Adapter and deep VPT are sized to train about as many parameters.
The learning rate of each tuner is the best of `RATES` on the first seed's held-out clips (not the test clips).
Writes benchmarks/results/ssp_tuners.json from what is done, and the table in docs/ssp.md.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import measure
from kinescan.data.loader import Batch
from kinescan.data.synthetic.appearance import AppearanceConfig, render_appearance
from kinescan.data.synthetic.motion import MotionConfig, render_motion
from kinescan.errors import TrainingInterrupted
from kinescan.evaluation.mode import in_evaluation
from kinescan.models.classifier import VideoClassifier
from kinescan.models.zoo import create_model
from kinescan.training.engine import TrainConfig
from kinescan.training.loop import fit
from kinescan.training.optim import OptimConfig

WORK = Path("runs/ssp_tuners")
DOCS = measure.HERE.parent / "docs" / "ssp.md"
SIZES: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 64, "depth": 4, "num_frames": 8}
SEEN, UNSEEN = ("vertical", "turning", "scaling"), ("horizontal", "meeting", "covering")
PRETRAIN_PER_CLASS, LOOKS_PER_CLASS = 300, 60
TRAIN_PER_CLASS, HELD_OUT_PER_CLASS, TEST_PER_CLASS = 32, 12, 50
PRETRAIN_EPOCHS, EPOCHS, BATCH = 9, 12, 16
SEEDS = (0, 1, 2)
RATES = (1e-3, 4e-3)
TUNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", {}),
    "head only": ("head_only", {}),
    "VPT, shallow": ("vpt", {"num_prompts": 8, "deep": False}),
    "VPT, deep": ("vpt", {"num_prompts": 8}),
    "Adapter": ("adapter", {"bottleneck": 31}),
    "ST-Adapter": ("st_adapter", {"bottleneck": 30}),
    "SSP": ("ssp", {"inner_width": 32, "attention_width": 16, "attention_heads": 4}),
}


class MemoryClips:
    """Clips in memory as a source for `fit`: pixels [n, T, 3, H, W] uint8, labels [n]."""

    def __init__(self, pixels: Tensor, labels: Tensor, *, num_classes: int, seed: int) -> None:
        self.pixels, self.labels, self.num_classes, self.seed = pixels, labels, num_classes, seed
        self.batch_size = BATCH
        self.num_batches = len(labels) // BATCH

    def path(self, item_index: int) -> str:
        return f"clip {item_index}"

    def batches(self, epoch: int, first_batch: int) -> Iterable[Batch]:
        generator = torch.Generator().manual_seed(1000 * self.seed + epoch)
        order = torch.randperm(len(self.labels), generator=generator)
        for index in range(first_batch, self.num_batches):
            chosen = order[index * BATCH : (index + 1) * BATCH]
            yield Batch(
                clips=to_clips(self.pixels[chosen]), labels=self.labels[chosen], item_indices=chosen, unreadable=[]
            )


def to_clips(pixels: Tensor) -> Tensor:
    return (pixels.float() / 255 - 0.45) / 0.225


def render_motions(pairs: tuple[str, ...], split: Any, per_class: int, *, first: int = 0) -> tuple[Tensor, Tensor]:
    """Clips of each pair and the same backwards; labels 2 k and 2 k + 1."""
    config = MotionConfig(frame_size=32, num_frames=8)
    pixels, labels = [], []
    for k, pair in enumerate(pairs):
        for index in range(first, first + per_class):
            clip = render_motion(config, split, pair, index)
            pixels += [clip, clip.flip(0)]
            labels += [2 * k, 2 * k + 1]
    return torch.stack(pixels), torch.tensor(labels)


def render_pretraining() -> tuple[Tensor, Tensor, int]:
    motions, labels = render_motions(SEEN, "train", PRETRAIN_PER_CLASS)
    config = AppearanceConfig(frame_size=32, num_frames=8)
    looks = [(k, name) for k, name in enumerate(config.looks)]
    pictures = [render_appearance(config, "train", name, i) for _, name in looks for i in range(LOOKS_PER_CLASS)]
    of_looks = torch.tensor([k for k, _ in looks for _ in range(LOOKS_PER_CLASS)]) + 2 * len(SEEN)
    return torch.cat([motions, torch.stack(pictures)]), torch.cat([labels, of_looks]), 2 * len(SEEN) + len(looks)


def accuracy(model: VideoClassifier, pixels: Tensor, labels: Tensor) -> float:
    with in_evaluation(model), torch.inference_mode():
        hits = [
            model(to_clips(some)).argmax(dim=1) == true
            for some, true in zip(pixels.split(50), labels.split(50), strict=True)
        ]
    return torch.cat(hits).float().mean().item()


def optim(rate: float, epochs: int) -> OptimConfig:
    return OptimConfig(
        lr=rate, lr_batch_size=BATCH, epochs=epochs, warmup_epochs=1, layer_decay=1.0, label_smoothing=0.0
    )


def pretrain() -> dict[str, float]:
    """Trains the base; goes on where an interrupted run left off."""
    torch.manual_seed(0)
    pixels, labels, num_classes = render_pretraining()
    model = create_model("videomamba_tiny", num_classes=num_classes, **SIZES)
    train = TrainConfig(device="cpu", trackers=(), checkpoint_minutes=0.5)
    clips = MemoryClips(pixels, labels, num_classes=num_classes, seed=0)
    folder = WORK / "pretraining"
    resume = (folder / "checkpoints" / "last").exists()
    fit(model, clips, output=folder, train=train, optim=optim(2e-3, PRETRAIN_EPOCHS), resume=resume)
    seen, true = render_motions(SEEN, "test", 50)
    score = {"seen_motions_of_18_classes": accuracy(model, seen, true), "train": accuracy(model, pixels, labels)}
    torch.save({"model": model.state_dict()}, WORK / "base.pth")
    return score


def tune(name: str, seed: int, rate: float, *, score_held_out: bool) -> dict[str, Any]:
    """One tuner from the base on; its accuracy, what it trained, memory and CPU time."""
    tuner, options = TUNERS[name]
    torch.manual_seed(seed)
    labels_of_classes = [f"{pair}_{way}" for pair in UNSEEN for way in ("forwards", "backwards")]
    model = create_model(f"{tuner}_videomamba_tiny", weights=WORK / "base.pth", labels=labels_of_classes, **options)
    pixels, labels = render_motions(UNSEEN, "train", TRAIN_PER_CLASS, first=1000 * seed)
    clips = MemoryClips(pixels, labels, num_classes=6, seed=seed)
    output = WORK / "tuning"
    shutil.rmtree(output, ignore_errors=True)
    started = time.process_time()
    train = TrainConfig(device="cpu", trackers=(), checkpoint_minutes=0)
    fit(model, clips, output=output, train=train, optim=optim(rate, EPOCHS), seed=seed)
    seconds = time.process_time() - started
    if score_held_out:
        test = render_motions(UNSEEN, "train", HELD_OUT_PER_CLASS, first=50_000)
    else:
        test = render_motions(UNSEEN, "test", TEST_PER_CLASS)
    model.train()
    batch = to_clips(pixels[:BATCH])
    kept = measure.saved_bytes(lambda: F.cross_entropy(model(batch), labels[:BATCH]))
    folder = output / "checkpoints" / "last"
    return {
        "accuracy": accuracy(model, *test),
        "accuracy_train": accuracy(model, pixels, labels),
        "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "saved_megabytes": (folder / "model.safetensors").stat().st_size / 1e6,
        "activations_megabytes": kept / 1e6,
        "cpu_seconds_per_clip": seconds / (EPOCHS * clips.num_batches * BATCH),
        "rate": rate,
    }


def jobs(done: dict[str, Any]) -> Iterable[tuple[str, str, int, float, bool]]:
    """(key, tuner, seed, rate, held out?) of what is not done yet, in order; rates are chosen before seeds are run."""
    for name in TUNERS:
        for rate in RATES:
            key = f"{name}|rate|{rate}"
            if key not in done:
                yield key, name, SEEDS[0], rate, True
    for seed in SEEDS:
        for name in TUNERS:
            key = f"{name}|seed|{seed}"
            if key not in done:
                yield key, name, seed, best_rate(name, done), False


def best_rate(name: str, done: dict[str, Any]) -> float:
    return max(RATES, key=lambda rate: done[f"{name}|rate|{rate}"]["accuracy"])


def summarise(done: dict[str, Any]) -> dict[str, Any]:
    summary: dict[str, Any] = {"base": done["base"]}
    for name in TUNERS:
        runs = [done[f"{name}|seed|{seed}"] for seed in SEEDS if f"{name}|seed|{seed}" in done]
        if runs:
            scores = [run["accuracy"] for run in runs]
            summary[name] = {
                "seeds": len(runs),
                "accuracy": statistics.mean(scores),
                "accuracy_lowest": min(scores),
                "accuracy_highest": max(scores),
                **{key: runs[0][key] for key in ("trained", "saved_megabytes", "activations_megabytes", "rate")},
                "accuracy_train": statistics.mean(run["accuracy_train"] for run in runs),
                "cpu_seconds_per_clip": statistics.median(run["cpu_seconds_per_clip"] for run in runs),
            }
    return summary


def table(summary: dict[str, Any]) -> str:
    """The Markdown table of docs/ssp.md, best accuracy first."""
    columns = ("tuner", "trained parameters", "accuracy, mean (lowest to highest)", "seeds", "MB saved")
    columns += ("MB kept for backward", "CPU ms a clip")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    rows = [(name, row) for name, row in summary.items() if name != "base"]
    for name, row in sorted(rows, key=lambda pair: -pair[1]["accuracy"]):
        spread = f"{100 * row['accuracy_lowest']:.1f} to {100 * row['accuracy_highest']:.1f}"
        lines.append(
            f"| {name} | {row['trained']:,} | {100 * row['accuracy']:.1f} % ({spread}) | {row['seeds']} "
            f"| {row['saved_megabytes']:.2f} | {row['activations_megabytes']:.0f} "
            f"| {1000 * row['cpu_seconds_per_clip']:.1f} |"
        )
    return "\n".join(lines)


def publish(done: dict[str, Any]) -> None:
    summary = summarise(done)
    if len(summary) == 1:
        return
    settings = {
        **SIZES,
        "seen": SEEN,
        "unseen": UNSEEN,
        "train_per_class": TRAIN_PER_CLASS,
        "test_per_class": TEST_PER_CLASS,
        "epochs": EPOCHS,
        "batch": BATCH,
        "rates": RATES,
    }
    measure.write_result("ssp_tuners", seed=SEEDS[0], n=len(SEEDS), settings=settings, results=summary)
    if DOCS.exists():
        page = DOCS.read_text(encoding="utf-8")
        start, end = "<!-- table: ssp_tuners -->\n", "<!-- end of table -->"
        before, rest = page.split(start)
        DOCS.write_text(before + start + table(summary) + "\n" + end + rest.split(end)[1], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=330, help="Start nothing new after this time.")
    parser.add_argument("--publish", action="store_true", help="Only write the JSON and the table again.")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    record = WORK / "done.json"
    done: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    if not arguments.publish:
        started = time.monotonic()
        if "base" not in done:
            try:
                done["base"] = pretrain()
            except TrainingInterrupted as stopped:
                print(stopped)
                return
            record.write_text(json.dumps(done, indent=1))
            print("base", done["base"], flush=True)
        for key, name, seed, rate, held_out in jobs(done):
            if time.monotonic() - started > arguments.seconds:
                break
            done[key] = tune(name, seed, rate, score_held_out=held_out)
            record.write_text(json.dumps(done, indent=1))
            print(key, done[key], flush=True)
        else:
            print("complete")
    publish(done)


if __name__ == "__main__":
    main()
