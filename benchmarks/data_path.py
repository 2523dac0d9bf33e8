"""From file to batch: decoding with resizing and normalising against decoding alone; loading by worker processes.

Run: OMP_NUM_THREADS=1 python benchmarks/data_path.py            (about two minutes on an idle core)
Aim (BENCHMARKS of the design): 8 frames of a clip decoded, resized and normalised in <= 1.25x the CPU time of decoding
them; workers scale it.

The videos are made here: 10 s of 320x240 in H.264 at 30 frames per second, a key frame every 250 frames (x264's own
setting, as most files have it) or every 12 (where there is the least to decode, so that the rest weighs most).
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
from torch import Tensor

import measure
from kinescan.data import (
    AugmentConfig,
    EvalTransform,
    LoaderConfig,
    TrainTransform,
    VideoDataset,
    VideoItem,
    VideoLoader,
    VideoReader,
    datasets,
    make_loader,
    segment_indices,
    write_video,
)
from kinescan.preprocessing import Preprocessing

NAME = "data_path_cpu"
SEED = 0
SIZE = (240, 320)
FPS, SECONDS = 30, 10
KEYFRAMES = (250, 12)
WORKERS = (0, 1, 2)
CLIP = (8, 3, 224, 224)
SETTINGS = Preprocessing(num_frames=8, size=224)
CROP_ONLY = AugmentConfig(rand_augment_operations=0, flip_rate=0.5)
RECIPE = AugmentConfig(crop_scale=(0.08, 1.0), flip_rate=0.5)
AIMS = {"decode_resize_normalise": 1.25}


def make_videos(folder: Path, number: int, keyframe_interval: int) -> list[VideoItem]:
    """Textures that slide over each other, with grain, so that there is something to code."""
    height, width = SIZE
    items = []
    for index in range(number):
        generator = torch.Generator().manual_seed(SEED + index)
        frames = FPS * SECONDS
        layers = []
        for speed in (1, 2):
            coarse = torch.rand(1, 3, 9, 9 + frames * speed // 30, generator=generator)
            wide = torch.nn.functional.interpolate(coarse, size=(height, width + speed * frames), mode="bicubic")[0]
            layers.append(torch.stack([wide[:, :, speed * t : speed * t + width] for t in range(frames)]))
        grain = torch.randn(frames, 1, height, width, generator=generator) * 0.026
        pixels = (layers[0] * 0.6 + layers[1] * 0.4 + grain).clamp(0, 1).mul(255).byte()
        path = folder / f"{keyframe_interval}" / f"{index}.mp4"
        write_video(path, pixels, fps=FPS, crf=23, keyframe_interval=keyframe_interval)
        items.append(VideoItem(path, index % 2, path.name))
    return items


def decode(item: VideoItem) -> Tensor:
    with VideoReader(item.path) as video:
        return video.read(segment_indices(video.num_frames, SETTINGS.num_frames, position="middle")).pixels


def candidates(items: list[VideoItem]) -> dict[str, Callable[[], None]]:
    """What is timed: each goes over all videos; one clip's memory is used again and again, as in a worker."""
    test, block = EvalTransform(SETTINGS), torch.empty(1, *CLIP)

    def run(finish: Callable[[Tensor], object]) -> Callable[[], None]:
        def over_all() -> None:
            for item in items:
                finish(decode(item))

        return over_all

    def training(augment: AugmentConfig) -> Callable[[Tensor], object]:
        transform = TrainTransform(SETTINGS, augment)
        return lambda pixels: transform(pixels, generator=torch.Generator().manual_seed(SEED), out=block[0])

    return {
        "decode": run(lambda pixels: None),
        "decode_resize_normalise": run(lambda pixels: test(pixels, out=block)),
        "with_random_crop_and_erasing": run(training(CROP_ONLY)),
        "with_the_recipe_s_augmentation": run(training(RECIPE)),
    }


def measure_transforms(items: list[VideoItem], repetitions: int) -> dict[str, Any]:
    times = measure.time_in_turn(candidates(items), repetitions)
    alone = times["decode"]
    return {
        "times": times,
        "cpu_ratio_to_decoding": {
            name: round(timing.cpu_seconds / alone.cpu_seconds, 4) for name, timing in times.items()
        },
        # The least disturbed calls: on a busy machine the steadiest comparison.
        "cpu_ratio_of_minima": {
            name: round(timing.cpu_seconds_min / alone.cpu_seconds_min, 4) for name, timing in times.items()
        },
        "clips_per_cpu_second": {name: round(len(items) / timing.cpu_seconds, 2) for name, timing in times.items()},
    }


