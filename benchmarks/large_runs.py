"""What a large training needs, by arithmetic: Something-Something V2 on 8 and 64 GPUs, Kinetics-700 on 64.

Run: python benchmarks/large_runs.py [--gpu-check gpu_check.json] [--cores-per-gpu 16] [--storage-bytes 2e9]
Writes results/large_runs.json and docs/large_runs.md.

Measured: seconds of a core for a clip, bytes of a file, bytes and time of a checkpoint (results/*.json beside this
script); FLOPs of a forward pass, counted operation by operation, three times. Not measured: the time of a step on a
GPU. It is read from the file of `kinescan doctor --gpu-check` where that is given; else it follows from an assumed
fraction of an assumed peak.
"""

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import measure
from kinescan.config import load_recipe
from kinescan.data.shards.pack import PackSettings
from kinescan.models.zoo import create_model
from kinescan.profiling.cost import count_cost, training_flops

TEMPLATE = measure.HERE / "large_runs_page.md"
PAGE = measure.HERE.parent / "docs" / "large_runs.md"
RECIPES = measure.HERE.parent / "src" / "kinescan" / "recipes"
PEAK_FLOPS, UTILISATION = 989e12, 0.30
"""Assumed: bfloat16 products of an H100 SXM as its maker states them, and the fraction of them that a step reaches."""
FULL_FRAMES = 8
"""Of the clips in data_path_cpu.json."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Its published size.

    Attributes:
        name: of the data set.
        train_videos: in training.
        mean_seconds: of a video.
        source: of these numbers.
    """

    name: str
    train_videos: int
    mean_seconds: float
    source: str


SSV2 = DataSet(name="Something-Something V2", train_videos=168_913, mean_seconds=4.0, source="its page: 2 to 6 s")
K700 = DataSet(name="Kinetics-700", train_videos=545_317, mean_seconds=10.0, source="arXiv 1907.06987, table 1")
CASES = (
    (SSV2, "ssv2_pks4_b16_8f", 8),
    (SSV2, "ssv2_pks4_l14_32f", 8),
    (SSV2, "ssv2_pks4_l14_32f", 64),
    (K700, "k400_pks4_b16_32f", 64),
    (K700, "k400_pks4_l14_32f", 64),
)
"""Data, recipe and GPUs; Kinetics-700 with the recipes for Kinetics-400."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What was measured of the path of the data and of checkpoints.

    Attributes:
        decode_seconds: of a core, for the frames of a clip of 10 s, decoded from its first key frame.
        frame_seconds: of a core, to resize and normalise a frame.
        augment_seconds: of a core, by frames of a clip.
        file_bytes_per_second: of a video of 320 x 240.
        packed_fraction: of the bytes that are left when frames are stored at 128 pixels.
        checkpoint_bytes: of PKS4-L/14 with AdamW's averages.
        checkpoint_waited: seconds that training waits for the three checkpoints of an evaluation; None where that was
            not measured.
        checkpoint_written: seconds until they are on the disk.
    """

    decode_seconds: float
    frame_seconds: float
    augment_seconds: Mapping[int, float]
    file_bytes_per_second: float
    packed_fraction: float
    checkpoint_bytes: float = 1.0
    checkpoint_waited: float | None = None
    checkpoint_written: float | None = None


