"""Not computing what stands still: accuracy against the fraction of patches, and seconds, overhead included.

Run:  OMP_NUM_THREADS=1 python benchmarks/still_patches.py train     (some minutes; what is done is not done again)
      OMP_NUM_THREADS=1 python benchmarks/still_patches.py measure

Accuracy: of the motion model that ships, which is causal (published: that of seven names).
Without any training, patches that
stand still are skipped (`kinescan.models.still.SkipUnchanged`): on test clips before a still camera and with a shaking
one, on clips as those that the model learned from (in half of them the whole picture moves), and on streams of a still
camera: an object rests, moves for a clip, rests. Scored beside the same model that computes everything, on the same
pixels. Thresholds were fixed beforehand. `train` continues the motion model's training for the same batches without a
gate and with gates (see `PKS4Config.gate`). Speed: PKS4 B/16 with random weights, process CPU time of a frame or
clip, beside the same model that computes everything, in turn; the patches that change are those of the made streams at
224 pixels. Of real videos only the fraction of patches that stand still is told: nothing is known of their labels here.
Writes benchmarks/results/still_patches.json.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import measure
from kinescan.config import load_recipe
from kinescan.data.synthetic.motion import MOTION_PAIRS, MotionConfig, render_motion
from kinescan.data.synthetic.motion_clips import MotionClips, MotionClipsConfig
from kinescan.data.transforms import EvalTransform
from kinescan.data.video import VideoReader
from kinescan.errors import VideoError
from kinescan.models.pks4 import PKS4
from kinescan.models.pks4_config import PKS4Config
from kinescan.models.pks4_state import PKS4State
from kinescan.models.saving.shipped import MOTION, SHIPPED
from kinescan.models.still import SkipUnchanged, changed_patches
from kinescan.models.zoo import create_model, from_pretrained
from kinescan.preprocessing import Preprocessing
from kinescan.runtime.normalisation import normalise
from kinescan.training.loop import fit

NAME = "still_patches"
WORK = Path("runs/still_patches")
VIDEOS = measure.HERE.parent.parent / "shared" / "videos" / "clips"
PAIRS = ("horizontal", "vertical")
CLASSES = tuple(name for pair in PAIRS for name in MOTION_PAIRS[pair])
FRAMES, SIZE, SEED = 8, 48, 0
TEST_PER_CLASS, TRAINED_BATCHES, RATE, TEST_BATCHES = 100, 150, 1e-3, 28
"""Clips of a class in a test; batches of 16 clips that a gate is trained for; batches of such clips in a test."""
GATES = {"no gate": None, "gate, half": 0.5, "gate, quarter": 0.25}
REST = 24
CAMERAS = {"still camera": {"noise_levels": 2.0, "shake_pixels": 0.0}, "shaking camera": {}}
"""The other has noise of 3 levels, and up to a pixel of shake from frame to frame."""
PIXEL_THRESHOLDS = (0.0, 2.0, 4.0, 6.0, 8.0, 12.0)
TOKEN_THRESHOLDS = (0.0, 0.05, 0.1, 0.2, 1e9)
DEFAULT_PIXELS, DEFAULT_TOKENS = 4.0, 0.1
REFRESH = 64
FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
PARTS = ("clips", "streams", "gate", "speed", "real")
BATCH = 50


def render(per_class: int, camera: Mapping[str, float], *, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Test clips [n, 8, 3, size, size] uint8 and their labels [n]; a class and its mate share frames."""
    config = MotionConfig(frame_size=size, num_frames=FRAMES, seed=SEED, **camera)
    clips = [render_motion(config, "test", pair, index) for pair in PAIRS for index in range(per_class)]
    both = torch.stack([turned for clip in clips for turned in (clip, clip.flip(0))])
    pairs = torch.arange(len(PAIRS)).repeat_interleave(per_class)
    return both, torch.stack([2 * pairs, 2 * pairs + 1], dim=1).flatten()


def motion_model() -> PKS4:
    """The model that ships; its first classes are CLASSES."""
    model = from_pretrained(SHIPPED / MOTION)
    assert isinstance(model, PKS4)
    assert tuple(model.class_names)[: len(CLASSES)] == CLASSES
    return model


