import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from kinescan.data.loader import worker_lost
from kinescan.errors import ConfigError, WorkerError
from kinescan.models.classifier import VideoClassifier
from kinescan.runtime.device_memory import memory_named
from kinescan.runtime.launch import was_launched
from kinescan.runtime.precision import precision_of
from kinescan.runtime.run_folder import RunFolder
from kinescan.runtime.signals import Interruption
from kinescan.training.accelerator import SAVE_MEMORY, TrainConfig, open_accelerator
from kinescan.training.callbacks import Callback, Callbacks, End, Start
from kinescan.training.checkpoint import TrainState, checkpoint_left
from kinescan.training.checkpoint_keeper import CheckpointKeeper
from kinescan.training.clips import ClipSource
from kinescan.training.epoch_loop import EpochLoop, Evaluate
from kinescan.training.open_run import OpenRun, open_run
from kinescan.training.optim import OptimConfig, trainable_only
from kinescan.training.progress import ProgressBar
from kinescan.training.result import FitResult
from kinescan.training.resume import restore
from kinescan.training.resume_check import GLOBAL_BATCH, PROCESSES, describe_computing
from kinescan.training.run_log import RunLog
from kinescan.training.schedule import Schedule
from kinescan.training.sharding import ShardedModel
from kinescan.training.step import Mix, Stepper, Task
from kinescan.training.sync_batch_norm import SynchronisedNorms

logger = logging.getLogger(__name__)


def fit(
    model: VideoClassifier,
    clips: ClipSource,
    *,
    output: str | Path | OpenRun,
    train: TrainConfig | None = None,
    optim: OptimConfig | None = None,
    mix: Mix | None = None,
    task: Task | None = None,
    evaluate: Evaluate | None = None,
    chosen_by: str = "top1",
    seed: int = 0,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
) -> FitResult:
    """Trains a model; its weights are those after the last epoch when this returns, their EMA with `optim.ema_decay`.

    Writes checkpoints/last, checkpoints/best, log.jsonl, unreadable.json and the trackers' files into `output`.
    Started by torchrun, every process calls it with its part of the clips; the first one writes.

    Args:
        model: trained in place; moved back to the device it came from.
        clips: training batches.
        output: folder of the run, made if need be; or a run that `open_run` opened, which stays open.
        train: how the loop runs.
        optim: learning rates, schedule and loss.
        mix: mixup and cutmix of whole batches; None for neither. Not with `task`.
        task: what outputs are to be, for labels that are not classes; None: classification, by cross-entropy.
        evaluate: scores the model after epochs; None keeps no best checkpoint.
        chosen_by: the score of `evaluate` that the best checkpoint and an early stop are chosen by.
        seed: of mixup and cutmix. Dropout and new weights follow torch's global generator.
        resume: continues from `output`/checkpoints/last, or starts anew where there is none; an opened run knows.
        settings: plain settings of the run, kept in checkpoints; on resume, changes are refused unless harmless.
        callbacks: are told of the start, of every step, epoch and evaluation, and of the end; before our own log is.

    Returns:
        Where the checkpoints are and how good the best one was.

    Raises:
        ConfigError: `output` cannot be written, holds a run already, or another process writes into it; patterns match
            nothing, settings changed, or a model without labels is to be evaluated.
        CheckpointError: a checkpoint cannot be written, or the one to resume from is damaged or does not fit.
        NonFiniteError: loss or gradients became NaN or infinite; names epoch, step and videos.
        OutOfMemoryError: a step does not fit into the device's memory.
        VideoError: not one training video could be read, or files that were there are gone.
        WorkerError: a process that reads videos was ended by the system; a checkpoint was left.
        TrainingInterrupted: Ctrl-C, SIGTERM or SIGHUP came; the message says which checkpoint was left.
    """
    train, optim = train or TrainConfig(), optim or OptimConfig()
    _refuse_misfits(model, clips, mix, task, evaluate)
    stem = model.stem_parameters() if train.freeze_stem else ()
    with ExitStack() as stack:
        stack.enter_context(trainable_only(model, train.trainable, frozen=train.frozen, stem=stem))
        if not isinstance(output, OpenRun):
            output = stack.enter_context(open_run(output, device=train.device, resume=resume))
        folder, processes = output.folder, output.processes
        prepared = _prepared(model, clips, output, train, optim, mix=mix, task=task, seed=seed, settings=settings or {})
        stepper, stop = stack.enter_context(prepared)
        schedule = _schedule(clips, optim, accumulate_batches=train.accumulate_batches, num_processes=processes.count)
        state = _state(output, stepper, schedule, train, clips, settings or {})
        log = RunLog(
            *(folder, stepper.accelerator),
            num_epochs=optim.epochs,
            log_every=train.log_every,
            keep_lines=state.log_lines,
        )
        keeper = CheckpointKeeper(folder, stepper, processes, log, train, state)
        watching = Callbacks([*callbacks, log, ProgressBar(optim.epochs, clips.num_batches, shown=processes.is_main)])
        loop = EpochLoop(
            *(clips, stepper, schedule, keeper, watching, stop, evaluate),
            accumulate_batches=train.accumulate_batches,
            eval_every=train.eval_every,
            chosen_by=chosen_by,
        )
        with _told(watching, model, clips, optim, state, output), _errors_named(clips, stepper, folder), keeper:
            loop.run()
        stepper.leave_whole()
        model.eval()
    return _result(folder, state)


