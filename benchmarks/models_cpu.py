"""PKS4 beside what a user would pick instead: the bare ViT, and TimeSformer, ViViT and VideoMAE of transformers.

Run: OMP_NUM_THREADS=1 python benchmarks/models_cpu.py          (two hours of one core; continues where it stopped: what
     the JSON holds is not measured again, unless --again)
     python benchmarks/models_cpu.py --only "forward, float32, 8 frames" --again

All of a size have the same width, depth, patches, frames and resolution (B/16; L/14), random weights and 174 classes;
attention is scaled_dot_product_attention in all of them. ViViT and VideoMAE put two frames into one token, as they are
published: at equal frames they see half as many tokens. Aim: PKS4's latency, step time and peak memory below those of
the three.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.timesformer.modeling_timesformer import TimesformerSelfAttention

import measure
import pks4_over_vit
from kinescan.models.zoo import create_model

NAME = "models_cpu"
SEED = 0
NUM_CLASSES = 174
FRAMES = (8, 16, 32, 64)
REPETITIONS = {8: 3, 16: 1, 32: 0, 64: 0}
"""Timed calls of B/16 after the one that measures memory; with 0, and for L/14, that one is timed."""
PEERS = ("timesformer", "vivit", "videomae")
BASE = ("pks4_vit_b16", "vit_b16", *PEERS)
LARGE = ("pks4_vit_l14", "vit_l14", *(f"{peer}_l14" for peer in PEERS))
SIZES = {"image_size": 224, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE_SIZES = {
    **SIZES,
    "patch_size": 14,
    "tubelet_size": 2,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
STEP_BYTES_A_FRAME = {BASE: 220e6, LARGE: 760e6}
"""Of the hungriest peer in float32; in bfloat16 two thirds. A cell that would not fit is left out and says so."""
MOST_PARAMETERS = {BASE: 125e6, LARGE: 430e6}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is measured at once, all models in turn.

    Attributes:
        what: "forward" or "training step".
        dtype: "float32" or "bfloat16" (weights cast for a forward pass, autocast for a step).
        frames: of the one clip.
        models: names for `build`.
        note: told apart in the results by it.
    """

    what: str
    dtype: str
    frames: int
    models: tuple[str, ...] = BASE
    note: str = ""

    @property
    def group(self) -> str:
        """Key of the results that hold it."""
        return ", ".join(part for part in (self.what, self.note, self.dtype) if part)

    def __str__(self) -> str:
        return f"{self.group}, {self.frames} frames"


def cells() -> Iterator[Cell]:
    """In the order of what is most worth knowing."""
    yield Cell(what="forward", dtype="float32", frames=8)
    yield from (Cell(what="forward", dtype="bfloat16", frames=frames) for frames in FRAMES)
    yield from (Cell(what="training step", dtype=dtype, frames=8) for dtype in ("bfloat16", "float32"))
    yield Cell(what="forward", dtype="float32", frames=16)
    yield from (large("forward", dtype, 8) for dtype in ("bfloat16", "float32"))
    yield Cell(what="training step", dtype="bfloat16", frames=16)
    yield from (Cell(what="forward", dtype="float32", frames=frames) for frames in (32, 64))
    yield Cell(what="training step", dtype="float32", frames=16)
    yield from (large("training step", dtype, 8) for dtype in ("bfloat16", "float32"))
    yield from (large("forward", "bfloat16", frames) for frames in (16, 32, 64))
    yield from (
        Cell(what="training step", dtype=dtype, frames=frames)
        for frames in (32, 64)
        for dtype in ("bfloat16", "float32")
    )
    yield from (large("training step", "bfloat16", frames) for frames in (16, 32, 64))
    yield from (large(what, "float32", frames) for what in ("forward", "training step") for frames in (16, 32, 64))


def large(what: str, dtype: str, frames: int) -> Cell:
    """The same beside the models of L/14."""
    return Cell(what=what, dtype=dtype, frames=frames, models=LARGE, note="L/14")


