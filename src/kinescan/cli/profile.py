import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from kinescan.cli.output import print_json, print_table, reported
from kinescan.cli.runs import best_checkpoint
from kinescan.config import parse_overrides
from kinescan.errors import ConfigError
from kinescan.evaluation.cost import Cost, count_cost
from kinescan.evaluation.mode import in_evaluation
from kinescan.models.classifier import VideoClassifier
from kinescan.models.zoo import create_model, from_pretrained
from kinescan.training.engine import choose_device

EXAMPLES = (
    "kinescan profile pks4_vit_b16 vit_b16",
    "kinescan profile pks4_vit_b16 --frames 32 --num-classes 174 --repeats 0",
    "kinescan profile runs/own_videos_cpu --json",
)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a model costs for one view.

    Attributes:
        cost: parameters and multiply-accumulates, part by part.
        device: where it was timed.
        seconds: median time of one forward pass of one view; None where it was not timed.
    """

    cost: Cost
    device: str
    seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """The profile as plain values."""
        macs = self.cost.macs
        return {
            "model": self.cost.model,
            "num_frames": self.cost.num_frames,
            "image_size": self.cost.image_size,
            "num_parameters": self.cost.num_parameters,
            "num_trained": self.cost.num_trained,
            "macs_without_attention": macs.without_attention,
            "macs_with_attention": macs.with_attention,
            "macs_as_published": macs.published,
            "device": self.device,
            "seconds_per_view": self.seconds,
            "parts": [
                {"name": part.name, "num_parameters": part.num_parameters, "macs": asdict(part.macs)}
                for part in self.cost.parts
            ],
        }


def profile(
    model: VideoClassifier | str | Path,
    *,
    num_frames: int | None = None,
    num_classes: int | None = None,
    options: dict[str, Any] | None = None,
    repeats: int = 5,
    device: str = "auto",
) -> Profile:
    """Parameters, multiply-accumulates and time of one view.

    Args:
        model: a model, a name in the zoo, a run's folder, or a saved model.
        num_frames: frames of the view; by default the model's.
        num_classes: size of the head, for a name in the zoo.
        options: fields of the model's config, for a name in the zoo.
        repeats: timed forward passes after one that is not; 0 does not time, and then a name needs no memory.
        device: where to time.

    Raises:
        ConfigError: an argument is out of range or unknown.
        CheckpointError: a folder holds no model.
    """
    if repeats < 0:
        raise ConfigError(f"repeats must be 0 or more, got {repeats}.")
    with torch.device("meta" if repeats == 0 else "cpu"):
        resolved = model if isinstance(model, VideoClassifier) else _resolve(model, num_classes, options or {})
    cost = count_cost(resolved, num_frames=num_frames)
    if repeats == 0:
        return Profile(cost=cost, device="none", seconds=None)
    place = choose_device(device)
    return Profile(cost=cost, device=str(place), seconds=_seconds(resolved.to(place), cost, place, repeats))


def _resolve(model: str | Path, num_classes: int | None, options: dict[str, Any]) -> VideoClassifier:
    path = Path(model)
    if path.is_dir():
        with torch.device("cpu"):
            return from_pretrained(best_checkpoint(path) or path)
    return create_model(str(model), num_classes=num_classes, **options)


def _seconds(model: VideoClassifier, cost: Cost, device: torch.device, repeats: int) -> float:
    clip = torch.randn(1, cost.num_frames, 3, cost.image_size, cost.image_size, device=device)
    times = []
    with in_evaluation(model), torch.inference_mode():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            # Reading a value back waits for the device.
            model(clip)[0, 0].item()
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


@reported
def command(
    models: Annotated[list[str], typer.Argument(help="Names in the zoo, runs' folders, or saved models.")],
    settings: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Option of the models by name, such as window=5.")
    ] = [],  # noqa: B006
    frames: Annotated[int | None, typer.Option(help="Frames of the view.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Size of the head, for names in the zoo.")] = None,
    repeats: Annotated[int, typer.Option(help="Timed forward passes; 0 counts only.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the profiles as JSON.")] = False,
) -> None:
    """Parameters, multiply-adds and speed of models."""
    options = parse_overrides(settings)
    profiles = [
        profile(model, num_frames=frames, num_classes=num_classes, options=options, repeats=repeats, device=device)
        for model in models
    ]
    if as_json:
        print_json([found.to_json() for found in profiles])
        return
    rows = [_row(found) for found in profiles]
    print_table(("model", "frames", "parameters", "GMACs", "with attention", "time a view", "device"), rows)
    for found in profiles:
        print(f"\n{found.cost.model}, part by part")
        parts = [(p.name, f"{p.num_parameters:,}", f"{p.macs.without_attention / 1e9:.3f}") for p in found.cost.parts]
        print_table(("part", "parameters", "GMACs"), parts)


def _row(found: Profile) -> tuple[Any, ...]:
    cost, macs = found.cost, found.cost.macs
    return (
        cost.model,
        cost.num_frames,
        f"{cost.num_parameters / 1e6:.2f} M",
        f"{macs.without_attention / 1e9:.2f}",
        f"{macs.with_attention / 1e9:.2f}",
        "not timed" if found.seconds is None else f"{1000 * found.seconds:.1f} ms",
        found.device,
    )