def as_in_training(model: PKS4, num_batches: int, seed: int) -> MotionClips:
    config = MotionClipsConfig(names=tuple(model.class_names))
    return MotionClips(model.preprocessing, num_batches=num_batches, batch_size=16, config=config, seed=seed)


def train(name: str) -> PKS4:
    """The motion model, trained for TRAINED_BATCHES more with this gate, or without one; once."""
    output = WORK / name.replace(", ", "_").replace(" ", "_")
    if not (output / "saved").exists():
        shipped, ratio = motion_model(), GATES[name]
        gate = {} if ratio is None else {"gate": True, "gate_ratio": ratio}
        torch.manual_seed(SEED)
        model = create_model(
            shipped.name,
            labels=shipped.class_names,
            weights=SHIPPED / MOTION,
            preprocessing=shipped.preprocessing,
            **asdict(replace(shipped.config, **gate)),
        )
        config = load_recipe("motion_model", [])
        optim = replace(config.optim, lr=RATE)
        clips = as_in_training(shipped, TRAINED_BATCHES, SEED + 11)
        fit(model, clips, output=output / "run", train=config.train, optim=optim, seed=SEED, resume=output.exists())
        model.save_pretrained(output / "saved")
    found = from_pretrained(output / "saved")
    assert isinstance(found, PKS4)
    return found.eval()


def to_clips(model: PKS4, pixels: Tensor) -> Tensor:
    """Clips [n, T, 3, H, W] as the model takes them."""
    return normalise(pixels, model.preprocessing.mean, model.preprocessing.std, white=255)


def at_rest(clips: Tensor) -> Tensor:
    """[n, 2 * REST + 8, ...]: the first frame for a while, the clip, the last frame for a while; noise on all."""
    generator = torch.Generator().manual_seed(SEED + 1)
    held = torch.cat([clips[:, :1].expand(-1, REST, -1, -1, -1), clips, clips[:, -1:].expand(-1, REST, -1, -1, -1)], 1)
    noise = CAMERAS["still camera"]["noise_levels"] * torch.randn(held.shape, generator=generator)
    return (held.float() + noise).round().clamp(0, 255).byte()


def answers(model: PKS4, pixels: Tensor, skip: SkipUnchanged | None) -> tuple[Tensor, Tensor]:
    """[n, T, K] logits of each frame by itself, and the fractions [n, 2] of patches that were computed."""
    model.skip_unchanged = skip
    logits, fractions = [], []
    with torch.inference_mode():
        for part in pixels.split(BATCH):
            own, state = model.stream_frames(to_clips(model, part))
            logits.append(own)
            fractions.append(torch.ones(len(part), 2) if state.still is None else state.still.fraction)
    return torch.cat(logits), torch.cat(fractions)


def settings_grid() -> list[SkipUnchanged | None]:
    grid = [
        SkipUnchanged(pixel_threshold=pixel, token_threshold=token, refresh_frames=REFRESH)
        for pixel in PIXEL_THRESHOLDS
        for token in (TOKEN_THRESHOLDS if pixel == DEFAULT_PIXELS else (DEFAULT_TOKENS,))
    ]
    return [None, *grid]


def named(skip: SkipUnchanged | None) -> str:
    if skip is None:
        return "everything computed"
    token = "module not asked" if skip.token_threshold > 1e3 else f"token {skip.token_threshold:g}"
    return f"pixel {skip.pixel_threshold:g}, {token}"


