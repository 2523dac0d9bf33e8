"""PKS4-B/16 over the bare ViT-B/16 on the same frames: forward, training step, memory, growth with frames.

Run: OMP_NUM_THREADS=1 python benchmarks/pks4_over_vit.py            (about six minutes on one core; parts with --only)
Aims (BENCHMARKS of the design): forward <= 1.12x, training step <= 1.15x, peak memory <= 1.10x, 8 -> 64 frames <= 8.3x.

The bare ViT is `vit_b16`: the same backbone on every frame, mean over frames, linear head.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import measure
from kinescan.evaluation import count_cost
from kinescan.models.classifier import VideoClassifier
from kinescan.models.zoo import create_model
from kinescan.profiling.activations import kept_bytes

BARE, OURS = "vit_b16", "pks4_vit_b16"
NAME = "pks4_over_vit_cpu"
NUM_CLASSES = 174
SEED = 0
AIMS = {"forward": 1.12, "training_step": 1.15, "peak_memory": 1.10, "growth_8_to_64": 8.3}


def build(name: str) -> VideoClassifier:
    torch.manual_seed(SEED)
    return create_model(name, num_classes=NUM_CLASSES)


def clip_of(model: VideoClassifier, clips: int, frames: int) -> Tensor:
    size = model.config.image_size
    return torch.randn(clips, frames, 3, size, size, generator=torch.Generator().manual_seed(SEED))


def forward_of(model: VideoClassifier, clip: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(clip)
        return logits

    model.eval()
    return run


def training_step_of(model: VideoClassifier, clip: Tensor) -> Callable[[], None]:
    """Forward, loss, backward, AdamW, as a training loop does it; gradients are freed in between."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    targets = torch.zeros(len(clip), dtype=torch.long)

    def run() -> None:
        nn.functional.cross_entropy(model(clip), targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def check_start() -> float:
    """Parity first: the inserted module changes nothing at the start, so logits equal those without it bit for bit."""
    ours = build(OURS).eval()
    options = {"scanner": False, "correlation": False, "variation": False}
    without = create_model(OURS, num_classes=NUM_CLASSES, **options).eval()
    missing = without.load_state_dict(ours.state_dict(), strict=False).missing_keys
    clip = clip_of(ours, 1, 4)
    with torch.inference_mode():
        difference = (ours(clip) - without(clip)).abs().max().item()
    if missing or difference != 0:
        raise SystemExit(f"parity failed: missing {missing}, difference {difference}. No speed is reported.")
    return difference


def measure_memory(name: str, clips: int, frames: int) -> dict[str, int]:
    """In a process of its own: what a forward pass and a training step need beyond the model."""
    model = build(name)
    clip = clip_of(model, clips, frames)
    forward = measure.peak_extra_bytes(forward_of(model, clip))
    model.train()
    saved = kept_bytes(lambda: model(clip), without=model.parameters())
    step = measure.peak_extra_bytes(training_step_of(model, clip))
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return {
        "weight_bytes": weights,
        "saved_activation_bytes": saved,
        "forward_peak_extra_bytes": forward,
        "step_peak_extra_bytes": step,
        # Weights and AdamW's two moments stay between steps; the step's own peak lies on top of them.
        "training_peak_bytes": 3 * weights + step,
    }


def memory_in_subprocess(name: str, clips: int, frames: int) -> dict[str, int]:
    command = [sys.executable, __file__, "--memory-of", name, "--clips", str(clips), "--frames", str(frames)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    result: dict[str, int] = json.loads(found.stdout.splitlines()[-1])
    return result


def compare(make: Callable[[VideoClassifier, Tensor], Callable[[], Any]], args: argparse.Namespace) -> dict[str, Any]:
    models = {name: build(name) for name in (BARE, OURS)}
    runs = {name: make(model, clip_of(model, args.clips, args.frames)) for name, model in models.items()}
    times = measure.time_in_turn(runs, args.repetitions)
    return {
        **times,
        "wall_ratio": round(times[OURS].wall_seconds / times[BARE].wall_seconds, 4),
        "cpu_ratio": round(times[OURS].cpu_seconds / times[BARE].cpu_seconds, 4),
        # The least disturbed calls: on a busy machine the steadiest comparison.
        "cpu_ratio_of_minima": round(times[OURS].cpu_seconds_min / times[BARE].cpu_seconds_min, 4),
    }


def measure_growth() -> dict[str, Any]:
    """How time grows from 8 to 64 frames; the bare ViT's own growth shows what the machine's caches add."""
    runs = {}
    for name in (BARE, OURS):
        model = build(name)
        runs |= {f"{name}, {frames} frames": forward_of(model, clip_of(model, 1, frames)) for frames in (8, 64)}
    times = measure.time_in_turn(runs, 1, warmups=1)
    growth = {
        name: round(times[f"{name}, 64 frames"].cpu_seconds_min / times[f"{name}, 8 frames"].cpu_seconds_min, 3)
        for name in (BARE, OURS)
    }
    return {**times, "cpu_ratio_of_minima": growth[OURS], "bare_cpu_ratio_of_minima": growth[BARE]}


def measure_memories(args: argparse.Namespace) -> dict[str, Any]:
    memory = {name: memory_in_subprocess(name, args.clips, args.frames) for name in (BARE, OURS)}
    return {**memory, "ratios": {key: round(memory[OURS][key] / memory[BARE][key], 4) for key in memory[BARE]}}


def measure_macs(args: argparse.Namespace) -> dict[str, float]:
    macs = {name: count_cost(build(name), num_frames=args.frames).macs for name in (BARE, OURS)}
    return {
        "ratio_without_attention": round(macs[OURS].without_attention / macs[BARE].without_attention, 4),
        "ratio_with_attention": round(macs[OURS].with_attention / macs[BARE].with_attention, 4),
    }


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "macs": measure_macs,
    "forward": lambda args: compare(forward_of, args),
    "training_step": lambda args: compare(training_step_of, args),
    "memory": measure_memories,
    "growth_8_to_64": lambda args: measure_growth(),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument(
        "--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="measure these; keep the others"
    )
    parser.add_argument("--memory-of", choices=(BARE, OURS), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    if args.memory_of:
        print(json.dumps(measure_memory(args.memory_of, args.clips, args.frames)))
        return
    path = measure.RESULTS / f"{NAME}.json"
    before = json.loads(path.read_text())["results"] if path.exists() else {}
    results = {part: before[part] for part in PARTS if part in before}
    parity = {"parity_max_difference": check_start()}
    settings = {"clips": args.clips, "frames": args.frames, "image_size": 224, "num_classes": NUM_CLASSES}
    for part in args.only:
        # Parts may be measured one by one: each says from which commit it is.
        results[part] = {**PARTS[part](args), **parity, "commit": measure.commit(), "clips": args.clips}
        ordered = {name: results[name] for name in PARTS if name in results}
        measure.write_result(
            NAME,
            seed=SEED,
            n=args.repetitions,
            settings={**settings, "dtype": "float32"},
            results={**ordered, "aims": AIMS},
        )
        print(part, json.dumps(results[part], default=asdict), flush=True)


if __name__ == "__main__":
    main()
