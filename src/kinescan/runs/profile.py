import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from kinescan.errors import ConfigError
from kinescan.models.classifier import VideoClassifier
from kinescan.models.registry import Architecture, find_model, list_models
from kinescan.models.zoo import create_model, from_pretrained
from kinescan.profiling.activations import activation_bytes_by_part
from kinescan.profiling.cost import FLOPS_PER_MAC, Cost, Macs, count_cost
from kinescan.profiling.speed import Speed, measure_speed
from kinescan.runtime.device import choose_device


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
        ConfigError: no model has that name, repeats is negative, or an option or a size is wrong.
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
    if str(model) not in list_models() and (path.exists() or path.parent != Path(".")):
        fixed = sorted(set(wanted) & {"image_size", "num_classes"})
        if fixed or options:
            raise ConfigError(f"{path} is a saved model: {', '.join(fixed) or 'its options'} cannot be chosen.")
        with torch.device("cpu"):
            return from_pretrained(path)
    name = str(model)
    architecture = find_model(name)
    if architecture is not None and "num_frames" not in _config_fields(architecture):
        # Any number of frames can be given to such a model; it does not belong to its config.
        wanted = {key: value for key, value in wanted.items() if key != "num_frames"}
    return create_model(name, **{**wanted, **(options or {})})


def _config_fields(architecture: Architecture) -> set[str]:
    return {field.name for field in dataclasses.fields(architecture.model.config_class)}


def _counted(macs: Macs) -> dict[str, int]:
    return {
        "macs_without_attention": macs.without_attention,
        "macs_with_attention": macs.with_attention,
        "flops_without_attention": FLOPS_PER_MAC * macs.without_attention,
        "flops_with_attention": FLOPS_PER_MAC * macs.with_attention,
    }
