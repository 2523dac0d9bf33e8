import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from kinescan.errors import ConfigError, DependencyError
from kinescan.fields import MAX_COUNT, check_most, check_types
from kinescan.runtime.accelerate_internals import forget_accelerator_state
from kinescan.runtime.device import check_device, choose_device
from kinescan.settings import closest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the loop runs; what it optimises is in `OptimConfig`.

    Attributes:
        device: "auto" takes CUDA, then Apple's MPS, then the CPU.
        mixed_precision: "bf16" computes under autocast, "no" in float32; "auto" is "bf16" on CUDA devices that have it
            and "no" elsewhere.
        trainable: patterns of parameter names to train, such as "head.*"; the rest stays frozen.
        frozen: patterns of parameter names to keep frozen, though `trainable` names them.
        freeze_stem: keep all that comes before the model's temporal module frozen; it then needs no memory for the
            backward pass.
        accumulate_batches: batches whose gradients are summed for one step, as if they were one; the learning rate is
            scaled with it. Batch norms see each batch by itself.
        carry_state: of a causal model and labels with a start and an end: each row of the batch follows one video, and
            the model's state continues from window to window (truncated backpropagation through time), as it will in a
            stream. Without it, windows are sampled at random positions and each starts anew.
        eval_every: epochs between two evaluations; the last epoch is always evaluated.
        log_every: steps between two lines of log.jsonl and of the trackers.
        checkpoint_minutes: the last checkpoint is never older than this while training; 0 leaves those after each
            epoch.
        keep_checkpoints: how many of the last checkpoints are kept; the best is kept beside them.
        early_stop_evaluations: ends the run after so many evaluations without a better score (top-1, or per-frame mAP);
            0 never does.
        trackers: names that accelerate knows, such as "tensorboard" or "wandb".
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    trainable: tuple[str, ...] = ("*",)
    frozen: tuple[str, ...] = ()
    freeze_stem: bool = False
    accumulate_batches: int = 1
    carry_state: bool = False
    eval_every: int = 1
    log_every: int = 10
    checkpoint_minutes: float = 15.0
    keep_checkpoints: int = 1
    early_stop_evaluations: int = 0
    trackers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        check_types(self)
        check_most(self, eval_every=MAX_COUNT, log_every=MAX_COUNT, accumulate_batches=2**20, keep_checkpoints=2**20)
        check_most(self, checkpoint_minutes=MAX_COUNT, early_stop_evaluations=MAX_COUNT)
        for name in ("eval_every", "log_every", "accumulate_batches", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("checkpoint_minutes", "early_stop_evaluations"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}.")
        if not self.trainable:
            raise ConfigError('trainable must hold a pattern; ["*"] trains everything.')


@contextmanager
def open_accelerator(train: TrainConfig, output: Path) -> Iterator[Accelerator]:
    """An accelerator on the device and with the precision and trackers of `train`; trackers are closed at the end.

    accelerate keeps one state for the whole process; it is cleared before and after, so that several runs with
    different settings can follow each other.

    Args:
        train: device, precision, trackers.
        output: the trackers write into its folder `tensorboard`.

    Raises:
        ConfigError: the device is not there, or a tracker is unknown.
        DependencyError: a tracker is not installed.
    """
    check_device(train.device)
    _check_trackers(train.trackers)
    _clear_state()
    accelerator = Accelerator(
        cpu=choose_device(train.device).type == "cpu",
        mixed_precision=choose_precision(train),
        log_with=list(train.trackers) or None,
        project_dir=str(output),
    )
    accelerator.init_trackers("tensorboard")
    precision = "bf16 autocast" if accelerator.mixed_precision == "bf16" else "float32"
    logger.info("training on %s in %s", accelerator.device, precision)
    try:
        yield accelerator
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        _clear_state()


def choose_precision(train: TrainConfig) -> Literal["no", "bf16"]:
    """What `TrainConfig.mixed_precision` means here."""
    if train.mixed_precision != "auto":
        return train.mixed_precision
    on_gpu = train.device in ("auto", "cuda") and torch.cuda.is_available()
    return "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "no"


def _check_trackers(trackers: Sequence[str]) -> None:
    known = [str(name) for name in LOGGER_TYPE_TO_CLASS]
    installed = [str(name) for name in get_available_trackers()]
    for name in trackers:
        if name not in known:
            raise ConfigError(f"train.trackers: unknown tracker {name!r}. {closest(name, known)}")
        if name not in installed:
            raise DependencyError(f"train.trackers: {name} cannot be imported. Install it: pip install {name}")


def _clear_state() -> None:
    forget_accelerator_state(also_processes=not torch.distributed.is_initialized())
