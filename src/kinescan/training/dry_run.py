"""What a training run will do and need, before it starts."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kinescan.models.classifier import VideoClassifier
from kinescan.models.mode import train_mode
from kinescan.profiling.activations import activation_bytes
from kinescan.profiling.cost import count_cost, training_flops
from kinescan.runtime.device import choose_device
from kinescan.runtime.device_memory import memory_named
from kinescan.runtime.precision import DTYPES
from kinescan.settings import renamed
from kinescan.training.accelerator import SAVE_MEMORY, TrainConfig, choose_precision
from kinescan.training.clips import ClipSource
from kinescan.training.optim import OptimConfig, parameter_groups, trainable_only

TIMED_CLIPS_ON_CPU = 2
"""A CPU is as fast for a few clips as for a whole batch."""


@dataclass(frozen=True, kw_only=True)
class GroupPlan:
    """Parameters that are updated alike.

    Attributes:
        lr: their peak learning rate.
        weight_decay: AdamW's.
        num_parameters: numbers in them.
        names: of the parameters.
    """

    lr: float
    weight_decay: float
    num_parameters: int
    names: tuple[str, ...]


@renamed(average="ema")
@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes on the device, as far as they can be told beforehand; what the allocator and kernels take comes on top.

    Attributes:
        weights: parameters and buffers.
        gradients: of what is trained.
        optimizer: AdamW's two moments.
        ema: the moving average of the weights.
        activations: what one batch of one process keeps for its backward pass.
    """

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do and need.

    Attributes:
        model: its name.
        num_parameters: of the model.
        num_trained: of them, those that are trained.
        groups: of what is trained, from the highest learning rate down.
        num_processes: that train together.
        clips_per_step: over all parts and processes.
        steps_per_epoch: optimizer steps.
        num_epochs: passes over the data.
        memory: on the device of each process.
        flops: of the whole training: forward and backward, attention's products among them.
        device: where the step was timed.
        seconds_per_clip: forward and backward of one clip, timed; None where nothing was timed.
        seconds: of all steps, by that time; reading videos and evaluating not counted.
    """

    model: str
    num_parameters: int
    num_trained: int
    groups: tuple[GroupPlan, ...]
    num_processes: int
    clips_per_step: int
    steps_per_epoch: int
    num_epochs: int
    memory: MemoryPlan
    flops: float
    device: str
    seconds_per_clip: float | None
    seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        plain = asdict(self)
        plain["memory"]["total"] = self.memory.total
        return plain


def make_plan(
    model: VideoClassifier,
    clips: ClipSource,
    *,
    train: TrainConfig | None = None,
    optim: OptimConfig | None = None,
    num_processes: int = 1,
    timed: bool = True,
) -> Plan:
    """The plan of what `fit` would do with the same arguments; nothing is trained.

    Args:
        model: its weights are not changed, but with `timed` its batch norms have seen noise.
        clips: for their number; none is read.
        train: how the loop would run.
        optim: learning rates and schedule.
        num_processes: that would train together.
        timed: runs the model forwards and backwards on noise to time it.

    Raises:
        ConfigError: as `fit` raises it for patterns that match nothing.
        OutOfMemoryError: the timed step does not fit into the device's memory.
    """
    train, optim = train or TrainConfig(), optim or OptimConfig()
    clips_per_step = clips.batch_size * train.accumulate_batches * num_processes
    stem = model.stem_parameters() if train.freeze_stem else ()
    with trainable_only(model, train.trainable, frozen=train.frozen, stem=stem):
        groups = parameter_groups(model, optim, layer_depths=model.layer_depths(), num_layers=model.num_layers)
        precision = DTYPES[choose_precision(train)]
        device = choose_device(train.device)
        activations = activation_bytes(model, num_clips=clips.batch_size, precision=precision, device=device.type)
        with memory_named(f"a step of {clips.batch_size} clips on {device}", SAVE_MEMORY):
            seconds = _seconds_per_clip(model, clips.batch_size, device, precision) if timed else None
    trained = [parameter for group in groups for parameter in group["params"]]
    num_clips = clips.batch_size * num_processes * clips.num_batches
    # Parameters that are divided; a block's whole ones are there for a moment only, and buffers everywhere.
    parts = num_processes if train.sharding == "full" else 1
    buffers = _num_bytes(list(model.buffers()))
    cost = count_cost(model)
    return Plan(
        model=model.name,
        num_parameters=model.num_parameters,
        num_trained=sum(parameter.numel() for parameter in trained),
        groups=_group_plans(groups, optim.peak_lr(clips_per_step)),
        num_processes=num_processes,
        clips_per_step=clips_per_step,
        steps_per_epoch=-(-clips.num_batches // train.accumulate_batches),
        num_epochs=optim.epochs,
        memory=MemoryPlan(
            weights=buffers + -(-_num_bytes(list(model.parameters())) // parts),
            gradients=-(-_num_bytes(trained) // parts),
            optimizer=-(-2 * _num_bytes(trained) // parts),
            ema=-(-_num_bytes(trained) // parts) if optim.ema_decay else 0,
            activations=activations,
        ),
        flops=training_flops(cost.macs.with_attention, num_clips=num_clips, num_epochs=optim.epochs),
        device=str(device),
        seconds_per_clip=seconds,
        seconds=None if seconds is None else seconds * num_clips / num_processes * optim.epochs,
    )


def _seconds_per_clip(model: VideoClassifier, batch_size: int, device: torch.device, precision: torch.dtype) -> float:
    """Time of a forward and a backward pass, the second of two; the model is moved to the device."""
    num_clips = min(batch_size, TIMED_CLIPS_ON_CPU) if device.type == "cpu" else batch_size
    size = model.config.image_size
    clip = torch.randn(num_clips, model.preprocessing.num_frames, 3, size, size, device=device)
    train_mode(model.to(device))
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        with _autocast(device.type, precision):
            loss = model(clip).float().logsumexp(dim=1).sum()
        loss.backward()
        # Reading a value back waits for the device.
        sum(parameter.grad.flatten()[0] for parameter in model.parameters() if parameter.grad is not None).item()  # type: ignore[union-attr]
        seconds = (time.perf_counter() - start) / num_clips
        model.zero_grad(set_to_none=True)
    return seconds


def _group_plans(groups: Sequence[dict[str, Any]], peak_lr: float) -> tuple[GroupPlan, ...]:
    plans = [
        GroupPlan(
            lr=peak_lr * group["lr_scale"],
            weight_decay=group["weight_decay"],
            num_parameters=sum(parameter.numel() for parameter in group["params"]),
            names=tuple(group["param_names"]),
        )
        for group in groups
    ]
    return tuple(sorted(plans, key=lambda plan: (-plan.lr, -plan.weight_decay)))


def _autocast(device: str, precision: torch.dtype) -> AbstractContextManager[Any]:
    return nullcontext() if precision == torch.float32 else torch.autocast(device, dtype=precision)


def _num_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