class FusedAttention(TimesformerSelfAttention):
    """TimeSformer's attention through scaled_dot_product_attention, which transformers does not offer for it."""

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor]:
        heads = self.qkv(hidden_states).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*heads, scale=self.scale)
        return (mixed.transpose(1, 2).flatten(2),)


def build(name: str, frames: int, **sizes: Any) -> nn.Module:
    """A model with random weights; `sizes` of transformers' configs replace those of B/16."""
    torch.manual_seed(SEED)
    if name.startswith(("vit_", "pks4_")):
        return create_model(name, num_classes=NUM_CLASSES)
    common = {
        **(LARGE_SIZES if name.endswith("_l14") else SIZES),
        **NO_DROPOUT,
        "num_frames": frames,
        "num_labels": NUM_CLASSES,
        **sizes,
    }
    name = name.removesuffix("_l14")
    if name == "timesformer":
        common.pop("tubelet_size", None)
        model = transformers.TimesformerForVideoClassification(transformers.TimesformerConfig(**common))
        for module in model.modules():
            if isinstance(module, TimesformerSelfAttention):
                module.__class__ = FusedAttention
        return model
    kind = {"vivit": "Vivit", "videomae": "VideoMAE"}[name]
    if kind == "Vivit" and "patch_size" in common:
        size = common.pop("patch_size")
        common["tubelet_size"] = [common["tubelet_size"], size, size]
    config = getattr(transformers, f"{kind}Config")(**common, attn_implementation="sdpa")
    return getattr(transformers, f"{kind}ForVideoClassification")(config)


def logits_of(model: nn.Module, clip: Tensor) -> Tensor:
    out = model(clip)
    return out if isinstance(out, Tensor) else out.logits


def forward_of(model: nn.Module, clip: Tensor, dtype: str) -> Callable[[], Tensor]:
    model.eval()
    if dtype == "bfloat16":
        model, clip = model.bfloat16(), clip.bfloat16()

    def run() -> Tensor:
        with torch.inference_mode():
            return logits_of(model, clip)

    return run


