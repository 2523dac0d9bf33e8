"""Tuners of one frozen VideoMamba on motions that it has not seen: accuracy against trained parameters, memory, time.

Run, again and again until it says "complete":   OMP_NUM_THREADS=1 python benchmarks/ssp_tuners.py --seconds 330
Several processes may share the tuners: --only full --only "linear probe" in one of them.

1. A small VideoMamba is trained on the look of objects (12 classes) and on three pairs of motions (6 classes). A clip
   that is labelled by its look moves in any way, so the loss of a clip compares only classes of its own kind.
2. Each tuner gets it with a new head and a few clips of three other pairs of motions. Every pair is one motion forwards
   and backwards, with the same frames: what averages over frames cannot be right in more than half of the cases
   (50 % of 6 classes if it knows the pairs); guessing is right in 16.7 %.
3. Three seeds each: of the new parameters, the order of the clips and which clips they are. The base is the same.

Videos are rendered into memory. SSP, Adapter, ST-Adapter and deep VPT are sized to train about as many parameters.
The learning rate of each tuner is the best of `RATES` on the first seed's held-out clips (not the test clips); where
that is the lowest or the highest, the next one beyond is tried, too.
The base starts with the step sizes and matrices that Mamba starts with: from VideoMamba's own start (matrices of 0.02,
states that forget within a few tokens), which is made for far more data, it hardly learned in the time there is.
Writes benchmarks/results/ssp_tuners.json from what is done, and the table in docs/ssp.md.
"""

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import measure
from kinescan.data.synthetic.appearance import AppearanceConfig, render_appearance
from kinescan.data.synthetic.motion import MotionConfig
from kinescan.errors import TrainingInterrupted
from kinescan.models.classifier import VideoClassifier
from kinescan.models.mode import evaluation_view
from kinescan.models.videomamba.videomamba import VideoMamba
from kinescan.models.zoo import create_model
from kinescan.profiling.activations import kept_bytes
from kinescan.training.accelerator import TrainConfig
from kinescan.training.loop import fit
from memory_clips import (
    BATCH,
    MemoryClips,
    of_one_kind,
    optim,
    render_motion_pairs,
    start_like_mamba,
    to_clips,
    two_kinds,
)

WORK = Path("runs/ssp_tuners")
RECORD = WORK / "done.json"
DOCS = measure.HERE.parent / "docs" / "ssp.md"
SIZES: dict[str, Any] = {"image_size": 32, "patch_size": 16, "width": 64, "depth": 4, "num_frames": 8}
CLIPS: dict[str, Any] = {"frame_size": SIZES["image_size"], "num_frames": SIZES["num_frames"]}
SEEN, UNSEEN = ("vertical", "turning", "scaling"), ("horizontal", "meeting", "covering")
NUM_SEEN = 2 * len(SEEN)
PRETRAIN_PER_CLASS, LOOKS_PER_CLASS, PRETRAIN_EPOCHS, PRETRAIN_BATCH, PRETRAIN_RATE = 2000, 400, 2, 32, 2e-3
TRAIN_PER_CLASS, HELD_OUT_PER_CLASS, TEST_PER_CLASS = 48, 30, 100
EPOCHS = 12
SEEDS = (0, 1, 2)
RATES = (1e-3, 4e-3, 1.6e-2)
TUNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", {}),
    "linear probe": ("linear_probe", {}),
    "VPT, shallow": ("vpt", {"num_prompts": 8, "deep": False}),
    "VPT, deep": ("vpt", {"num_prompts": 8}),
    "Adapter": ("adapter", {"bottleneck": 31}),
    "ST-Adapter": ("st_adapter", {"bottleneck": 30}),
    "SSP": ("ssp", {"inner_width": 32, "attention_width": 16, "attention_heads": 4}),
}


def render_motions(pairs: tuple[str, ...], split: Any, per_class: int, *, first: int = 0) -> tuple[Tensor, Tensor]:
    return render_motion_pairs(MotionConfig(**CLIPS), pairs, split, per_class, first)


