"""Latency of an exported model against eager and torch.compile on a CPU, after each export passed its own check.

Run: python benchmarks/deployment.py            (writes results/deployment_cpu.json)
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import measure
from kinescan.inference.export import export
from kinescan.inference.export_record import ExportRecord
from kinescan.inference.exported import load_exported
from kinescan.models.classifier import VideoClassifier
from kinescan.models.zoo import create_model

NAME = "deployment_cpu"
MODEL = "pks4_vit_b16"
NUM_CLASSES = 174
SEED = 0
AIMS = {"openvino_bfloat16_over_eager": 2.0, "openvino_bfloat16_difference": 0.05}
EXPORTS: dict[str, dict[str, Any]] = {
    "onnxruntime, float32": {"to": "onnx"},
    "openvino, float32": {"to": "openvino"},
    "openvino, bfloat16": {"to": "openvino", "precision": "bfloat16"},
}
EAGER, COMPILED = "eager, float32", "torch.compile, float32"
BF16, COMPILED_BF16 = "eager, bfloat16 autocast", "torch.compile, bfloat16 autocast"


def build(num_frames: int) -> VideoClassifier:
    """Random weights, every part awake: at its start the module adds nothing, and nothing would be compared."""
    torch.manual_seed(SEED)
    model = create_model(MODEL, num_classes=NUM_CLASSES, preprocessing={"num_frames": num_frames})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("kinematic", "scanner")) and ("expand" in name or "out_proj" in name):
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        nn.init.normal_(model.head.weight, std=0.1)
    return model.eval()


def in_inference(model: Callable[[Tensor], Tensor], clip: Tensor, *, bfloat16: bool = False) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            return model(clip)

    return run


def compare(given: Tensor, expected: Tensor) -> dict[str, Any]:
    return {
        "largest_difference": round((given.float() - expected).abs().max().item(), 6),
        "same_top1": bool((given.argmax(1) == expected.argmax(1)).all()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = build(args.frames)
    size = model.config.image_size
    clip = torch.randn(1, args.frames, 3, size, size, generator=torch.Generator().manual_seed(SEED))
    candidates = {
        EAGER: in_inference(model, clip),
        BF16: in_inference(model, clip, bfloat16=True),
        COMPILED: in_inference(torch.compile(model), clip),
        COMPILED_BF16: in_inference(torch.compile(model), clip, bfloat16=True),
    }
    records: dict[str, ExportRecord] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, options) in enumerate(EXPORTS.items()):
            started = time.perf_counter()
            target = Path(folder) / str(number)
            # Raises where the file differs from the model: no speed is reported then.
            records[name] = export(model, target, batch=1, **options)
            seconds[name] = round(time.perf_counter() - started, 1)
            exported = load_exported(target, num_threads=1)
            candidates[name] = in_inference(exported, clip)
            print(name, records[name].check, flush=True)
        expected = candidates[EAGER]()
        differences = {name: compare(run(), expected) for name, run in candidates.items()}
        times = measure.time_in_turn(candidates, args.repetitions)
    eager = times[EAGER].cpu_seconds
    exact = [record.check["largest_difference"] for record in records.values() if record.precision == "float32"]
    results = {
        "parity": {"largest_difference_in_float32": max(exact)},
        "latency": times,
        "times_faster_than_eager": {name: round(eager / found.cpu_seconds, 3) for name, found in times.items()},
        "difference_from_eager": differences,
        "largest_logit": round(expected.abs().max().item(), 4),
        "checks": {name: record.check for name, record in records.items()},
        "export_seconds": seconds,
        "exporters": next(iter(records.values())).versions,
        "aims": AIMS,
    }
    settings = {"model": MODEL, "clips": 1, "frames": args.frames, "image_size": size, "num_classes": NUM_CLASSES}
    measure.write_result(NAME, seed=SEED, n=args.repetitions, settings=settings, results=results)
    print(json.dumps(results, indent=1, default=asdict))


if __name__ == "__main__":
    main()
