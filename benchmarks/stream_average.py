"""How a stream of a clip classifier should forget: accuracy on actions one after the other, three seeds.

Run, again and again until it says "complete":   OMP_NUM_THREADS=1 python benchmarks/stream_average.py --seconds 500

A small causal PKS4 (recipe own_videos_cpu, 48 pixels) learns four motions from clips of 8 frames, 0.3 s apart, so that
a clip lasts 2.4 s. Test clips come from other textures. Streams are test clips one after the other, seen at the same
distance of frames; an action lasts as long as a clip. Scored: every frame of the first action, and of the later ones;
the last frame of each clip by itself, fresh (what the average loses on clips); and the delay: from an action's start
to the first frame that has its label. Each is scored once more with the model under bfloat16 autocast, and with what
the average holds in bfloat16.

All of it on clean clips, and on the same with noise that leaves about three of four clips right, where averaging has
something to gain. Then: after 2,000 frames of one motion, 50 of another, beside a fresh stream of the same 50: how far
do the scores move. And a single stream of 16,000 frames: its first 100 actions, and its last 100.
Writes benchmarks/results/stream_average.json from what is done.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import measure
from kinescan.config import load_recipe
from kinescan.data.synthetic.motion import MOTION_PAIRS, MotionConfig, render_motion
from kinescan.models.pks4 import PKS4
from kinescan.models.zoo import create_model
from kinescan.training.loop import fit
from memory_clips import MemoryClips, to_clips

WORK = Path("runs/stream_average")
RECIPE = measure.HERE.parent / "src" / "kinescan" / "recipes" / "own_videos_cpu.toml"
PAIRS = ("horizontal", "vertical")
RANGED = ("all_frames", "clips")
CLASSES = tuple(name for pair in PAIRS for name in MOTION_PAIRS[pair])
SEEDS = (0, 1, 2)
FRAMES, SIZE, FRAME_SECONDS = 8, 48, 0.3
CLIP_SECONDS = FRAMES * FRAME_SECONDS
TRAIN_PER_CLASS, TEST_PER_CLASS, EPOCHS = 80, 24, 16
ACTIONS, STREAMS = 6, 40
LONG, SHORT = 2000, 50
LONG_ACTIONS, COUNTED = 2000, 100
CHUNK = 48
NOISE = {"clean": 0.0, "noisy": 45.0}
"""Standard deviation in levels of 255, on test clips."""


def render(split: Any, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clips [n, 8, 3, 48, 48] uint8 and their labels [n]; a class and its mate share frames."""
    config = MotionConfig(frame_size=SIZE, num_frames=FRAMES, seed=seed)
    clips = [render_motion(config, split, pair, index) for pair in PAIRS for index in range(per_class)]
    both = torch.stack([turned for clip in clips for turned in (clip, clip.flip(0))])
    pairs = torch.arange(len(PAIRS)).repeat_interleave(per_class)
    return both, torch.stack([2 * pairs, 2 * pairs + 1], dim=1).flatten()


def disturbed(pixels: Tensor, levels: float) -> Tensor:
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
    return (pixels.float() + levels * noise).round().clamp(0, 255).byte()


def train(seed: int) -> PKS4:
    options = {"causal": True, "image_size": SIZE}
    config = load_recipe(RECIPE, [f"preprocessing.size={SIZE}", "model.options.causal=true"])
    torch.manual_seed(seed)
    model = create_model(
        config.model.name, labels=CLASSES, preprocessing=config.preprocessing, **(config.model.options | options)
    )
    output = WORK / f"run{seed}"
    pixels, labels = render("train", TRAIN_PER_CLASS, seed)
    clips = MemoryClips(pixels, labels, num_classes=len(CLASSES), seed=seed)
    optim = replace(config.optim, epochs=EPOCHS, warmup_epochs=2)
    # a run that was finished is taken as it is, one that was left continues
    fit(model, clips, output=output, train=config.train, optim=optim, seed=seed, resume=output.exists())
    model = type(model).from_pretrained(output / "checkpoints" / "last")
    assert isinstance(model, PKS4)
    return model


