"""Augmentation of a training clip on a CPU: our operations, frame by frame in place, against kornia's on the clip.

Run: OMP_NUM_THREADS=1 python benchmarks/augmentation.py            (about a minute)
Aim: at least twice as fast at 32 frames, with the same random numbers and clips that are equal within 2e-4 (of 1).

Draws of equalising and posterising are left out of the comparison of clips: they work in levels, and a value at the
edge of one may fall to either side; tests compare them alone.
"""

import argparse
import json
import statistics
import time
from typing import Any

import torch

import measure
from kinescan.data import AugmentConfig, TrainTransform
from kinescan.data.rand_augment import OPERATIONS, carry_out, sample_operations
from kinescan.data.transforms import SampledAugmentation, finish_clip, to_unit
from kinescan.preprocessing import Preprocessing
from peers import kornia_augment

NAME = "augmentation_cpu"
SEED = 0
MAGNITUDE, CLIPS = 9, 24
AIMS = {"speedup_at_32_frames": 2.0}


def clip(frames: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(SEED)
    coarse = torch.rand(frames, 3, 15, 20, generator=generator)
    wide = torch.nn.functional.interpolate(coarse, size=(240, 320), mode="bilinear")
    return wide.mul(255).byte().contiguous(memory_format=torch.channels_last)


def kornia_finish(frames: torch.Tensor, left: SampledAugmentation, settings: Preprocessing) -> torch.Tensor:
    changed = kornia_augment.carry_out(to_unit(frames), left.operations, magnitude=left.magnitude)
    return finish_clip(changed, SampledAugmentation(erased=left.erased, noise=left.noise), settings)


def check(frames: torch.Tensor) -> float:
    """The largest difference of a pixel over samples of two operations."""
    unit, in_levels, worst = (
        to_unit(frames[:, :, :224, :224]),
        {list(OPERATIONS).index(name) for name in ("equalize", "posterize")},
        0.0,
    )
    for seed in range(CLIPS):
        sampled = sample_operations(2, torch.Generator().manual_seed(seed))
        if in_levels.isdisjoint(index for index, _ in sampled):
            ours = carry_out(unit, sampled, magnitude=MAGNITUDE)
            theirs = kornia_augment.carry_out(unit, sampled, magnitude=MAGNITUDE)
            # thresholds may be met by rounding: all but one pixel of ten thousand count
            difference = (ours - theirs).abs().flatten()
            worst = max(worst, float(difference.kthvalue(int(0.9999 * len(difference))).values))
    assert worst < 2e-4, worst
    return worst


def timed(frames: torch.Tensor, repetitions: int) -> dict[str, Any]:
    settings = Preprocessing(num_frames=len(frames), size=224)
    transform = TrainTransform(settings, AugmentConfig(crop_scale=(0.08, 1.0), flip_rate=0.5))
    sampled = [transform.sample(frames, generator=torch.Generator().manual_seed(seed)) for seed in range(CLIPS)]
    found: dict[str, list[float]] = {"kornia": [], "ours": []}
    for _ in range(repetitions):
        for name, finish in (("kornia", kornia_finish), ("ours", finish_clip)):
            started = time.process_time()
            for pixels, left in sampled:
                finish(pixels, left, settings)
            found[name].append(1000 * (time.process_time() - started) / CLIPS)
    found["speedup"] = [theirs / ours for theirs, ours in zip(found["kornia"], found["ours"], strict=True)]
    rows: dict[str, float] = {}
    for name, values in found.items():
        key = name if name == "speedup" else f"{name}_ms_a_clip"
        for suffix, value in (("", statistics.median(values)), ("_lowest", min(values)), ("_highest", max(values))):
            rows[key + suffix] = round(value, 2)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"largest_difference": check(clip(4))}
    for frames in (8, 32):
        results[f"{frames} frames"] = timed(clip(frames), args.repetitions)
        print(json.dumps(results), flush=True)
    settings = {
        "size": 224,
        "operations": 2,
        "magnitude": MAGNITUDE,
        "clips": CLIPS,
        "time": "CPU, median of the passes",
    }
    measure.write_result(NAME, seed=SEED, n=args.repetitions, settings=settings, results={**results, "aims": AIMS})


if __name__ == "__main__":
    main()
