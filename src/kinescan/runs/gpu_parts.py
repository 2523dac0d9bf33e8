"""The parts of the check of a GPU: kernels against references, training in each precision, memory, speed.

Each runs in a process of its own, which `kinescan.runs.gpu_check` starts, watches and ends.
"""

import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinescan.data.loader import Batch
from kinescan.errors import ConfigError
from kinescan.models.classifier import VideoClassifier
from kinescan.models.mode import evaluation_view, training_view
from kinescan.models.zoo import create_model
from kinescan.ops.backend import triton_obstacle
from kinescan.profiling.cost import FLOPS_PER_MAC
from kinescan.profiling.device_clock import DeviceClock, compare_in_turn
from kinescan.profiling.kernel_parity import PARITY
from kinescan.profiling.kernel_speed import SPEED
from kinescan.profiling.step_memory import count_step_memory, step_of
from kinescan.profiling.training_cost import count_training_macs
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.error_text import typed_line
from kinescan.runtime.escaping import to_json
from kinescan.runtime.precision import PRECISIONS, Precision, choose_precision
from kinescan.training.accelerator import TrainConfig
from kinescan.training.callbacks import Callback, Step
from kinescan.training.loop import fit
from kinescan.training.optim import OptimConfig

logger = logging.getLogger(__name__)

SEED, NUM_CLASSES, NUM_FRAMES, STEPS = 0, 5, 8, 6
LOSS_TOLERANCE: Mapping[Precision, float] = {"float32": 1e-4, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}
"""Of the loss of the first step, against that of the CPU in float32."""
NORM_TOLERANCE: Mapping[Precision, float] = {"float32": 1e-3, "tf32": 5e-2, "bf16": 2e-1, "fp16": 5e-2}
"""Of the norm of the gradients."""
MEMORY_RATIO = (0.85, 1.20)
"""Bytes measured over bytes counted: what libraries and kernels take as work space is not counted."""
LIBRARIES_BYTES = 2**28
"""What they may take beside that."""
TINY: Mapping[str, Any] = {"image_size": 32, "depth": 2, "kinematic_width": 8, "window": 3, "insert_after": 1}
"""A model for the rehearsal."""


class LeftOut(Exception):
    """A part that this device cannot run, and why."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the parts run.

    Attributes:
        device: that the model computes on.
        small: tiny sizes, for a rehearsal on a CPU in Triton's interpreter.
    """

    device: torch.device
    small: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a part found.

    Attributes:
        numbers: plain values.
        problems: what is wrong; empty where the part passed.
        notes: what is worth knowing beside.
    """

    numbers: dict[str, Any]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the check.

    Attributes:
        run: gives its outcome.
        limit_seconds: it is ended after this time.
        after: names of the parts that have to pass before.
    """

    run: Callable[[Target], Outcome]
    limit_seconds: float
    after: tuple[str, ...] = ()