def training_step_of(model: nn.Module, clip: Tensor, dtype: str) -> Callable[[], None]:
    """Forward, loss, backward, AdamW whose moments are there already; gradients are freed in between."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    targets = torch.zeros(len(clip), dtype=torch.long, device=clip.device)

    def run() -> None:
        with torch.autocast(clip.device.type, dtype=torch.bfloat16) if dtype == "bfloat16" else nullcontext():
            loss = functional.cross_entropy(logits_of(model, clip).float(), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def attention_difference() -> float:
    """How far TimeSformer's logits are from what transformers computes, in a small one."""
    torch.manual_seed(SEED)
    sizes = {"image_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = build("timesformer", 4, **sizes, intermediate_size=64).eval()
    clip = torch.randn(2, 4, 3, 32, 32)
    with torch.inference_mode():
        fused = logits_of(model, clip)
        for module in model.modules():
            if isinstance(module, FusedAttention):
                module.__class__ = TimesformerSelfAttention
        return (fused - logits_of(model, clip)).abs().max().item()


def parity() -> dict[str, float]:
    """Before any speed: PKS4 starts as the ViT, and TimeSformer's attention is what transformers computes."""
    difference = attention_difference()
    if difference > 1e-5:
        raise SystemExit(f"parity failed: TimeSformer's attention differs by {difference}. No speed is reported.")
    # On the way kernels are compiled where they are new, those of the backward pass, too: no cell shall pay for it.
    small = create_model("pks4_vit_ti16", num_classes=NUM_CLASSES, image_size=32, depth=2, insert_after=1)
    training_step_of(small, torch.randn(1, 2, 3, 32, 32), "float32")()
    return {"pks4_start": pks4_over_vit.check_start(), "timesformer_attention": difference}


def measure_cell(cell: Cell, repetitions: int) -> dict[str, dict[str, Any]]:
    """Times and memory of every model of a cell: {"times": ..., "peak_bytes": ...}, by model."""
    clip = torch.randn(1, cell.frames, 3, 224, 224, generator=torch.Generator().manual_seed(SEED))
    make = forward_of if cell.what == "forward" else training_step_of
    runs, peaks, times = {}, {}, {}
    for name in cell.models:
        model = build(name, cell.frames)
        weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        run = make(model, clip, cell.dtype)
        times[name], peaks[name] = measure.first_call(run)
        if cell.what != "forward":
            peaks[name] += 3 * weights  # with AdamW's two moments
        if repetitions:
            runs[name] = run
        del model, run  # the large ones do not fit into memory side by side
    if repetitions:
        times = measure.time_in_turn(runs, repetitions, warmups=0)
    return {"times": times, "peak_bytes": peaks}


def repetitions_of(cell: Cell) -> int:
    """Timed calls beyond the first."""
    return 0 if cell.models == LARGE else REPETITIONS[cell.frames]


def obstacle(cell: Cell) -> str | None:
    """Why a cell is left out."""
    if cell.what != "training step":
        return None
    a_frame = STEP_BYTES_A_FRAME[cell.models] * (2 / 3 if cell.dtype == "bfloat16" else 1)
    standing = 4 * 4 * MOST_PARAMETERS[cell.models]  # weights, gradients, two moments
    if repetitions_of(cell):
        standing *= len(cell.models)
    needed = cell.frames * a_frame + standing
    free = psutil.virtual_memory().available
    return f"needs about {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free" if needed > free else None


def put(results: dict[str, Any], cell: Cell, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Into the groups from which the page draws its curves."""
    group = results.setdefault(cell.group, {})
    memory = results.setdefault(f"{cell.group}: memory", {})
    for name, timing in found["times"].items():
        group[f"{name}, {cell.frames} frames"] = timing
        memory[f"{name}, {cell.frames} frames"] = {"peak_bytes": found["peak_bytes"][name]}
    costs = {
        "pks4_cpu_time_over": {name: timing.cpu_seconds for name, timing in found["times"].items()},
        "pks4_peak_memory_over": found["peak_bytes"],
    }
    for title, cost in costs.items():
        ours, *others = cell.models
        ratios = {name: round(cost[ours] / cost[name], 3) for name in others}
        results.setdefault(title, {}).setdefault(cell.group, {})[f"{cell.frames} frames"] = ratios
    results.setdefault("commits", {})[str(cell)] = measure.commit()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [str(cell) for cell in cells()]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CELL", help="; ".join(names))
    parser.add_argument("--again", action="store_true", help="measure what the JSON holds already, too")
    parser.add_argument("--repetitions", type=int, help=f"timed calls; by default by frames: {REPETITIONS}")
    parser.add_argument("--results", type=Path, default=measure.RESULTS, help="folder of the JSON")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    path = args.results / f"{NAME}.json"
    results: dict[str, Any] = json.loads(path.read_text())["results"] if path.exists() else {}
    results["parity"] = parity()
    left_out = results["left_out"] = {
        str(cell): "not measured yet" for cell in cells() if str(cell) not in results.get("commits", {})
    }
    write(results, args.results)
    for cell in cells():
        done = str(cell) in results.get("commits", {})
        if str(cell) not in args.only or (done and not args.again):
            continue
        reason = obstacle(cell)
        left_out.pop(str(cell), None)
        if reason:
            left_out[str(cell)] = reason
        else:
            repetitions = repetitions_of(cell) if args.repetitions is None else args.repetitions
            put(results, cell, measure_cell(cell, repetitions))
        write(results, args.results)
        print(cell, reason or "done", flush=True)


def write(results: Mapping[str, Any], folder: Path) -> None:
    settings = {"clips": 1, "image_size": 224, "num_classes": NUM_CLASSES, "repetitions": str(REPETITIONS)}
    packages = ("torch", "transformers", "numba", "numpy", "kinescan")
    measure.write_result(
        NAME,
        seed=SEED,
        n=max(REPETITIONS.values()),
        settings=settings,
        results=results,
        folder=folder,
        packages=packages,
    )


if __name__ == "__main__":
    main()
