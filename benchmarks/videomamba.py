"""VideoMamba on a CPU, without mamba-ssm: a forward pass at the published sizes, and how it grows with the frames.

Run: OMP_NUM_THREADS=1 python benchmarks/videomamba.py            (about one minute on one core)
Writes benchmarks/results/videomamba_cpu.json. First, small models of the same kinds have to give in float32, with the
scan's kernels, what they give in float64 without them (tests hold those values to the published code's).
"""

import argparse
from typing import Any

import torch
from torch import Tensor

import measure
from kinescan.models.zoo import create_model

SEED = 0
MODELS = (
    ("videomamba_tiny", 8),
    ("videomamba_tiny", 64),
    ("videomamba_middle", 8),
    ("ssp_videomamba_middle", 8),
)


def check() -> float:
    """The largest difference between the two; raises above tolerance."""
    worst = 0.0
    for name in dict.fromkeys(name for name, _ in MODELS):
        torch.manual_seed(SEED)
        model = create_model(name, num_classes=7, image_size=64, width=64, depth=3).eval()
        clip = torch.randn(2, 8, 3, 64, 64)
        with torch.inference_mode():
            logits, exact = model(clip), model.double()(clip.double())
        torch.testing.assert_close(logits.double(), exact, atol=1e-5, rtol=1e-5)
        worst = max(worst, (logits - exact).abs().max().item())
    return worst


def time_models(repetitions: int) -> dict[str, Any]:
    """Seconds of a forward pass of one clip of 224 x 224, and the memory that it needs beside the weights."""
    results: dict[str, Any] = {}
    for name, frames in MODELS:
        model = create_model(name, num_classes=174, num_frames=frames).eval()
        clip = torch.randn(1, frames, 3, 224, 224, generator=torch.Generator().manual_seed(SEED))

        def run(model: Any = model, clip: Tensor = clip) -> None:
            with torch.inference_mode():
                model(clip)

        timing = measure.time_in_turn({"forward": run}, repetitions)["forward"]
        setting = f"{name}, {frames} frames"
        results[setting] = {"forward": timing, "peak_extra_bytes": measure.peak_extra_bytes(run)}
        print(setting, results[setting], flush=True)
    few, many = (results[f"videomamba_tiny, {frames} frames"]["forward"].cpu_seconds for frames in (8, 64))
    return {**results, "videomamba_tiny_64_frames_over_8": round(many / few, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = {"image_size": 224, "clips": 1, "num_classes": 174, "dtype": "float32"}
    results = {"parity_max_difference": check(), **time_models(arguments.repetitions)}
    print(
        measure.write_result("videomamba_cpu", seed=SEED, n=arguments.repetitions, settings=settings, results=results)
    )


if __name__ == "__main__":
    main()
