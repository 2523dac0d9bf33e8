import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from kinescan.cli.output import print_json, reported
from kinescan.cli.terminal import print_table, print_text
from kinescan.config import parse_overrides
from kinescan.errors import ConfigError
from kinescan.evaluation.activations import activation_bytes_by_part
from kinescan.evaluation.cost import FLOPS_PER_MAC, Cost, Macs, count_cost
from kinescan.evaluation.speed import Speed, measure_speed
from kinescan.models.classifier import VideoClassifier
from kinescan.models.zoo import MODELS, create_model, from_pretrained
from kinescan.training.engine import choose_device

EXAMPLES = (
    "kinescan profile pks4_vit_b16 vit_b16 videomamba_tiny",
    "kinescan profile pks4_vit_b16 --frames 32 --num-classes 174 --repeats 0",
    "kinescan profile runs/own_videos_cpu --batch 8 --json",
)
MACS = ("GMACs", "with attention")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a model costs for one view.

    Attributes:
        cost: parameters and multiply-accumulates, part by part.
        kept_bytes: part -> what a training step keeps of one clip for its backward pass, in float32.
        speed: times and memory of forward passes; None where none was made.
    """

    cost: Cost
    kept_bytes: Mapping[str, int]
    speed: Speed | None

    def to_json(self) -> dict[str, Any]:
        """The profile as plain values."""
        cost, speed = self.cost, self.speed
        return {
            "model": cost.model,
            "num_frames": cost.num_frames,
            "image_size": cost.image_size,
            "num_parameters": cost.num_parameters,
            "num_trained": cost.num_trained,
            "num_frozen": cost.num_frozen,
            **_counted(cost.macs),
            "macs_as_published": cost.macs.published,
            "saved_activation_bytes": sum(self.kept_bytes.values()),
            "device": "none" if speed is None else speed.device,
            "seconds_per_view": None if speed is None else speed.latency_seconds,
            "views_per_second": None if speed is None else speed.views_per_second,
            "batch": None if speed is None else speed.num_clips,
            "peak_bytes": None if speed is None else speed.peak_bytes,
            "num_threads": None if speed is None else speed.num_threads,
            "parts": [
                {
                    "name": part.name,
                    "num_parameters": part.num_parameters,
                    "num_trained": part.num_trained,
                    "macs": asdict(part.macs),
                    **_counted(part.macs),
                    "saved_activation_bytes": self.kept_bytes[part.name],
                    "seconds": None if speed is None else speed.part_seconds[part.name],
                }
                for part in cost.parts
            ],
        }


def profile(
    model: str | Path | VideoClassifier,
    *,
    num_frames: int | None = None,
    image_size: int | None = None,
    num_clips: int = 1,
    num_classes: int | None = None,
    options: Mapping[str, Any] | None = None,
    repeats: int = 5,
    device: str = "auto",
) -> Profile:
    """Parameters, multiply-accumulates, memory and time of one view.

    Args:
        model: a name in the zoo, a run's folder, a saved model, or a classifier.
        num_frames: frames of the view; by default as many as the model's preprocessing takes.
        image_size: side of a frame in pixels, for a name in the zoo.
        num_clips: views in a batch, for the throughput and the peak of memory.
        num_classes: for a name in the zoo; by default its own.
        options: fields of the model's config, for a name in the zoo.
        repeats: timed forward passes of each kind; 0 counts only, which needs no memory for weights.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        ConfigError: there is no such model, repeats is negative, or an option or a size is wrong.
        CheckpointError: the folder holds no saved model.
    """
    if repeats < 0:
        raise ConfigError(f"repeats must be 0 or more, got {repeats}.")
    # Counting needs no weights: the largest model is described in a second.
    with torch.device("cpu" if repeats else "meta"):
        if isinstance(model, VideoClassifier):
            resolved = model
        else:
            wanted = {"num_classes": num_classes, "image_size": image_size, "num_frames": num_frames}
            resolved = _resolve(model, {name: value for name, value in wanted.items() if value is not None}, options)
    cost = count_cost(resolved, num_frames=num_frames)
    kept = activation_bytes_by_part(resolved, num_clips=1, num_frames=num_frames)
    if repeats == 0:
        return Profile(cost=cost, kept_bytes=kept, speed=None)
    speed = measure_speed(
        resolved, num_frames=num_frames, num_clips=num_clips, repeats=repeats, device=choose_device(device)
    )
    return Profile(cost=cost, kept_bytes=kept, speed=speed)


def _resolve(model: str | Path, wanted: dict[str, int], options: Mapping[str, Any] | None) -> VideoClassifier:
    path = Path(model)
    if str(model) not in MODELS and (path.exists() or path.parent != Path(".")):
        fixed = sorted(set(wanted) & {"image_size", "num_classes"})
        if fixed or options:
            raise ConfigError(f"{path} is a saved model: {', '.join(fixed) or 'its options'} cannot be chosen.")
        with torch.device("cpu"):
            return from_pretrained(path)
    name = str(model)
    if name in MODELS and "num_frames" not in _config_fields(name):
        # Any number of frames can be given to such a model; it does not belong to its config.
        wanted = {key: value for key, value in wanted.items() if key != "num_frames"}
    return create_model(name, **{**wanted, **(options or {})})


def _config_fields(name: str) -> set[str]:
    return {field.name for field in dataclasses.fields(MODELS[name].model.config_class)}


def _counted(macs: Macs) -> dict[str, int]:
    return {
        "macs_without_attention": macs.without_attention,
        "macs_with_attention": macs.with_attention,
        "flops_without_attention": FLOPS_PER_MAC * macs.without_attention,
        "flops_with_attention": FLOPS_PER_MAC * macs.with_attention,
    }


@reported
def command(
    models: Annotated[list[str], typer.Argument(help="Names in the zoo, runs' folders, or saved models.")],
    settings: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Option of the models by name, such as window=5.")
    ] = [],  # noqa: B006
    frames: Annotated[int | None, typer.Option(help="Frames of the view.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of a frame in pixels, for names in the zoo.")] = None,
    batch: Annotated[int, typer.Option(help="Views at once, for throughput and peak memory.", min=1)] = 1,
    num_classes: Annotated[int | None, typer.Option(help="Size of the head, for names in the zoo.")] = None,
    repeats: Annotated[int, typer.Option(help="Timed forward passes; 0 counts only.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the profiles as JSON.")] = False,
) -> None:
    """Parameters, multiply-adds, memory and speed of models, side by side and part by part."""
    options = parse_overrides(settings)
    profiles = [
        profile(
            model,
            num_frames=frames,
            image_size=size,
            num_clips=batch,
            num_classes=num_classes,
            options=options,
            repeats=repeats,
            device=device,
        )
        for model in models
    ]
    if as_json:
        print_json([found.to_json() for found in profiles])
        return
    _print_models(profiles)
    for found in profiles:
        _print_parts(found)
    print_text(
        (
            "",
            "1 MAC is 2 FLOPs; GMACs leave attention's own products out, as the counters of the field do.",
            "as published: by the convention of the PKS4 paper's tables, norms and whole products of frames included.",
            "kept: what a training step keeps of one clip for its backward pass, in float32.",
        )
    )


def _print_models(profiles: list[Profile]) -> None:
    """A column for each model, a row for each number: as many models as fit stand side by side."""
    named = [_numbers(found) for found in profiles]
    rows = [(name, *(numbers.get(name, "-") for numbers in named)) for name in named[0] | named[-1]]
    print_table(("model", *(found.cost.model for found in profiles)), rows)


def _numbers(found: Profile) -> dict[str, str]:
    cost, speed = found.cost, found.speed
    numbers = {
        "frames": f"{cost.num_frames}",
        "pixels": f"{cost.image_size}",
        "parameters": f"{cost.num_parameters / 1e6:.2f} M",
        "trained": "all" if not cost.num_frozen else f"{cost.num_trained / 1e6:.2f} M",
        MACS[0]: f"{cost.macs.without_attention / 1e9:.2f}",
        MACS[1]: f"{cost.macs.with_attention / 1e9:.2f}",
        "as published": f"{cost.macs.published / 1e9:.2f}",
        "kept": _mebibytes(sum(found.kept_bytes.values())),
    }
    if speed is not None:
        numbers |= {
            "time a view": f"{1000 * speed.latency_seconds:.1f} ms",
            "views/s": f"{speed.views_per_second:.2f}",
            "batch": f"{speed.num_clips}",
            "peak": "unknown" if speed.peak_bytes is None else _mebibytes(speed.peak_bytes),
            "device": speed.device,
        }
    return numbers


def _print_parts(found: Profile) -> None:
    print(f"\n{found.cost.model}, part by part")
    columns = ("part", "parameters", "trained", *MACS, "kept")
    rows: list[tuple[Any, ...]] = []
    for part in found.cost.parts:
        row: tuple[Any, ...] = (
            part.name,
            f"{part.num_parameters:,}",
            f"{part.num_trained:,}",
            f"{part.macs.without_attention / 1e9:.3f}",
            f"{part.macs.with_attention / 1e9:.3f}",
            _mebibytes(found.kept_bytes[part.name]),
        )
        rows.append(row if found.speed is None else (*row, f"{1000 * found.speed.part_seconds[part.name]:.1f} ms"))
    print_table(columns if found.speed is None else (*columns, "time a view"), rows)


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