def describe_device(target: Target) -> Outcome:
    """What the device is, and whether Triton can compile and run a trivial kernel on it."""
    device = target.device
    numbers: dict[str, Any] = {"device": str(device), "torch_cuda": torch.version.cuda, "torch_hip": torch.version.hip}
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        numbers |= {
            "name": found.name,
            "capability": list(torch.cuda.get_device_capability(device)),
            "processors": found.multi_processor_count,
            "memory_bytes": total,
            "free_bytes": free,
            "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    obstacle = triton_obstacle(torch.ones(1, device=device))
    if obstacle is not None:
        return Outcome(numbers=numbers, problems=(f"Triton's kernels do not run: {obstacle}",))
    return Outcome(numbers=numbers)


def check_parity(op: str, target: Target) -> Outcome:
    """Every result of a kernel beside the reference's."""
    found = PARITY[op](target.device, small=target.small)
    numbers = {"differences": [asdict(difference) for difference in found]}
    return Outcome(numbers=numbers, problems=tuple(each.describe() for each in found if not each.agrees))


class OneBatch:
    """The same clips, step after step."""

    num_classes = NUM_CLASSES

    def __init__(self, clips: Tensor, num_batches: int) -> None:
        self._clips, self.num_batches, self.batch_size = clips, num_batches, len(clips)

    def batches(self, epoch: int, first_batch: int) -> Iterable[Batch]:
        """Of an epoch."""
        labels = torch.arange(len(self._clips)) % NUM_CLASSES
        for _ in range(first_batch, self.num_batches):
            yield Batch(self._clips.clone(), labels, list(range(len(labels))), [])

    def path(self, item_index: int) -> str:
        """What to call a clip."""
        return f"clip {item_index} of noise"


class StepsSeen(Callback):
    """The loss and the gradients' norm of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_step(self, step: Step) -> None:
        """Adds a step."""
        self.losses.append(step.loss)
        self.norms.append(step.gradient_norm)


def check_training(precision: Precision, target: Target) -> Outcome:
    """Steps of `fit` in a precision, the first of them against the same on the CPU in float32."""
    try:
        choose_precision(precision, None, target.device)
    except ConfigError as error:
        raise LeftOut(str(error)) from error
    ours = _train(target, precision, STEPS)
    exact = _train(replace(target, device=torch.device("cpu")), "float32", 1)
    # A step whose gradients overflow in float16 is not taken: its norm is 0, and the weights are as they were.
    taken = [index for index, norm in enumerate(ours.norms) if norm > 0]
    numbers = {"losses": ours.losses, "norms": ours.norms, "cpu_loss": exact.losses[0], "cpu_norm": exact.norms[0]}
    if not taken:
        return Outcome(numbers=numbers, problems=("no step could be taken",))
    problems = []
    for what, found, wanted, tolerance in (
        ("loss", ours.losses[taken[0]], exact.losses[0], LOSS_TOLERANCE[precision]),
        ("norm of the gradients", ours.norms[taken[0]], exact.norms[0], NORM_TOLERANCE[precision]),
    ):
        apart = abs(found - wanted) / abs(wanted)
        numbers[f"error of the {what}"] = apart
        if not apart <= tolerance:
            problems.append(f"{what} {found:.6g} differs from the CPU's {wanted:.6g} by {apart:.1e} of it")
    if not ours.losses[-1] < ours.losses[0]:
        problems.append(f"the loss did not fall over {STEPS} steps on the same clips: {ours.losses}")
    return Outcome(numbers=numbers, problems=tuple(problems))


def _train(target: Target, precision: Precision, num_steps: int) -> StepsSeen:
    model = _build("pks4_vit_ti16", small=target.small)
    clips = _noise(4, 2 if target.small else NUM_FRAMES, model)
    autocast = {"float32": "no", "tf32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    train = TrainConfig(
        device=target.device.type,  # type: ignore[arg-type]
        mixed_precision=autocast,  # type: ignore[arg-type]
        tf32=precision == "tf32",
        trackers=(),
        checkpoint_minutes=0,
    )
    optim = OptimConfig(lr=1e-3, lr_batch_size=len(clips), epochs=1, warmup_epochs=0.0, label_smoothing=0.0)
    seen = StepsSeen()
    with tempfile.TemporaryDirectory() as folder:
        source = OneBatch(clips, num_steps)
        fit(model, source, output=Path(folder) / "run", train=train, optim=optim, callbacks=[seen])
    return seen


def check_memory(target: Target) -> Outcome:
    """The peak of a training step, measured beside what was counted without the device."""
    device, small, precision = target.device, target.small, _half(target.device)
    model = _build("pks4_vit_b16", small=small)
    frames, size = (2, TINY["image_size"]) if small else (NUM_FRAMES, model.config.image_size)
    counted = partial(count_step_memory, num_frames=frames, image_size=size, precision=precision)
    num_clips = 2 if small else _clips_that_fit(device, lambda clips: counted(model, num_clips=clips).peak)
    memory = counted(model, num_clips=num_clips)
    if device.type == "cuda":
        measured = _measured_peak(model, num_clips, frames, device, precision)
    else:
        measured = counted(model, num_clips=num_clips, fake=False).peak
    numbers = {"clips": num_clips, "frames": frames, "counted": asdict(memory), "measured_peak": measured}
    ratio = measured / memory.peak
    numbers["measured_over_counted"] = ratio
    low, high = MEMORY_RATIO[0] * memory.peak, MEMORY_RATIO[1] * memory.peak + LIBRARIES_BYTES
    allowed = f"allowed: {low / 2**30:.2f} to {high / 2**30:.2f} GiB"
    problem = f"a step took {measured / 2**30:.2f} GiB, counted were {memory.peak / 2**30:.2f} GiB ({allowed})"
    return Outcome(numbers=numbers, problems=() if low <= measured <= high else (problem,))


def _measured_peak(
    model: VideoClassifier, num_clips: int, frames: int, device: torch.device, precision: torch.dtype
) -> int:
    before = torch.cuda.memory_allocated(device)
    model = model.to(device).train()
    size = model.config.image_size
    forward, backward = step_of(model, torch.randn(num_clips, frames, 3, size, size, device=device), precision)
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats(device)
        backward(forward())
        torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def time_kernels(op: str, target: Target) -> Outcome:
    """A kernel beside torch without it."""
    repetitions = 1 if target.small else 20
    found = SPEED[op](target.device, _half(target.device), repetitions=repetitions, small=target.small)
    slower = [
        f"{what}: slower than {peer} ({times:g} times as fast as it)"
        for what, numbers in found.items()
        for peer, times in numbers["times_faster_than"].items()
        if times < 1 and peer.startswith("compiled") and not target.small
    ]
    return Outcome(numbers=found, notes=tuple(slower))


def time_models(target: Target) -> Outcome:
    """PKS4-B/16 beside the bare ViT-B/16: forward passes and training steps; and steps of larger models."""
    device, small, precision = target.device, target.small, _half(target.device)
    frames = 2 if small else NUM_FRAMES
    ours, bare = _build("pks4_vit_b16", small=small), _build("vit_b16", small=small)
    num_clips = 2 if small else _clips_of_step(device, ours, frames, precision)
    clips = _noise(num_clips, frames, ours).to(device)
    repetitions, clock = (1, DeviceClock(device)) if small else (10, DeviceClock(device))
    pair = {"ours": ours.to(device), "bare_vit": bare.to(device)}
    forward = {name: partial(_forward, evaluation_view(model), clips, precision) for name, model in pair.items()}
    numbers: dict[str, Any] = {"clips": num_clips, "frames": frames, "precision": str(precision)}
    numbers["forward"] = compare_in_turn(clock, forward, repetitions)
    steps = {name: _step(training_view(model), clips, precision) for name, model in pair.items()}
    numbers["training step"] = compare_in_turn(clock, steps, repetitions)
    milliseconds = numbers["training step"]["milliseconds"]["ours"]
    numbers["steps"] = {f"pks4_vit_b16, {frames} frames": _rate(ours, num_clips, frames, milliseconds)}
    del pair, forward, steps, clips, ours, bare
    if small:
        return Outcome(numbers=numbers)
    for name, more_frames in (("pks4_vit_b16", 32), ("pks4_vit_l14", NUM_FRAMES)):
        torch.cuda.empty_cache()
        numbers["steps"][f"{name}, {more_frames} frames"] = _time_step(name, more_frames, device, precision)
    return Outcome(numbers=numbers)


def _time_step(name: str, frames: int, device: torch.device, precision: torch.dtype) -> dict[str, Any]:
    """Time of a training step of as many clips as fit, or why there is none."""
    model = _build(name, small=False)
    try:
        num_clips = _clips_of_step(device, model, frames, precision)
    except LeftOut as error:
        return {"left_out": str(error)}
    run = _step(model.to(device).train(), _noise(num_clips, frames, model).to(device), precision)
    milliseconds = compare_in_turn(DeviceClock(device), {"ours": run}, 5)["milliseconds"]["ours"]
    return _rate(model, num_clips, frames, milliseconds)


def _rate(model: VideoClassifier, num_clips: int, frames: int, milliseconds: float) -> dict[str, Any]:
    flops = FLOPS_PER_MAC * count_training_macs(model, num_frames=frames).with_attention
    seconds = milliseconds / 1000 / num_clips
    return {
        "clips": num_clips,
        "seconds_per_clip": seconds,
        "counted_flops_per_clip": flops,
        "flops_per_second": flops / seconds,
    }


def _forward(model: VideoClassifier, clips: Tensor, precision: torch.dtype) -> Tensor:
    with torch.inference_mode(), torch.autocast(clips.device.type, dtype=precision):
        logits: Tensor = model(clips)
    return logits


def _step(model: VideoClassifier, clips: Tensor, precision: torch.dtype) -> Callable[[], None]:
    forward, backward = step_of(model, clips, precision)
    return lambda: backward(forward())


def _build(name: str, *, small: bool) -> VideoClassifier:
    torch.manual_seed(SEED)
    if not small:
        return create_model(name, num_classes=NUM_CLASSES)
    sizes = {key: TINY[key] for key in ("image_size", "depth")} if name.startswith("vit") else TINY
    return create_model(name.replace("b16", "ti16"), num_classes=NUM_CLASSES, **sizes)


def _noise(num_clips: int, frames: int, model: VideoClassifier) -> Tensor:
    size = model.config.image_size
    return torch.randn(num_clips, frames, 3, size, size, generator=torch.Generator().manual_seed(SEED))


def _clips_of_step(device: torch.device, model: VideoClassifier, frames: int, precision: torch.dtype) -> int:
    size = model.config.image_size
    counted = partial(count_step_memory, model, num_frames=frames, image_size=size, precision=precision)
    return _clips_that_fit(device, lambda clips: counted(num_clips=clips).peak)


def _clips_that_fit(device: torch.device, peak_of: Callable[[int], int]) -> int:
    """16 clips, or the half as often as it takes for a step to fit into two thirds of what is free."""
    free, _ = torch.cuda.mem_get_info(device)
    for clips in (16, 8, 4, 2):
        if peak_of(clips) <= free * 2 / 3:
            return clips
    raise LeftOut(f"a step of 2 clips does not fit into two thirds of the free memory ({free / 2**30:.1f} GiB)")


def _half(device: torch.device) -> torch.dtype:
    """bfloat16, or float16 on GPUs before Ampere."""
    is_old = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float16 if is_old else torch.bfloat16


PARTS: Mapping[str, Part] = {
    "device": Part(run=describe_device, limit_seconds=120),
    **{f"parity of {op}": Part(run=partial(check_parity, op), limit_seconds=150) for op in PARITY},
    **{
        f"training in {precision}": Part(run=partial(check_training, precision), limit_seconds=90)
        for precision in PRECISIONS
    },
    "memory of a training step": Part(run=check_memory, limit_seconds=90),
    **{
        f"speed of {op}": Part(run=partial(time_kernels, op), limit_seconds=120, after=(f"parity of {op}",))
        for op in SPEED
    },
    "speed of PKS4": Part(
        run=time_models, limit_seconds=150, after=("parity of selective_scan", "parity of local_correlation")
    ),
}
"""In the order in which they run. A speed is measured only after the same kernels agreed with their references."""


def run_part(name: str, target: Target) -> dict[str, Any]:
    """A part in this process: its status, numbers, problems and notes; nothing it raises gets out."""
    try:
        outcome = PARTS[name].run(target)
    except LeftOut as error:
        return {"status": "left out", "numbers": {}, "problems": [], "notes": [str(error)]}
    except Exception as error:  # whatever drivers, compilers and kernels raise is what this is to find
        logger.debug("%s", name, exc_info=True)
        return {"status": "failed", "numbers": {}, "problems": [typed_line(error)], "notes": []}
    return {"status": "failed" if outcome.problems else "passed", **asdict(outcome)}


def main(words: Sequence[str]) -> None:
    """A part for `kinescan.runs.gpu_check`: its name, the device, "small" or "full", the file of the outcome."""
    name, device, size, path = words
    target = Target(device=torch.device(device), small=size == "small")
    if target.device.type == "cuda" and target.device.index is not None:
        torch.cuda.set_device(target.device)
    write_text(path, to_json(run_part(name, target)))