def render_looks(split: Any, per_class: int) -> tuple[Tensor, Tensor]:
    """Clips whose look is the class; labels come after those of the seen motions."""
    config = AppearanceConfig(**CLIPS)
    pictures = [render_appearance(config, split, name, i) for name in config.looks for i in range(per_class)]
    return torch.stack(pictures), torch.arange(len(config.looks)).repeat_interleave(per_class) + NUM_SEEN


def accuracy(model: VideoClassifier, pixels: Tensor, labels: Tensor, *, kinds: bool = False) -> float:
    hits, view = [], evaluation_view(model)
    with torch.inference_mode():
        for some, true in zip(pixels.split(50), labels.split(50), strict=True):
            logits = view(to_clips(some))
            hits.append((of_one_kind(logits, true, NUM_SEEN) if kinds else logits).argmax(dim=1) == true)
    return torch.cat(hits).float().mean().item()


def pretrain() -> dict[str, float]:
    """Trains the base; continues an interrupted run. Its accuracies, each among classes of one kind."""
    torch.manual_seed(0)
    motions, looks = render_motions(SEEN, "train", PRETRAIN_PER_CLASS), render_looks("train", LOOKS_PER_CLASS)
    pixels, labels = torch.cat([motions[0], looks[0]]), torch.cat([motions[1], looks[1]])
    num_classes = int(labels.max()) + 1
    model = create_model("videomamba_tiny", num_classes=num_classes, **SIZES)
    assert isinstance(model, VideoMamba)
    start_like_mamba(model)
    clips = MemoryClips(pixels, labels, num_classes=num_classes, seed=0, batch_size=PRETRAIN_BATCH)
    folder = WORK / "pretraining"
    fit(
        model,
        clips,
        output=folder,
        train=TrainConfig(device="cpu", trackers=(), checkpoint_minutes=0.5),
        optim=optim(PRETRAIN_RATE, PRETRAIN_EPOCHS, batch=PRETRAIN_BATCH, warmup=0.3),
        task=partial(two_kinds, num_motions=NUM_SEEN),
        resume=(folder / "checkpoints" / "last").exists(),
    )
    torch.save({"model": model.state_dict()}, WORK / "base.pth")
    return {
        "seen_motions_of_6": accuracy(model, *render_motions(SEEN, "test", TEST_PER_CLASS), kinds=True),
        "looks_of_12": accuracy(model, *render_looks("test", TEST_PER_CLASS), kinds=True),
        "motions_seen_in_training_of_6": accuracy(model, motions[0][:1000], motions[1][:1000], kinds=True),
    }


def tune(name: str, seed: int, rate: float, *, score_held_out: bool) -> dict[str, Any]:
    """One tuner from the base on; its accuracy, what it trained, memory and CPU time."""
    tuner, options = TUNERS[name]
    torch.manual_seed(seed)
    labels_of_classes = [f"{pair}_{way}" for pair in UNSEEN for way in ("forwards", "backwards")]
    model = create_model(f"{tuner}_videomamba_tiny", weights=WORK / "base.pth", labels=labels_of_classes, **options)
    pixels, labels = render_motions(UNSEEN, "train", TRAIN_PER_CLASS, first=1000 * seed)
    clips = MemoryClips(pixels, labels, num_classes=6, seed=seed)
    output = WORK / "tuning" / name.replace(", ", "_").replace(" ", "_")
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
    kept = kept_bytes(lambda: F.cross_entropy(model(batch), labels[:BATCH]))
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


def jobs(done: dict[str, Any], names: list[str]) -> Iterable[tuple[str, str, int, float, bool]]:
    """(key, tuner, seed, rate, held out?) of what is not done yet, in order; rates are chosen before seeds are run."""
    for name in names:
        for rate in RATES:
            if rate_key(name, rate) not in done:
                yield rate_key(name, rate), name, SEEDS[0], rate, True
        for rate in rates(name, done):
            if rate_key(name, rate) not in done:
                yield rate_key(name, rate), name, SEEDS[0], rate, True
    for seed in SEEDS:
        for name in names:
            key = f"{name}|seed|{seed}"
            if key not in done:
                yield key, name, seed, best_rate(name, done), False


def rate_key(name: str, rate: float) -> str:
    return f"{name}|rate|{rate}"


