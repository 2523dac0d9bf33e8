"""How many live streams of 25 frames a second one CPU core carries, one by one and batched.

Run: OMP_NUM_THREADS=1 python benchmarks/stream_throughput.py            (writes results/stream_throughput_cpu.json)

A causal PKS4 takes one frame at a time of each stream, in torch and as one exported step in OpenVINO (`kinescan export
--step`), which has passed its own check over a hundred frames; a speed is reported only then. Decoding and resizing a
frame of 320x240 H.264 is timed beside: a core that does all of it carries as many streams as "with decoding" says, and,
where the model was trained at 8 frames a second and takes no more of the 25, as "sampled at 8" says.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import measure
from kinescan.data.synthetic.motion import MotionConfig, render_motion
from kinescan.data.transforms import EvalTransform
from kinescan.data.video import VideoReader, write_video
from kinescan.inference.export import export
from kinescan.inference.exported import ExportedStep, load_exported
from kinescan.models.pks4 import PKS4
from stream import build

NAME = "stream_throughput_cpu"
SEED, FPS, SAMPLED_FPS, DECODED_FRAMES = 0, 25, 8, 100
SMALL = {"image_size": 64, "patch_size": 8, "width": 64, "depth": 4, "heads": 4, "mlp_dim": 256, "embed_dim": 64}
MODELS: dict[str, tuple[str, dict[str, int]]] = {
    "small": ("pks4_vit_ti16", {**SMALL, "insert_after": 2, "kinematic_width": 16}),
    "Ti/16": ("pks4_vit_ti16", {}),
    "B/16": ("pks4_vit_b16", {}),
}
"""The small one is that of the demo, at 64 x 64 pixels; the others take 224 x 224."""
BATCHES = {"small": (1, 16), "Ti/16": (1, 8), "B/16": (1, 4)}
EXPORTS: dict[str, dict[str, Any]] = {
    "openvino, float32": {"to": "openvino"},
    "openvino, bfloat16": {"to": "openvino", "precision": "bfloat16"},
}


def stepping(model: PKS4 | ExportedStep, streams: int) -> Callable[[], Tensor]:
    """One more frame of each stream at every call."""
    size = model.config.image_size
    frames = torch.randn(streams, 1, 3, size, size, generator=torch.Generator().manual_seed(SEED))
    state = None

    def run() -> Tensor:
        nonlocal state
        with torch.inference_mode():
            logits, state = model.forward_stream(frames, state)
        return logits

    return run


def decoding(path: Path, model: PKS4) -> Callable[[], None]:
    """All frames of a file, from its bytes to the model's tensors."""
    transform = EvalTransform(model.preprocessing, crops=1)

    def run() -> None:
        with VideoReader(path) as video:
            for pixels, _ in video:
                transform(pixels[None])

    return run


def measure_model(size: str, exports: Sequence[str], folder: Path, repetitions: int) -> dict[str, Any]:
    """CPU seconds of a frame of one stream, for each engine and number of streams; exports are checked first."""
    name, options = MODELS[size]
    model = build(name, **options)
    engines: dict[str, PKS4 | ExportedStep] = {"torch, float32": model}
    checks = {}
    for name in exports:
        target = folder / f"{size}-{name}".replace("/", "").replace(", ", "-")
        checks[name] = export(model, target, step=True, **EXPORTS[name]).check
        exported = load_exported(target, num_threads=1)
        assert isinstance(exported, ExportedStep)
        engines[name] = exported
    steps = {
        f"{name}, {streams} at once": stepping(engine, streams)
        for name, engine in engines.items()
        for streams in BATCHES[size]
    }
    times = measure.time_in_turn(steps, repetitions, warmups=2)
    path = folder / "stream.mp4"
    if not path.exists():
        pixels = render_motion(MotionConfig(frame_size=320, num_frames=DECODED_FRAMES), "test", "horizontal", 0)
        write_video(path, pixels[:, :, :240], fps=FPS)
    decoded = measure.time_in_turn({"decoding": decoding(path, model)}, 3)["decoding"].cpu_seconds / DECODED_FRAMES
    rows = {}
    for name, found in times.items():
        streams = int(name.split(", ")[-1].split(" ")[0])
        seconds = found.cpu_seconds / streams
        rows[name] = {
            "frame_cpu_seconds": seconds,
            "streams_of_25_fps": round(1 / (FPS * seconds), 2),
            "with_decoding": round(1 / (FPS * (seconds + decoded)), 2),
            f"sampled_at_{SAMPLED_FPS}": round(1 / (FPS * decoded + SAMPLED_FPS * seconds), 2),
        }
    return {"candidates": rows, "decoding_frame_cpu_seconds": decoded, "parity": checks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--exports", nargs="+", default=list(EXPORTS), choices=list(EXPORTS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.models:
            results[size] = measure_model(size, arguments.exports, Path(folder), arguments.repetitions)
            print(size, json.dumps(results[size], indent=1), flush=True)
    settings = {"models": MODELS, "fps": FPS, "decoded": "320x240 H.264", "sampled_fps": SAMPLED_FPS}
    measure.write_result(NAME, seed=SEED, n=arguments.repetitions, settings=settings, results=results)


if __name__ == "__main__":
    main()