def frame_logits(model: PKS4, pixels: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """[n, T, K] of every frame of streams [n, T, 3, H, W], in the light of those before it."""
    parts, state = [], None
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        for part in pixels.split(CHUNK, dim=1):
            logits, state = model.stream_frames(to_clips(part), state)
            parts.append(logits.float())
    return torch.cat(parts, dim=1)


def exponential(logits: Tensor, seconds: float, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weight of a frame: exp(-age / seconds); seconds = inf is the mean of everything, 0 no average at all."""
    keep = 0.0 if seconds == 0 else torch.exp(torch.tensor(-FRAME_SECONDS / seconds)).item()
    average, weight, averages = torch.zeros_like(logits[:, 0], dtype=dtype), 0.0, []
    for own in logits.to(dtype).unbind(1):
        weight = weight * keep + 1
        average = average + (own - average) * (1 / weight)
        averages.append(average.float())
    return torch.stack(averages, dim=1)


def sliding(logits: Tensor, seconds: float) -> Tensor:
    """The mean of the frames of the last seconds."""
    count = max(1, round(seconds / FRAME_SECONDS))
    sums = torch.nn.functional.pad(logits.double().cumsum(1), (0, 0, count, 0))
    counts = torch.arange(1, logits.shape[1] + 1).clamp(max=count)[:, None]
    return ((sums[:, count:] - sums[:, :-count]) / counts).float()


AVERAGES = {
    "mean": lambda logits: exponential(logits, float("inf")),
    "none": lambda logits: exponential(logits, 0.0),
    **{
        f"exponential, {fraction:g} clip": lambda logits, fraction=fraction: exponential(
            logits, fraction * CLIP_SECONDS
        )
        for fraction in (0.125, 0.25, 0.375, 0.5, 1.0, 2.0)
    },
    **{
        f"sliding, {fraction:g} clip": lambda logits, fraction=fraction: sliding(logits, fraction * CLIP_SECONDS)
        for fraction in (0.25, 0.5, 1.0, 2.0)
    },
}


def score(averages: Tensor, truth: Tensor) -> dict[str, float]:
    """Of streams [n, T, K] with labels [n, actions]: accuracies, and the delay to an action's first right frame."""
    right = (averages.argmax(2) == truth.repeat_interleave(FRAMES, dim=1)).unflatten(1, (-1, FRAMES)).float()
    later = right[:, 1:]
    first_right = torch.where(later.bool().any(2), later.argmax(2), torch.tensor(FRAMES)).float()
    return {
        "first_action": right[:, 0].mean().item(),
        "later_actions": later.mean().item(),
        "all_frames": right.mean().item(),
        "last_frame_of_later_actions": later[:, :, -1].mean().item(),
        "delay_seconds": first_right.mean().item() * FRAME_SECONDS,
        "missed": (first_right == FRAMES).float().mean().item(),
    }


def actions(model: PKS4, pixels: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """Streams of different actions, and each clip by itself."""
    generator = torch.Generator().manual_seed(0)
    chosen = []
    for _ in range(STREAMS):
        order: list[int] = []
        while len(order) < ACTIONS:
            one = int(torch.randint(len(labels), (), generator=generator))
            if not order or labels[order[-1]] != labels[one]:
                order.append(one)
        chosen.append(order)
    indices = torch.tensor(chosen)
    logits = frame_logits(model, pixels[indices].flatten(1, 2))
    rough = frame_logits(model, pixels[indices].flatten(1, 2), dtype=torch.bfloat16)
    alone = frame_logits(model, pixels)
    with torch.inference_mode():
        offline = (model(to_clips(pixels)).argmax(1) == labels).float().mean().item()
    found = {}
    for name, average in AVERAGES.items():
        found[name] = score(average(logits), labels[indices])
        found[name]["clips"] = (average(alone)[:, -1].argmax(1) == labels).float().mean().item()
        found[name]["clips_offline"] = offline
        found[name]["all_frames_autocast_bfloat16"] = score(average(rough), labels[indices])["all_frames"]
        if name == "mean" or name.startswith("exponential"):
            seconds = float("inf") if name == "mean" else float(name.split()[1]) * CLIP_SECONDS
            held = exponential(rough, seconds, dtype=torch.bfloat16)
            found[name]["all_frames_average_held_in_bfloat16"] = score(held, labels[indices])["all_frames"]
    return found


def change(model: PKS4, pixels: Tensor, labels: Tensor) -> dict[str, Any]:
    """2,000 frames of one motion, then 50 of another: how far the scores are on the way to those of a fresh stream."""
    first, second = pixels[labels == 0], pixels[labels == 2]
    before = first.repeat(-(-LONG // (FRAMES * len(first))), 1, 1, 1, 1).flatten(0, 1)[:LONG]
    after = second.flatten(0, 1)[:SHORT]
    long = frame_logits(model, torch.cat([before, after])[None])
    fresh = frame_logits(model, after[None])
    found = {}
    for name, average in AVERAGES.items():
        scores, wanted = average(long).softmax(2)[0], average(fresh).softmax(2)[0]
        start, end, target = scores[LONG - 1], scores[-1], wanted[-1]
        moved = ((end - start) @ (target - start) / (target - start).square().sum()).item()
        right = scores[LONG:].argmax(1) == 2
        found[name] = {
            "moved": moved,
            "frames_right": right.float().mean().item(),
            "frames_right_fresh": (wanted.argmax(1) == 2).float().mean().item(),
            "seconds_to_the_label": (int(right.int().argmax()) if right.any() else SHORT) * FRAME_SECONDS,
        }
    return found


def late(model: PKS4, pixels: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """One long stream: the later half of the frames of its first actions, and of its last ones."""
    order = torch.randint(len(labels), (LONG_ACTIONS,), generator=torch.Generator().manual_seed(2))
    logits = frame_logits(model, pixels[order].flatten(0, 1)[None])
    found = {}
    for name, average in AVERAGES.items():
        right = (average(logits)[0].argmax(1) == labels[order].repeat_interleave(FRAMES)).unflatten(0, (-1, FRAMES))
        settled = right[:, FRAMES // 2 :].float().mean(1)
        found[name] = {"first_100": settled[:COUNTED].mean().item(), "last_100": settled[-COUNTED:].mean().item()}
    return found


def run(seed: int) -> dict[str, Any]:
    model = train(seed)
    pixels, labels = render("test", TEST_PER_CLASS, 0)
    found: dict[str, Any] = {name: actions(model, disturbed(pixels, levels), labels) for name, levels in NOISE.items()}
    return found | {"change": change(model, pixels, labels), "long stream": late(model, pixels, labels)}


def summarise(done: dict[str, Any]) -> dict[str, Any]:
    """Means over seeds, and the range of each."""
    runs = [done[str(seed)] for seed in SEEDS if str(seed) in done]
    summary: dict[str, Any] = {"seeds": len(runs)}
    for part in runs[0]:
        summary[part] = {}
        for name in runs[0][part]:
            row: dict[str, float] = {}
            for key in runs[0][part][name]:
                values = [run[part][name][key] for run in runs]
                row[key] = round(statistics.mean(values), 4)
                if key in RANGED:
                    row |= {f"{key}_lowest": round(min(values), 4), f"{key}_highest": round(max(values), 4)}
            summary[part][name] = row
    return summary


def write(done: dict[str, Any]) -> None:
    settings = {
        "classes": len(CLASSES),
        "chance": 1 / len(CLASSES),
        "train_clips": len(CLASSES) * TRAIN_PER_CLASS,
        "test_clips": len(CLASSES) * TEST_PER_CLASS,
        "epochs": EPOCHS,
        "frames_of_a_clip": FRAMES,
        "frame_seconds": FRAME_SECONDS,
        "streams": STREAMS,
        "actions_of_a_stream": ACTIONS,
        "noise_levels": NOISE["noisy"],
        "frames_of_the_long_stream": LONG_ACTIONS * FRAMES,
    }
    measure.write_result("stream_average", seed=SEEDS[0], n=len(done), settings=settings, results=summarise(done))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=500, help="Start no new seed after this time.")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    started, record = time.monotonic(), WORK / "scores.json"
    done: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    left = [seed for seed in SEEDS if str(seed) not in done]
    for seed in left:
        if time.monotonic() - started > arguments.seconds:
            break
        done[str(seed)] = run(seed)
        record.write_text(json.dumps(done, indent=1))
        print(seed, json.dumps(done[str(seed)], indent=1), flush=True)
    if done:
        write(done)
    if len(done) == len(SEEDS):
        print("complete")


if __name__ == "__main__":
    main()