def rates(name: str, done: dict[str, Any]) -> tuple[float, ...]:
    """`RATES`, and where the best of them stands at an end, the one beyond it."""
    best = max(RATES, key=lambda rate: done[rate_key(name, rate)]["accuracy"])
    if best == RATES[0]:
        return (best / 4, *RATES)
    return (*RATES, 4 * best) if best == RATES[-1] else RATES


def best_rate(name: str, done: dict[str, Any]) -> float:
    return max(rates(name, done), key=lambda rate: done[rate_key(name, rate)]["accuracy"])


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
                "held_out_accuracy_by_rate": {
                    str(rate): done[rate_key(name, rate)]["accuracy"] for rate in rates(name, done)
                },
                "accuracy_train": statistics.mean(run["accuracy_train"] for run in runs),
                "cpu_seconds_per_clip": statistics.median(run["cpu_seconds_per_clip"] for run in runs),
            }
    return summary


def table(summary: dict[str, Any]) -> str:
    """The Markdown table of docs/ssp.md, best accuracy first."""
    columns = ("tuner", "trained parameters", "accuracy, mean (lowest to highest)", "seeds", "MB saved")
    columns += (f"MB kept for backward, {BATCH} clips", "CPU ms a clip, training")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    rows = [(name, row) for name, row in summary.items() if name in TUNERS]
    for name, row in sorted(rows, key=lambda pair: -pair[1]["accuracy"]):
        spread = f"{100 * row['accuracy_lowest']:.1f} to {100 * row['accuracy_highest']:.1f}"
        lines.append(
            f"| {name} | {row['trained']:,} | {100 * row['accuracy']:.1f} % ({spread}) | {row['seeds']} "
            f"| {row['saved_megabytes']:.3f} | {row['activations_megabytes']:.1f} "
            f"| {1000 * row['cpu_seconds_per_clip']:.1f} |"
        )
    return "\n".join(lines)


@torch.inference_mode()
def parity() -> float:
    """The largest difference of the base's logits from those in float64, without the scan's kernels."""
    model = create_model("videomamba_tiny", weights=WORK / "base.pth").eval()
    clips = to_clips(render_motions(UNSEEN, "test", 2)[0])
    logits, exact = model(clips), model.double()(clips.double())
    torch.testing.assert_close(logits.double(), exact, atol=1e-4, rtol=1e-4)
    return (logits - exact).abs().max().item()


def publish(done: dict[str, Any]) -> None:
    summary = summarise(done)
    if len(summary) == 1:
        return
    summary["parity_max_difference"] = parity()
    settings = {
        **SIZES,
        "seen": SEEN,
        "unseen": UNSEEN,
        "pretrain_clips_per_motion": PRETRAIN_PER_CLASS,
        "pretrain_clips_per_look": LOOKS_PER_CLASS,
        "pretrain_epochs": PRETRAIN_EPOCHS,
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


def read_done() -> dict[str, Any]:
    done: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return done


def keep(key: str, result: Any) -> None:
    """Adds to the record what other processes have added, too."""
    written = RECORD.with_suffix(f".{os.getpid()}")
    written.write_text(json.dumps({**read_done(), key: result}, indent=1))
    written.replace(RECORD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=330, help="Start nothing new after this time.")
    parser.add_argument("--only", action="append", choices=TUNERS, help="This tuner; may be given again.")
    parser.add_argument("--publish", action="store_true", help="Only write the JSON and the table again.")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    if arguments.publish:
        publish(read_done())
        return
    started = time.monotonic()
    if "base" not in read_done():
        try:
            keep("base", pretrain())
        except TrainingInterrupted as stopped:
            print(stopped)
            return
        print("base", read_done()["base"], flush=True)
    done = read_done()
    for key, name, seed, rate, held_out in jobs(done, arguments.only or list(TUNERS)):
        if time.monotonic() - started > arguments.seconds:
            return
        done[key] = tune(name, seed, rate, score_held_out=held_out)
        keep(key, done[key])
        print(key, done[key], flush=True)
    print("complete")
    publish(read_done())


if __name__ == "__main__":
    main()