def measure_batch_memory(items: list[VideoItem], repetitions: int) -> dict[str, Any]:
    """A batch of 8 clips from decoded frames to shared memory: written in place, or stacked and moved there."""
    frames = [decode(item) for item in items[:8]]
    transform = EvalTransform(SETTINGS)

    def in_place() -> Tensor:
        block = datasets._new_block(len(frames), 1, *CLIP)
        for pixels, target in zip(frames, block, strict=True):
            transform(pixels, out=target)
        return block

    def stacked() -> Tensor:
        return torch.stack([transform(pixels) for pixels in frames]).share_memory_()

    with mock.patch("torch.utils.data.get_worker_info", return_value=True):
        if not (in_place().is_shared() and torch.equal(in_place(), stacked())):
            raise SystemExit("parity failed: the batch written in place is another. No speed is reported.")
        times = measure.time_in_turn({"in_place": in_place, "stacked_and_moved": stacked}, 5 * repetitions)
    ratio = times["in_place"].cpu_seconds / times["stacked_and_moved"].cpu_seconds
    return {"times": times, "cpu_ratio": round(ratio, 4), "batch_bytes": 4 * len(frames) * math.prod(CLIP)}


def measure_loaders(items: list[VideoItem], epochs: int) -> dict[str, Any]:
    """Clips per second over whole epochs, workers warm, loaders in turn; CPU time of all processes together."""
    items = 2 * items
    loaders = {workers: loader_of(items, workers) for workers in WORKERS}
    pixels = {hash_of(loader) for loader in loaders.values()}
    if len(pixels) > 1:
        raise SystemExit("parity failed: other pixels with other numbers of workers. No speed is reported.")
    walls: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    cpus: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for epoch in range(1, epochs + 1):
        for workers, loader in loaders.items():
            loader.set_epoch(epoch)
            cpu, wall = _cpu_of_all(), time.perf_counter()
            for batch in loader:
                del batch
            walls[workers].append(time.perf_counter() - wall)
            cpus[workers].append(_cpu_of_all() - cpu)
    num = len(items)
    return {
        **{
            name: {
                "clips_per_second": round(num / statistics.median(walls[workers]), 2),
                "clips_per_second_best": round(num / min(walls[workers]), 2),
                "cpu_seconds_per_clip": round(statistics.median(cpus[workers]) / num, 5),
            }
            for name, workers in zip(("no_workers", "one_worker", "two_workers"), WORKERS, strict=True)
        },
        "parity": "the same pixels with 0, 1 and 2 workers (sha256)",
        # of the other work on the machine, as of the loader
        "two_workers_over_one_wall": round(min(walls[1]) / min(walls[2]), 3),
        "two_workers_over_none_cpu": round(statistics.median(cpus[2]) / statistics.median(cpus[0]), 3),
        "load_average": round(os.getloadavg()[0], 1),
    }


def loader_of(items: list[VideoItem], workers: int) -> VideoLoader:
    transform = TrainTransform(SETTINGS, CROP_ONLY)
    dataset = VideoDataset(items, ("even", "odd"), transform, preprocessing=SETTINGS, mode="train", seed=SEED)
    return make_loader(dataset, LoaderConfig(batch_size=2, num_workers=workers), shuffle=True, seed=SEED)


def hash_of(loader: VideoLoader) -> str:
    sha = hashlib.sha256()
    for batch in loader:
        sha.update(batch.clips.numpy().tobytes())
    return sha.hexdigest()


def _cpu_of_all() -> float:
    own = psutil.Process()
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def check_parity(items: list[VideoItem]) -> float:
    """What is timed is right: the fast path against resizing floats, in levels of 255; rounding allows 1."""
    pixels = decode(items[0])
    ours = EvalTransform(SETTINGS)(pixels)[0]
    scaled = torch.nn.functional.interpolate(pixels.float(), size=(224, 299), mode="bilinear", antialias=True)
    levels = ours * torch.tensor(SETTINGS.std).view(3, 1, 1) + torch.tensor(SETTINGS.mean).view(3, 1, 1)
    difference = float((levels * 255 - scaled[..., 38:262]).abs().max())
    if difference > 1.1:
        raise SystemExit(f"parity failed: pixels differ by {difference:.3f} levels. No speed is reported.")
    return round(difference, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for keyframes in KEYFRAMES:
            items = make_videos(Path(folder), args.videos, keyframes)
            part: dict[str, Any] = {"parity_max_difference_levels": check_parity(items)}
            part["file_bytes"] = sum(item.path.stat().st_size for item in items) // len(items)
            part["clips"] = len(items)
            part |= measure_transforms(items, args.repetitions)
            results[f"key_frame_every_{keyframes}"] = part
            print(keyframes, json.dumps(part, default=asdict), flush=True)
            if keyframes == KEYFRAMES[0]:
                results["batch_memory"] = measure_batch_memory(items, args.repetitions)
                results["loader"] = measure_loaders(items, min(args.repetitions, 4))
                print(json.dumps([results["batch_memory"], results["loader"]], default=asdict), flush=True)
    settings = {"video": f"{SIZE[1]}x{SIZE[0]}, {SECONDS} s at {FPS} fps, H.264", "frames": 8, "size": 224}
    measure.write_result(NAME, seed=SEED, n=args.repetitions, settings=settings, results={**results, "aims": AIMS})


if __name__ == "__main__":
    main()