def read_costs(folder: Path) -> Costs:
    """From the results in a folder."""

    def results(name: str) -> Any:
        return json.loads((folder / f"{name}.json").read_text())["results"]

    path = results("data_path_cpu")["key_frame_every_250"]
    seconds = {name: times["cpu_seconds"] / path["clips"] for name, times in path["times"].items()}
    augmentation, shards, checkpoint = results("augmentation_cpu"), results("shards_cpu"), {}
    if (folder / "checkpoint_wait.json").exists():
        found = results("checkpoint_wait")
        checkpoint = {
            "checkpoint_bytes": found["state_bytes"],
            "checkpoint_waited": found["second_waited_seconds"],
            "checkpoint_written": found["second_on_disk_seconds"],
        }
    return Costs(
        decode_seconds=seconds["decode"],
        frame_seconds=(seconds["decode_resize_normalise"] - seconds["decode"]) / FULL_FRAMES,
        augment_seconds={frames: augmentation[f"{frames} frames"]["ours_ms_a_clip"] / 1000 for frames in (8, 32)},
        file_bytes_per_second=path["file_bytes"] / 10,
        packed_fraction=shards["file_bytes_at_128_pixels"] / shards["file_bytes"],
        **checkpoint,
    )


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What was not measured.

    Attributes:
        peak_flops: of a GPU.
        utilisation: fraction of it that a training step reaches.
        cores_per_gpu: that a machine has for the data of a GPU.
        storage_bytes_per_second: that the storage gives all machines together.
    """

    peak_flops: float = PEAK_FLOPS
    utilisation: float = UTILISATION
    cores_per_gpu: float = 16
    storage_bytes_per_second: float = 2e9


def step_of_clip(model: str, frames: int, flops: float, checked: Mapping[str, Any] | None, given: Assumptions) -> Any:
    """Seconds of a GPU for a training clip, and where they come from."""
    if checked is not None:
        steps = checked["steps"]
        exact = steps.get(f"{model}, {frames} frames", {})
        if "seconds_per_clip" in exact:
            return exact["seconds_per_clip"], "measured by the GPU check"
        rates = [
            each["flops_per_second"]
            for name, each in steps.items()
            if name.startswith(model) and "flops_per_second" in each
        ]
        if rates:
            return flops / min(rates), "counted FLOPs at the lowest rate that the GPU check measured of this model"
    return flops / (given.peak_flops * given.utilisation), "counted FLOPs at an assumed fraction of an assumed peak"


def work_out(
    data: DataSet, flops: float, parameters: int, config: Any, gpus: int, costs: Costs, given: Assumptions, gpu: Any
) -> dict[str, Any]:
    """One row: what the GPUs ask for, what the rest gives, and what is short first."""
    frames, (seconds, source) = config.preprocessing.num_frames, gpu
    clips_per_second = gpus / seconds
    clip_seconds = min(1.0, data.mean_seconds / 10) * costs.decode_seconds
    cpu_seconds = clip_seconds + frames * costs.frame_seconds + costs.augment_seconds[frames]
    cores = clips_per_second * cpu_seconds / gpus
    file_bytes = costs.file_bytes_per_second * data.mean_seconds
    limits = {
        "GPUs": clips_per_second,
        "cores": given.cores_per_gpu * gpus / cpu_seconds,
        "storage": given.storage_bytes_per_second / file_bytes,
    }
    slowest = min(limits, key=lambda name: limits[name])
    clips = data.train_videos * config.optim.epochs
    state = 12 * parameters
    fraction = state / costs.checkpoint_bytes
    waits = config.optim.epochs * (costs.checkpoint_waited or 0.0) * fraction
    written = None if costs.checkpoint_written is None else costs.checkpoint_written * fraction
    return {
        "data": data.name,
        "model": config.model.name,
        "frames": frames,
        "gpus": gpus,
        "epochs": config.optim.epochs,
        "training_exaflops": flops * clips / 1e18,
        "gpu_seconds_per_clip": seconds,
        "gpu_seconds_from": source,
        "clips_per_second": clips_per_second,
        "core_seconds_per_clip": cpu_seconds,
        "cores_per_gpu": cores,
        "storage_bytes_per_second": clips_per_second * file_bytes,
        "storage_bytes_per_second_at_128_pixels": clips_per_second * file_bytes * costs.packed_fraction,
        "bytes_per_second_to_a_gpu": frames * 3 * config.preprocessing.size**2 / seconds,
        "data_bytes": file_bytes * data.train_videos,
        "shards": math.ceil(file_bytes * data.train_videos / PackSettings().shard_bytes),
        "gradient_bytes_a_step": 4 * parameters,
        "checkpoint_bytes": state,
        "checkpoint_waits_seconds_in_all": waits,
        "checkpoint_on_disk_seconds": written,
        "hours_by_gpus": (clips / clips_per_second + waits) / 3600,
        "hours": (clips / limits[slowest] + waits) / 3600,
        "limited_by": slowest,
        "speeds_of": limits,
    }


def measure_cases(costs: Costs, given: Assumptions, checked: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """All rows; FLOPs of a model are counted once."""
    counted: dict[str, tuple[float, int]] = {}
    rows = []
    for data, recipe, gpus in CASES:
        config = load_recipe(RECIPES / f"{recipe}.toml")
        name, frames = config.model.name, config.preprocessing.num_frames
        if recipe not in counted:
            with torch.device("meta"):
                model = create_model(name, num_classes=174)
            macs = count_cost(model, num_frames=frames).macs.with_attention
            counted[recipe] = training_flops(macs, num_clips=1, num_epochs=1), model.num_parameters
        flops, parameters = counted[recipe]
        gpu = step_of_clip(name, frames, flops, checked, given)
        rows.append(work_out(data, flops, parameters, config, gpus, costs, given, gpu))
    return rows


def page_of(result: Mapping[str, Any]) -> str:
    """The page, from the result."""
    rows, given = result["results"]["rows"], result["settings"]
    table = [
        "| data, model, frames | GPUs | clips/s | cores for each GPU | from storage | at 128 pixels | to each GPU "
        "| shards | checkpoint, on disk after | hours by GPUs | hours | short first |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        table.append(
            f"| {row['data']}, {row['model']}, {row['frames']} | {row['gpus']} | {row['clips_per_second']:,.0f} "
            f"| {row['cores_per_gpu']:.1f} | {row['storage_bytes_per_second'] / 1e6:,.0f} MB/s "
            f"| {row['storage_bytes_per_second_at_128_pixels'] / 1e6:,.0f} MB/s "
            f"| {row['bytes_per_second_to_a_gpu'] / 1e6:,.0f} MB/s | {row['shards']:,} "
            f"| {row['checkpoint_bytes'] / 1e9:.2f} GB, {_seconds(row['checkpoint_on_disk_seconds'])} "
            f"| {row['hours_by_gpus']:,.1f} | {row['hours']:,.1f} | {row['limited_by']} |"
        )
    return TEMPLATE.read_text().format(
        table="\n".join(table),
        buy="\n".join(f"- {line}" for line in advice(rows)),
        commit=result["commit"][:12],
        measured="was not measured" if given["gpu_check"] is None else f"is that of {given['gpu_check']}",
        sources="\n".join(f"- {source}: {rows_of}" for source, rows_of in sources(rows).items()),
        peak=f"{given['peak_flops'] / 1e12:,.0f}",
        utilisation=f"{100 * given['utilisation']:.0f}",
        cores=f"{given['cores_per_gpu']:g}",
        storage=f"{given['storage_bytes_per_second'] / 1e9:g}",
    )


def _seconds(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.0f} s"


def sources(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Where the seconds of a GPU come from -> rows."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["gpu_seconds_from"], []).append(f"{row['model']} at {row['frames']} frames")
    return {source: ", ".join(dict.fromkeys(names)) for source, names in found.items()}


def advice(rows: list[dict[str, Any]]) -> list[str]:
    """What to buy first for each row: what is slowest, and how much of it makes the GPUs the slowest."""
    return [
        f"{row['data']}, {row['model']} at {row['frames']} frames on {row['gpus']} GPUs: {_advice(row)}" for row in rows
    ]


def _advice(row: dict[str, Any]) -> str:
    if row["limited_by"] == "cores":
        return (
            f"cores, {row['cores_per_gpu']:.0f} for each GPU; or files with more key frames, which take less to decode"
        )
    if row["limited_by"] == "storage":
        return f"storage, {row['storage_bytes_per_second'] / 1e9:.1f} GB/s; or shards of frames at 128 pixels"
    speed, part = min((speed, of) for of, speed in row["speeds_of"].items() if of != "GPUs")
    return f"GPUs; next {part}, enough for {speed / row['clips_per_second']:.1f} times as many"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu-check", type=Path, help="the file that `kinescan doctor --gpu-check` wrote")
    parser.add_argument(
        "--tflops", type=float, default=PEAK_FLOPS / 1e12, help="peak of a GPU, where there is no check"
    )
    parser.add_argument("--utilisation", type=float, default=UTILISATION, help="fraction of it that a step reaches")
    parser.add_argument("--cores-per-gpu", type=float, default=16)
    parser.add_argument("--storage-bytes", type=float, default=2e9, help="a second, for all machines together")
    words = parser.parse_args()
    if not (words.tflops > 0 and 0 < words.utilisation <= 1 and words.cores_per_gpu > 0 and words.storage_bytes > 0):
        parser.error("--tflops, --cores-per-gpu and --storage-bytes must be positive, --utilisation in (0, 1].")
    given = Assumptions(
        peak_flops=words.tflops * 1e12,
        utilisation=words.utilisation,
        cores_per_gpu=words.cores_per_gpu,
        storage_bytes_per_second=words.storage_bytes,
    )
    checked = None if words.gpu_check is None else speed_of_check(words.gpu_check)
    costs = read_costs(measure.PUBLISHED)
    rows = measure_cases(costs, given, checked)
    settings = {**asdict(given), "gpu_check": None if checked is None else checked["device"], "costs": asdict(costs)}
    path = measure.write_result("large_runs", seed=0, n=1, settings=settings, results={"rows": rows})
    if measure.RESULTS == measure.PUBLISHED:
        PAGE.write_text(page_of(json.loads(path.read_text())))
    for row in rows:
        print(
            {
                key: row[key]
                for key in ("data", "model", "gpus", "clips_per_second", "cores_per_gpu", "hours", "limited_by")
            }
        )


def speed_of_check(path: Path) -> dict[str, Any]:
    """The part of a GPU check that timed models, with the name of the device."""
    said = json.loads(path.read_text())
    if said.get("rehearsal"):
        raise SystemExit(f"{path} is a rehearsal on a CPU, which says nothing about a GPU.")
    for part in said.get("parts", []):
        if part["name"] == "speed of PKS4" and part["status"] == "passed":
            return {**part["numbers"], "device": said["device"]}
    raise SystemExit(f"{path}: its part 'speed of PKS4' did not pass.")


if __name__ == "__main__":
    main()