@contextmanager
def _prepared(
    model: VideoClassifier,
    clips: ClipSource,
    run: OpenRun,
    train: TrainConfig,
    optim: OptimConfig,
    *,
    mix: Mix | None,
    task: Task | None,
    seed: int,
    settings: Mapping[str, Any],
) -> Iterator[tuple[Stepper, Interruption]]:
    """The stepper and the handler of signals; behind the block the model is unwrapped and on its own device again."""
    home, processes = next(model.parameters()).device, run.processes
    if processes.count > 1:
        # Dropout differs between processes, and comes back with the seed.
        torch.manual_seed(seed * 1_000_003 + processes.index)
    norms = SynchronisedNorms(processes)
    sharded = None
    if train.sharding == "full" and processes.count > 1:
        sharded = ShardedModel(model, processes)
        trained = sharded.model
    else:
        trained = model
        if train.sharding == "full":
            logger.info("one process: it keeps all of the model, and train.sharding has no effect")
    with ExitStack() as stack:
        if sharded is not None:
            # Outputs of blocks are views, and no block's output is changed in place: torch warns of such changes.
            # By the warning's text, since others of the same module and category are to be seen.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
        stack.enter_context(norms.applied(trained))
        accelerator = stack.enter_context(open_accelerator(train, run.folder.path, settings))
        stepper = Stepper(
            *(trained, accelerator, processes, norms, optim),
            num_classes=clips.num_classes,
            mix=mix,
            task=task,
            seed=seed,
            carry_rows=clips.batch_size if train.carry_state else 0,
            sharded=sharded,
        )
        model.trained_in = precision_of(accelerator.mixed_precision, tf32=train.tf32)
        stop = stack.enter_context(Interruption(repeats=processes.count == 1 and not was_launched()))
        stack.callback(model.to, home)
        stack.callback(_unwrap, stepper)
        yield stepper, stop


def _state(
    run: OpenRun,
    stepper: Stepper,
    schedule: Schedule,
    train: TrainConfig,
    clips: ClipSource,
    settings: Mapping[str, Any],
) -> TrainState:
    """Where the run stands: at its checkpoint, or at the beginning."""
    accelerator, num_processes = stepper.accelerator, run.processes.count
    plain = {**settings, GLOBAL_BATCH: clips.batch_size * num_processes, PROCESSES: num_processes}
    plain["computed_by"] = describe_computing(
        accelerator.device, accelerator.mixed_precision, sharded=stepper.sharded is not None
    )
    if run.checkpoint is not None:
        return restore(run.checkpoint, stepper, schedule, train, plain)
    if run.resume:
        logger.warning("%s holds no checkpoint: starting anew", run.folder.path)
    return TrainState(settings=plain)


def _result(folder: RunFolder, state: TrainState) -> FitResult:
    return FitResult(
        last=folder.last,
        best=folder.best if state.best_score is not None else None,
        best_score=state.best_score,
        best_epoch=state.best_epoch,
        steps=state.step,
        unreadable=state.unreadable,
    )


def _refuse_misfits(
    model: VideoClassifier, clips: ClipSource, mix: Mix | None, task: Task | None, evaluate: Evaluate | None
) -> None:
    """Passes when the parts of a run go together."""
    if mix is not None and task is not None:
        raise ConfigError("mix takes labels that are classes. Leave it out when the run has a task of its own.")
    if evaluate is not None and model.labels is None:
        raise ConfigError(
            f"the model has no labels, so nothing can be evaluated. Make it with labels=[...], the texts of its "
            f"{model.config.num_classes} classes in the order of the outputs."
        )
    if clips.num_batches < 1:
        raise ConfigError("no training clip. Check data.train.")


def _schedule(clips: ClipSource, optim: OptimConfig, *, accumulate_batches: int, num_processes: int) -> Schedule:
    if optim.epochs and optim.warmup_epochs > optim.epochs / 2:
        logger.warning(
            "the learning rate rises for %g epochs, half of all, and not for optim.warmup_epochs = %g: with %d epochs "
            "it would hardly fall",
            *(optim.epochs / 2, optim.warmup_epochs, optim.epochs),
        )
    return Schedule(
        optim=optim,
        clips_per_step=clips.batch_size * accumulate_batches * num_processes,
        steps_per_epoch=-(-clips.num_batches // accumulate_batches),
    )


@contextmanager
def _told(
    callbacks: Callback,
    model: VideoClassifier,
    clips: ClipSource,
    optim: OptimConfig,
    state: TrainState,
    run: OpenRun,
) -> Iterator[None]:
    """Tells of the start, and of the end however it comes."""
    error: BaseException | None = None
    try:
        callbacks.on_start(
            Start(
                model=model,
                num_epochs=optim.epochs,
                batches_per_epoch=clips.num_batches,
                epoch=state.epoch,
                step=state.step,
                is_main=run.processes.is_main,
            )
        )
        yield
    except BaseException as met:
        error = met
        raise
    finally:
        callbacks.on_end(End(step=state.step, unreadable=state.unreadable, error=error))


@contextmanager
def _errors_named(clips: ClipSource, stepper: Stepper, folder: RunFolder) -> Iterator[None]:
    """Errors say what needed too much memory; and of a worker that the system ended, which checkpoint is left."""
    clips_at_once = f"training with {clips.batch_size} clips at once on {stepper.accelerator.device}"
    try:
        with memory_named(clips_at_once, SAVE_MEMORY):
            yield
    except RuntimeError as error:
        # Workers that this process started itself end with a signal that comes in the middle of a step.
        lost = worker_lost(error)
        if lost is None:
            raise
        raise WorkerError(f"{lost} {checkpoint_left(folder.last)}") from error


def _unwrap(stepper: Stepper) -> None:
    """Gives the model its own forward back."""
    if stepper.sharded is not None:
        return
    # accelerate sets an instance attribute `forward` for autocast, and unwrapping sets another one.
    stepper.accelerator.unwrap_model(stepper.wrapped, keep_fp32_wrapper=False)
    vars(stepper.model).pop("forward", None)
