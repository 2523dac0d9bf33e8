import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from kinescan.errors import ConfigError
from kinescan.fields import MAX_COUNT, check_most, check_types
from kinescan.runtime.accelerate_internals import forget_accelerator_state
from kinescan.runtime.device import check_device, choose_device
from kinescan.runtime.precision import Autocast, float32_products
from kinescan.training.trackers import check_trackers, open_trackers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the loop runs; what it optimises is in `OptimConfig`.

    Attributes:
        device: "auto" takes CUDA, then Apple's MPS, then the CPU. GPUs of Intel (XPU) and others are not used.
        mixed_precision: "bf16" and "fp16" compute under autocast, "no" in float32; "auto" is "bf16" on CUDA devices
            whose hardware has it (NVIDIA's since Ampere) and "no" elsewhere. "fp16" is for older GPUs: the loss is
            scaled, and a step whose gradients overflow is left out while a fitting scale is looked for.
        tf32: on NVIDIA GPUs since Ampere, float32 products of matrices and convolutions are computed with the 10 bits
            of mantissa of TF32, which is several times as fast; it has no effect under autocast or on other devices.
        trainable: patterns of parameter names to train, such as "head.*"; the rest stays frozen.
        frozen: patterns of parameter names to keep frozen, though `trainable` names them.
        freeze_stem: keep all that comes before the model's temporal module frozen; it then needs no memory for the
            backward pass.
        sharding: of several processes, "full" divides parameters, gradients and AdamW's averages between them (FSDP2):
            each gathers a block's parameters when it runs. For models that do not fit otherwise; steps, losses and
            checkpoints are the same. "none" keeps all of the model in every process.
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
        tracker_project: what trackers gather runs under.
        tracker_run: what trackers call the run; empty for the name of its folder.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    tf32: bool = False
    sharding: Literal["none", "full"] = "none"
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
    tracker_project: str = "kinescan"
    tracker_run: str = ""

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
        if self.mixed_precision == "fp16" and self.device == "cpu":
            raise ConfigError('mixed_precision "fp16" needs a GPU, and device is "cpu". Allowed there: auto, no, bf16.')
        if self.mixed_precision == "fp16" and self.sharding != "none":
            raise ConfigError(
                'train.sharding = "full" cannot be combined with mixed_precision "fp16", whose scale of the loss each '
                "process would choose by itself. Allowed: bf16, no."
            )
        if not self.trainable:
            raise ConfigError('trainable must hold a pattern; ["*"] trains everything.')


@contextmanager
def open_accelerator(
    train: TrainConfig, output: Path, settings: Mapping[str, Any] | None = None
) -> Iterator[Accelerator]:
    """An accelerator on the device and with the precision and trackers of `train`; trackers are closed at the end.

    accelerate keeps one state for the whole process; it is cleared before and after, so that several runs with
    different settings can follow each other.

    Args:
        train: device, precision, trackers.
        output: folder of the run; TensorBoard writes into its folder `tensorboard`.
        settings: of the run, for the trackers.

    Raises:
        ConfigError: the device is not there, it cannot compute in this precision, a tracker is unknown, or an
            environment variable of accelerate asks for something else.
        DependencyError: a tracker is not installed.
    """
    check_device(train.device)
    refuse_environment(os.environ, train)
    check_trackers(train.trackers)
    _clear_state()
    accelerator = Accelerator(
        cpu=choose_device(train.device).type == "cpu",
        mixed_precision=choose_precision(train),
        project_dir=str(output),
    )
    open_trackers(
        accelerator,
        train.trackers,
        project=train.tracker_project,
        run=train.tracker_run or output.resolve().name,
        output=output,
        settings=settings or {},
    )
    autocast = accelerator.mixed_precision != "no"
    precision = f"{accelerator.mixed_precision} autocast" if autocast else "float32"
    logger.info("training on %s in %s", accelerator.device, precision)
    try:
        with float32_products(tf32=train.tf32):
            yield accelerator
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        _clear_state()


def choose_precision(train: TrainConfig) -> Autocast:
    """What `TrainConfig.mixed_precision` means here.

    Raises:
        ConfigError: the device cannot compute so.
    """
    device = choose_device(train.device).type
    if train.mixed_precision == "fp16" and device not in ("cuda", "mps"):
        raise ConfigError(f'train.mixed_precision "fp16" needs a GPU, and the device is {device}. Allowed: no, bf16.')
    if train.mixed_precision != "auto":
        return train.mixed_precision
    if device != "cuda":
        return "no"
    # Before Ampere, CUDA emulates bfloat16, which is slower than float32.
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    logger.info('this GPU has no bfloat16: training in float32. train.mixed_precision = "fp16" is faster on it')
    return "no"


SAVE_MEMORY = (
    "Set model.options.activation_checkpointing = true, or lower loader.batch_size and raise "
    "train.accumulate_batches by the same factor; `kinescan train --dry-run` shows what a run takes."
)
"""What to do where a training step does not fit into memory."""

_FLAGS = {
    "ACCELERATE_USE_FSDP": 'Set train.sharding = "full"',
    "ACCELERATE_USE_DEEPSPEED": "kinescan does not run on DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "kinescan does not run on Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "kinescan divides the data only",
    "ACCELERATE_USE_SAGEMAKER": "Start the processes with torchrun",
}
_OFF = ("", "0", "false", "no", "off", "n", "f")


def refuse_environment(environ: Mapping[str, str], train: TrainConfig) -> None:
    """Passes where no environment variable would make accelerate train in another way than `train` says.

    `accelerate launch` sets such variables from its own questionnaire; the recipe alone decides.

    Raises:
        ConfigError: names the variable, its value, and the setting that is meant for it.
    """
    problems = [
        f"{name}={environ[name]} ({advice})"
        for name, advice in _FLAGS.items()
        if environ.get(name, "").lower() not in _OFF
    ]
    steps = environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        problems.append(f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={steps} (Set train.accumulate_batches)")
    compiler = environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if compiler.lower() not in _OFF:
        problems.append(f"ACCELERATE_DYNAMO_BACKEND={compiler} (kinescan does not compile the model in training)")
    device = environ.get("ACCELERATE_TORCH_DEVICE", "")
    if device:
        problems.append(f"ACCELERATE_TORCH_DEVICE={device} (Set train.device)")
    if environ.get("ACCELERATE_USE_CPU", "").lower() not in _OFF and choose_device(train.device).type != "cpu":
        problems.append('ACCELERATE_USE_CPU (Set train.device = "cpu")')
    precision = environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in (*_OFF, choose_precision(train)):
        problems.append(f"ACCELERATE_MIXED_PRECISION={precision} (Set train.mixed_precision)")
    if problems:
        raise ConfigError(
            f"the environment asks accelerate for what the recipe has to say: {'; '.join(problems)}. Unset these "
            "variables (with `accelerate launch`: answer no, or start the processes with torchrun)."
        )


def _clear_state() -> None:
    forget_accelerator_state(also_processes=not torch.distributed.is_initialized())
