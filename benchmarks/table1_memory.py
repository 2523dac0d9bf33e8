"""Memory of training in the setting of the paper's Table 1: B/16 with 32 clips of 8 frames, L/14 with 16 clips of 8.

Run: python benchmarks/table1_memory.py               (counts; about three minutes of one core, no GPU, no memory)
     python benchmarks/table1_memory.py --device cuda (measures: torch.cuda.max_memory_allocated)

Counted, not measured on a GPU: a whole step (forward, loss, backward, AdamW) runs on tensors without memory, and every
storage is counted from the operation that makes it until the last reference is gone. Weights, moments and gradients
are in it; the allocator's rounding and the work space of libraries and kernels are not.

What a GPU does otherwise than a CPU is done here, too: autocast follows the rules of CUDA (see cuda_autocast of the
package's profiling), which keep the residual stream in float32; AdamW takes all parameters at once; frames without
gradients go through together.
Fused attention keeps queries, keys, values, its result and one float32 number a query on both. The operators of the
scan keep their inputs alone on both (ops/selective_scan/operator.py). So do those of the correlation, but a CPU reads
and keeps a copy in float32 where a GPU reads what is kept anyway: 13 MB too much for B/16, 8 MB for L/14.
Peers: benchmarks/peers.

Aims: B/16 plain <= 16 GB, with activation checkpointing <= 8 GB and below the leanest peer; L/14 <= 20 GB and <= 9 GB.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import measure
from kinescan.layers import chunks
from kinescan.models.pks4_config import PKS4Config
from kinescan.models.vit.vit_config import ViTConfig
from kinescan.models.zoo import create_model
from kinescan.profiling.step_memory import StepMemory, count_step_memory, give_memory, num_trained, step_of
from peers import PEERS

NAME = "table1_memory"
COUNTED = "counted, not measured on a GPU; autocast follows CUDA's rules"
NUM_CLASSES = 174
FRAMES = 8
SETTINGS = {"B16": ("pks4_vit_b16", "vit_b16", 32), "L14": ("pks4_vit_l14", "vit_l14", 16)}
"""Key of the results -> PKS4, bare ViT, clips."""
PAPER_GB = {
    "B16": {"pks4": 21.8, "ST-Adapter": 28.8, "AIM": 35.2, "EVL": 17.9, "Side4Video": 8.9},
    "L14": {"pks4": 20.7, "ST-Adapter": 51.4, "AIM": 64.3, "EVL": 33.0, "Side4Video": 15.3},
}
"""Table 1 of the paper, measured by its authors; on which GPU and in which precision it does not say."""
PAPER_MILLION = {
    "B16": {"ST-Adapter": 7, "AIM": 14, "EVL": 89, "Side4Video": 4},
    "L14": {"ST-Adapter": 20, "AIM": 50, "EVL": 350, "Side4Video": 22},
}
DTYPES = ("bfloat16", "float32")
OURS = ("pks4", "pks4, activation checkpointing", "pks4, frozen stem", "pks4, frozen stem, activation checkpointing")
METHODS = (*OURS, "vit", *PEERS)


def build(method: str, pks4: str, vit: str, **sizes: Any) -> nn.Module:
    """A model without memory whose parameters say what is trained; `sizes` replace fields of its config."""
    with torch.device("meta"):
        if method in PEERS:
            config = create_model(vit, num_classes=NUM_CLASSES, **sizes).config
            assert isinstance(config, ViTConfig)
            return PEERS[method](config, FRAMES, NUM_CLASSES)
        if method == "vit":
            return create_model(vit, num_classes=NUM_CLASSES, **sizes)
        model = create_model(
            pks4, num_classes=NUM_CLASSES, activation_checkpointing="activation checkpointing" in method, **sizes
        )
    assert isinstance(model.config, PKS4Config)
    if "frozen stem" in method:
        stem = set(model.stem_parameters())
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in stem)
    return model


def count(model: nn.Module, clips: int, dtype: str, *, fake: bool = True) -> StepMemory:
    """What a step of this model needs on a GPU, counted on tensors without memory (or, to check that, on real ones).

    Args:
        model: from `build`.
        clips: batch size.
        dtype: "float32", or "bfloat16" for autocast.
        fake: without memory.
    """
    all_at_once = mock.patch.object(chunks, "CHUNK_VALUES", sys.maxsize)
    with all_at_once:
        return count_step_memory(
            model,
            num_clips=clips,
            num_frames=FRAMES,
            image_size=model.config.image_size,
            precision=getattr(torch, dtype),
            fake=fake,
        )


def measure_on_gpu(model: nn.Module, clips: int, dtype: str) -> StepMemory:
    """The same, measured on the CUDA device."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    give_memory(model, "cuda")
    size = model.config.image_size
    forward, backward = step_of(
        model.train(), torch.zeros(clips, FRAMES, 3, size, size, device="cuda"), getattr(torch, dtype)
    )
    backward(forward())
    torch.cuda.reset_peak_memory_stats()
    standing = torch.cuda.memory_allocated()
    loss = forward()
    kept = torch.cuda.memory_allocated() - standing
    backward(loss)
    return StepMemory(num_trained(model), standing - before, kept, torch.cuda.max_memory_allocated() - before)