def accuracy(model: PKS4, pixels: Tensor, labels: Tensor, scored: slice = slice(0, FRAMES)) -> dict[str, Any]:
    """Of streams [n, T, ...]: how often the average over the frames `scored` is right, for each setting."""
    rows: dict[str, Any] = {}
    full: Tensor | None = None
    for skip in settings_grid():
        logits, fractions = answers(model, pixels, skip)
        best = logits[:, scored].mean(1).argmax(1)
        full = best if full is None else full
        own = (best == labels).double()
        difference = own - (full == labels).double()
        rows[named(skip)] = {
            "accuracy": own.mean().item(),
            "difference_points": 100 * difference.mean().item(),
            "difference_standard_error_points": 100 * (difference.std() / len(labels) ** 0.5).item(),
            "same_answer": (best == full).double().mean().item(),
            "patches_before_module": fractions[:, 0].mean().item(),
            "patches_behind_module": fractions[:, 1].mean().item(),
        }
        print(named(skip), json.dumps(rows[named(skip)]), flush=True)
    return {"candidates": rows}


def stepping(model: PKS4, frames: Tensor, skip: SkipUnchanged | None) -> Callable[[], None]:
    """The next frame of a stream [1, T, 3, H, W] at every call; the stream begins again after its end."""
    state: PKS4State | None = None
    turn = 0

    def run() -> None:
        nonlocal state, turn
        model.skip_unchanged = skip
        with torch.inference_mode():
            _, state = model.stream_frames(frames[:, turn : turn + 1], state)
        turn = (turn + 1) % frames.shape[1]

    return run


def parity(model: PKS4) -> dict[str, float]:
    """Largest difference of logits from everything computed: where every patch changes, and where the half does."""
    generator = torch.Generator().manual_seed(SEED)
    frames = torch.randn(1, 3, 3, 224, 224, generator=generator)
    half = frames.clone()
    half[:, 1:, :, :112] = frames[:, :1, :, :112]
    found = {}
    for name, clip in {"every patch changes": frames, "half of the patches change": half}.items():
        with torch.inference_mode():
            model.skip_unchanged = None
            plain, _ = model.stream_frames(clip)
            model.skip_unchanged = SkipUnchanged(pixel_threshold=0.0, token_threshold=1e9)
            skipped, _ = model.stream_frames(clip)
        found[name] = (skipped - plain).abs().max().item()
        found[f"{name}, largest logit"] = plain.abs().max().item()
    return found


def speed(repetitions: int) -> dict[str, Any]:
    """CPU seconds of a frame of a stream and of a clip, by the fraction of patches that change; PKS4 B/16."""
    torch.manual_seed(SEED)
    found: dict[str, Any] = {}
    model = create_model("pks4_vit_b16", num_classes=len(CLASSES), causal=True).eval()
    base = torch.randn(1, 1, 3, 224, 224)
    for fraction in FRACTIONS:
        count = round(fraction * 196)
        mask = torch.zeros(196).index_fill(0, torch.randperm(196)[:count], 1).view(14, 14)
        mask = mask.repeat_interleave(16, 0).repeat_interleave(16, 1)
        frames = torch.where(mask > 0, torch.randn(1, FRAMES, 3, 224, 224), base)
        skip = SkipUnchanged(pixel_threshold=0.0, token_threshold=1e9, refresh_frames=10_000)
        runs = {"everything computed": stepping(model, frames, None), "skipping": stepping(model, frames, skip)}
        times = measure.time_in_turn(runs, repetitions, warmups=2)
        found[f"{fraction:g} of the patches change"] = {
            "candidates": times,
            "times_faster": times["everything computed"].cpu_seconds / times["skipping"].cpu_seconds,
        }
        print(fraction, found[f"{fraction:g} of the patches change"], flush=True)
    return {
        "parity": parity(model),
        "stream_frame": found,
        "made_streams": made_streams(model),
        "clip": clips_speed(repetitions),
    }