def row(memory: StepMemory, method: str, setting: str) -> dict[str, float | None]:
    """A method's numbers as the page shows them, beside those of the paper."""
    return {
        "trained_million": round(memory.trained / 1e6, 2),
        "paper_trained_million": PAPER_MILLION[setting].get(method),
        "standing_gb": round(memory.standing / 1e9, 2),
        "kept_for_backward_gb": round(memory.kept / 1e9, 2),
        "peak_gb": round(memory.peak / 1e9, 2),
        "paper_measured_gb": PAPER_GB[setting].get(method),
    }


def checkpointing_difference() -> float:
    """Largest difference that activation checkpointing makes to a model's gradients, over the largest gradient."""
    sizes = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 3, "heads": 2, "mlp_dim": 64, "insert_after": 2}
    clip = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    state: dict[str, Tensor] = {}
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = create_model("pks4_vit_b16", num_classes=5, window=5, activation_checkpointing=checkpointing, **sizes)
        if not state:
            state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            for name in state:
                if name.endswith(("expand.weight", "out_proj.weight")):  # at their start, zeros, they pass no gradient
                    state[name].normal_(std=0.1)
        model.load_state_dict(state)
        loss = model(clip).square().sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    largest = max(gradient.abs().max().item() for gradient in gradients[0])
    return max((a - b).abs().max().item() for a, b in zip(*gradients, strict=True)) / largest


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("none", "cuda"), default="none", help="none: count")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--results", type=Path, default=measure.RESULTS, help="folder of the JSON")
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device here: leave --device out, and the memory is counted")
    name = NAME if args.device == "none" else f"{NAME}_gpu"
    path = args.results / f"{name}.json"
    results: dict[str, Any] = json.loads(path.read_text())["results"] if path.exists() else {}
    results["parity_of_checkpointed_gradients"] = checkpointing_difference()
    if results["parity_of_checkpointed_gradients"] > 1e-5:
        difference = results["parity_of_checkpointed_gradients"]
        sys.exit(f"gradients with activation checkpointing differ: {difference}. Nothing is reported.")
    how = count if args.device == "none" else measure_on_gpu
    for dtype in args.dtypes:
        for setting in args.settings:
            pks4, vit, clips = SETTINGS[setting]
            rows = results.setdefault(f"{setting}, {clips} x {FRAMES} frames, {dtype}", {})
            for method in args.methods:
                rows[method] = row(how(build(method, pks4, vit), clips, dtype), method, setting)
                print(setting, dtype, method, rows[method], flush=True)
            settings = {"how": COUNTED if args.device == "none" else "measured"}
            measure.write_result(name, seed=0, n=1, settings=settings, results=results, folder=args.results)


if __name__ == "__main__":
    main()