def made_streams(model: PKS4) -> dict[str, Any]:
    """CPU seconds over made streams at 224 pixels, every frame counted: one rests, moves and rests, one shakes."""
    quiet, _ = render(1, {"noise_levels": 0.0, "shake_pixels": 0.0}, size=224)
    shaking, _ = render(3, {}, size=224)
    streams = {
        "still camera": at_rest(quiet[:1])[:, REST - 8 : REST + 2 * FRAMES],
        "shaking camera": torch.cat(list(shaking[:3]))[None],
    }
    found: dict[str, Any] = {}
    for name, pixels in streams.items():
        frames, cpu, fractions = to_clips(model, pixels), {}, []
        for kind, skip in {"everything computed": None, "skipping": SkipUnchanged()}.items():
            model.skip_unchanged, state = skip, None
            started = time.process_time()
            with torch.inference_mode():
                for frame in frames.split(1, dim=1):
                    _, state = model.stream_frames(frame, state)
                    fractions += [] if state.still is None else [state.still.fraction[0].tolist()]
            cpu[kind] = (time.process_time() - started) / frames.shape[1]
        mean = [sum(column) / len(fractions) for column in zip(*fractions, strict=True)]
        found[name] = {
            "frames": frames.shape[1],
            "frame_cpu_seconds": cpu,
            "times_faster": cpu["everything computed"] / cpu["skipping"],
            "patches_before_module": mean[0],
            "patches_behind_module": mean[1],
        }
        print(name, found[name], flush=True)
    return found


def clips_speed(repetitions: int) -> dict[str, Any]:
    """A clip of 8 frames through the usual model, and through models whose gate chooses some of the trajectories."""
    clip = torch.randn(1, FRAMES, 3, 224, 224)
    torch.manual_seed(SEED)
    models = {"no gate": create_model("pks4_vit_b16", num_classes=len(CLASSES)).eval()}
    for name, ratio in GATES.items():
        if ratio is not None:
            models[name] = create_model("pks4_vit_b16", num_classes=len(CLASSES), gate=True, gate_ratio=ratio).eval()

    def forward(model: Any) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.inference_mode():
                out: Tensor = model(clip)
            return out

        return run

    times = measure.time_in_turn({name: forward(model) for name, model in models.items()}, max(3, repetitions // 3))
    plain = times["no gate"].cpu_seconds
    return {"candidates": times, "times_faster": {name: plain / found.cpu_seconds for name, found in times.items()}}


def real_videos() -> dict[str, Any]:
    """Of real clips, 8 frames spread over each: fraction of patches (16 of 224 pixels) that are computed."""
    fractions: dict[str, list[float]] = {f"{threshold:g}": [] for threshold in PIXEL_THRESHOLDS}
    streamed: dict[str, list[float]] = {f"{threshold:g}": [] for threshold in PIXEL_THRESHOLDS}
    preprocessing = Preprocessing(size=224)
    for path in sorted(VIDEOS.glob("*")):
        try:
            with VideoReader(path) as video:
                indices = [round(k * (video.num_frames - 1) / (FRAMES - 1)) for k in range(FRAMES)]
                spread = video.read(indices).pixels
                close = video.read(list(range(0, min(video.num_frames, 4 * FRAMES), 4))).pixels
        except VideoError as error:
            print(path.name, error, flush=True)
            continue
        transform = EvalTransform(preprocessing, crops=1)
        for found, pixels in ((fractions, spread), (streamed, close)):
            clip = transform(pixels)[None] if transform(pixels).ndim == 4 else transform(pixels)[:1]
            for threshold in PIXEL_THRESHOLDS:
                skip = SkipUnchanged(pixel_threshold=threshold, refresh_frames=10_000)
                changed, _, _ = changed_patches(clip, None, skip, patch_size=16, std=preprocessing.std)
                found[f"{threshold:g}"].append(changed.float().mean().item())
    count = len(fractions["0"])
    return {
        "videos": count,
        "clips_of_8_frames": {key: sum(values) / count for key, values in fractions.items()},
        "every_fourth_frame": {key: sum(values) / count for key, values in streamed.items()},
    }


def times_faster(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Of PKS4 B/16, if it computed the fractions of patches that the small model did: by kind of clips and setting.

    Between the measured times of a frame in which nothing changes and of one in which everything does, by the fraction
    of its blocks' patches that are computed, before the module and behind it.
    """
    frames = results["speed"]["stream_frame"]
    none, every = (frames[f"{fraction:g} of the patches change"]["candidates"] for fraction in (0, 1))
    least, most = none["skipping"]["cpu_seconds"], every["skipping"]["cpu_seconds"]
    full = every["everything computed"]["cpu_seconds"]
    before = PKS4Config.insert_after / PKS4Config.depth
    found: dict[str, dict[str, float]] = {}
    for kind, own in results.items():
        for setting, row in own.get("candidates", {}).items():
            if "patches_before_module" in row:
                part = before * row["patches_before_module"] + (1 - before) * row["patches_behind_module"]
                found.setdefault(kind, {})[setting] = full / (least + (most - least) * part)
    return found


def measured(repetitions: int, parts: Sequence[str]) -> None:
    """Measures some parts anew, and writes them with those that were measured before."""
    path = WORK / "parts.json"
    WORK.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text()) if path.exists() else {}
    for part in parts:
        if part == "clips":
            for name, camera in CAMERAS.items():
                results[f"clips, {name}"] = accuracy(motion_model().eval(), *render(TEST_PER_CLASS, camera))
            results["clips, as in training"] = accuracy(motion_model().eval(), *training_clips())
        elif part == "streams":
            moving = slice(REST, REST + FRAMES)
            results["streams of a still camera"] = accuracy(motion_model().eval(), *rest_and_move(), moving)
        elif part == "gate":
            results["gate"] = gate_accuracy()
        elif part == "speed":
            results["speed"] = speed(repetitions)
        elif part == "real":
            results["real videos"] = real_videos()
        measure.write_found(path, results)
    results = json.loads(path.read_text())
    if "speed" in results:
        results["B/16 with these fractions, times faster"] = times_faster(results)
    settings = {
        "accuracy_of": MOTION,
        "gates_trained_for_batches": TRAINED_BATCHES,
        "gates_learning_rate": RATE,
        "clips_as_in_training": 16 * TEST_BATCHES,
        "test_clips_per_class": TEST_PER_CLASS,
        "classes": CLASSES,
        "cameras": CAMERAS,
        "refresh_frames": REFRESH,
        "repetitions": repetitions,
    }
    measure.write_result(NAME, seed=SEED, n=2 * len(PAIRS) * TEST_PER_CLASS, settings=settings, results=results)


def training_clips() -> tuple[Tensor, Tensor]:
    """Clips as the motion model learned from, of textures that it has not seen; in half of them everything moves."""
    clips = as_in_training(motion_model(), TEST_BATCHES, SEED + 50)
    rendered = [clips.draw(np.random.default_rng([SEED, index]))[:2] for index in range(TEST_BATCHES)]
    return torch.cat([pixels for pixels, _ in rendered]), torch.cat([labels for _, labels in rendered])


def rest_and_move() -> tuple[Tensor, Tensor]:
    """Streams [n, 2 * REST + 8, ...] of a still camera with noise, and the labels of what moves in their middle."""
    pixels, labels = render(TEST_PER_CLASS // 2, {"noise_levels": 0.0, "shake_pixels": 0.0})
    return at_rest(pixels), labels


def gate_accuracy() -> dict[str, Any]:
    """Accuracy of the models with and without a gate that were trained alike, on each kind of clips."""
    sets = {f"clips, {name}": render(TEST_PER_CLASS, camera) for name, camera in CAMERAS.items()}
    sets["clips, as in training"] = training_clips()
    found: dict[str, Any] = {}
    for kind, (pixels, labels) in sets.items():
        right: dict[str, Tensor] = {}
        for name in GATES:
            logits, _ = answers(train(name), pixels, None)
            right[name] = (logits.mean(1).argmax(1) == labels).double()
            difference = right[name] - right["no gate"]
            found.setdefault(kind, {})[name] = {
                "accuracy": right[name].mean().item(),
                "difference_points": 100 * difference.mean().item(),
                "difference_standard_error_points": 100 * (difference.std() / len(labels) ** 0.5).item(),
            }
            print(kind, name, found[kind][name], flush=True)
    return {kind: {"candidates": rows} for kind, rows in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "measure"))
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--models", nargs="+", default=list(GATES), choices=list(GATES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "measure":
        measured(given.repetitions, given.parts)
        return
    for name in given.models:
        train(name)


if __name__ == "__main__":
    main()
