import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from kinescan.data.loader import Batch, worker_lost
from kinescan.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteError,
    TrainingInterrupted,
    VideoError,
    WorkerError,
)
from kinescan.models.classifier import VideoClassifier
from kinescan.runtime.device import choose_device
from kinescan.runtime.distributed import Processes, open_processes
from kinescan.runtime.folder_lock import locked
from kinescan.runtime.output_folder import prepare_output
from kinescan.runtime.run_folder import RunFolder
from kinescan.runtime.signals import Interruption
from kinescan.training.accelerator import TrainConfig, open_accelerator
from kinescan.training.checkpoint import (
    TrainState,
    checkpoint_left,
    earlier_name,
    find_checkpoint,
    load_state,
    read_rng,
    remove_earlier,
    save_checkpoint,
    write_rng,
)
from kinescan.training.clips import ClipSource
from kinescan.training.optim import OptimConfig, refuse_other_groups, refuse_other_shapes, trainable_only
from kinescan.training.outage import OutageWatch
from kinescan.training.progress import ProgressBar, listed, means, memory_gib
from kinescan.training.result import FitResult
from kinescan.training.resume_check import describe_computing, describe_longer, refuse_changes, refuse_other_labels
from kinescan.training.run_log import Journal, write_unreadable
from kinescan.training.schedule import Schedule
from kinescan.training.step import Mix, NonFinite, Stepper, StepResult, Task
from kinescan.training.sync_batch_norm import SynchronisedNorms

logger = logging.getLogger(__name__)

Evaluate = Callable[[VideoClassifier], Mapping[str, float]]
"""Scores of a model, "top1" among them, in [0, 1]; called by every process at once, with the same result in each."""


def fit(
    model: VideoClassifier,
    clips: ClipSource,
    *,
    output: str | Path,
    train: TrainConfig | None = None,
    optim: OptimConfig | None = None,
    mix: Mix | None = None,
    task: Task | None = None,
    evaluate: Evaluate | None = None,
    seed: int = 0,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
    on_start: Callable[[], None] | None = None,
) -> FitResult:
    """Trains a model; its weights are those after the last epoch when this returns, averaged with `optim.ema_decay`.

    Writes checkpoints/last, checkpoints/best, log.jsonl, unreadable.json and the trackers' files into `output`.
    Started by torchrun, every process calls it with its share of the clips; the first one writes.

    Args:
        model: trained in place; moved back to the device it came from.
        clips: training batches.
        output: folder of the run, made if need be.
        train: how the loop runs.
        optim: learning rates, schedule and loss.
        mix: mixup and cutmix of whole batches; None for neither. Not with `task`.
        task: what outputs are to be, for labels that are no classes; None: classification, by cross-entropy.
        evaluate: scores the model after epochs; None keeps no best checkpoint.
        seed: of mixup and cutmix. Dropout and new weights follow torch's global generator.
        resume: goes on from `output`/checkpoints/last, or starts anew where there is none.
        settings: plain settings of the run, kept in checkpoints; on resume, changes are refused unless harmless.
        on_start: is called before the first step, when a resumption was accepted.

    Returns:
        Where the checkpoints are and how good the best one was.

    Raises:
        ConfigError: `output` cannot be written, holds a run already, or another process writes into it; patterns match
            nothing, settings changed, or a model without labels is to be evaluated.
        CheckpointError: a checkpoint cannot be written, or the one to resume from is damaged or does not fit.
        NonFiniteError: loss or gradients became NaN or infinite; names epoch, step and videos.
        VideoError: not one training video could be read, or files that were there are gone.
        WorkerError: a process that reads videos was ended by the system; a checkpoint was left.
        TrainingInterrupted: Ctrl-C, SIGTERM or SIGHUP came; the message says which checkpoint was left.
    """
    train, optim = train or TrainConfig(), optim or OptimConfig()
    output = prepare_output(output)
    if mix is not None and task is not None:
        raise ConfigError("mix takes labels that are classes. Leave it out when the run has a task of its own.")
    if evaluate is not None and model.labels is None:
        raise ConfigError(
            f"the model has no labels, so nothing can be evaluated. Make it with labels=[...], the texts of its "
            f"{model.config.num_classes} classes in the order of the outputs."
        )
    if clips.num_batches < 1:
        raise ConfigError("there is no training clip. Check data.train.")
    home = next(model.parameters()).device
    stem = model.stem_parameters() if train.freeze_stem else ()
    with ExitStack() as stack:
        stack.enter_context(trainable_only(model, train.trainable, frozen=train.frozen, stem=stem))
        processes = stack.enter_context(open_processes(choose_device(train.device)))
        stack.enter_context(locked(output, processes))
        last = refuse_existing_run(output, resume=resume)
        if processes.count > 1:
            # Dropout differs between processes, and comes back with the seed.
            torch.manual_seed(seed * 1_000_003 + processes.index)
        norms = SynchronisedNorms(processes)
        stack.enter_context(norms.applied(model))
        accelerator = stack.enter_context(open_accelerator(train, output))
        stepper = Stepper(
            model, accelerator, processes, norms, optim, num_classes=clips.num_classes, mix=mix, task=task, seed=seed
        )
        stop = stack.enter_context(Interruption(repeats=processes.count == 1))
        run = _Run(model, clips, accelerator, processes, stepper, stop, output, train, optim, evaluate, settings or {})
        try:
            if last is not None:
                run.restore(last)
            elif resume:
                logger.warning("%s holds no checkpoint: starting anew", output)
            if on_start is not None:
                on_start()
            run.go()
        except RuntimeError as error:
            # Workers that this process started itself end with a signal that comes in the middle of a step.
            lost = worker_lost(error)
            if lost is None:
                raise
            raise WorkerError(f"{lost} {checkpoint_left(run.folder.last)}") from error
        finally:
            run.close()
            model.to(home)
    state = run.state
    folder = RunFolder(output)
    return FitResult(
        last=folder.last,
        best=folder.best if state.best_score is not None else None,
        best_score=state.best_score,
        best_epoch=state.best_epoch,
        steps=state.step,
        unreadable=state.unreadable,
    )


def refuse_existing_run(output: Path, *, resume: bool) -> Path | None:
    """The checkpoint to resume from, or None where a run starts anew.

    Raises:
        ConfigError: there is a run in `output` and it is not to be resumed.
        CheckpointError: the checkpoint is damaged.
    """
    last = find_checkpoint(RunFolder(output).last)
    if last is not None and not resume:
        raise ConfigError(f"{output} holds a run already. Go on with it (--resume), or choose another output folder.")
    return last


class _Run:
    """One call of `fit` under way."""

    def __init__(
        self,
        model: VideoClassifier,
        clips: ClipSource,
        accelerator: Accelerator,
        processes: Processes,
        stepper: Stepper,
        stop: Interruption,
        output: Path,
        train: TrainConfig,
        optim: OptimConfig,
        evaluate: Evaluate | None,
        settings: Mapping[str, Any],
    ) -> None:
        self.model, self.clips, self.accelerator, self.processes = model, clips, accelerator, processes
        self.stepper, self.stop, self.train, self.optim, self.evaluate = stepper, stop, train, optim, evaluate
        self.folder = RunFolder(output)
        computed_by = describe_computing(accelerator.device, accelerator.mixed_precision)
        self.state = TrainState(settings={**settings, "processes": processes.count, "computed_by": computed_by})
        self.schedule = Schedule(
            optim=optim,
            clips_per_step=clips.batch_size * train.accumulate_batches * processes.count,
            steps_per_epoch=-(-clips.num_batches // train.accumulate_batches),
        )
        self.journal: Journal | None = None
        self.saved_at, self.saved_step = time.monotonic(), 0

    def restore(self, folder: Path) -> None:
        """Takes up weights, optimizer, position and random states from a checkpoint."""
        state = load_state(folder)
        refuse_changes(state.settings, self.state.settings, folder)
        saved = type(self.model).from_pretrained(folder)
        refuse_other_labels(saved.labels, self.model.labels, folder)
        optimizer = self.stepper.optimizer
        try:
            self.model.load_state_dict(saved.state_dict())
            if self.stepper.average is not None:
                self.stepper.average.restore(state.weights)
            refuse_other_groups(state.optimizer, optimizer.state_dict())
            optimizer.load_state_dict(state.optimizer)
            refuse_other_shapes(optimizer)
            write_rng(state.rng[self.processes.index])
        except Exception as error:  # whatever the file holds in their place
            raise CheckpointError(
                f"{folder} does not fit this model: {error}. Start anew in another output."
            ) from error
        describe_longer(self.schedule, state.settings, state.step)
        state.settings = self.state.settings
        self._take_up_early_stop(state)
        self.state, self.saved_step = state, state.step
        logger.info("resumed from %s: epoch %d, batch %d", folder, state.epoch + 1, state.batches_done)

    def _take_up_early_stop(self, state: TrainState) -> None:
        """A run that stopped early goes on where more patience is given to it now."""
        patience = self.train.early_stop_evaluations
        if state.stopped_early and (not patience or state.evaluations_without_gain < patience):
            state.stopped_early = False
        elif state.stopped_early and state.epoch < self.optim.epochs:
            logger.warning(
                "the run had stopped early, after %d evaluations without a better top-1: nothing is trained. Raise "
                "train.early_stop_evaluations to go on",
                state.evaluations_without_gain,
            )

    def go(self) -> None:
        """Runs every epoch that is left."""
        state = self.state
        self.watch = OutageWatch(self.clips, self.processes, state.absent)
        state.absent = self.watch.absent
        if self.processes.is_main:
            self.journal = Journal(self.folder.log, keep_lines=state.log_lines)
        with ProgressBar(self.optim.epochs, self.clips.num_batches, shown=self.processes.is_main) as bar:
            while state.epoch < self.optim.epochs and not state.stopped_early:
                if state.batches_done < self.clips.num_batches:
                    self._train_epoch(bar)
                if self.evaluate is not None and self._evaluation_due():
                    self.save()
                    self._evaluate(self.evaluate)
                state.epoch, state.batches_done, state.epoch_sums = state.epoch + 1, 0, {}
                self.save()
        if self.stepper.average is not None:
            self.stepper.average.leave_in_model()
        self.model.eval()

    def close(self) -> None:
        """Closes logs and gives the model its own forward back."""
        if self.processes.is_main:
            write_unreadable(self.folder.unreadable, self.state.unreadable)
        if self.state.unreadable:
            path = self.folder.unreadable
            logger.warning("%d training videos could not be read; reasons in %s", len(self.state.unreadable), path)
        if self.journal is not None:
            self.journal.close()
        # accelerate sets an instance attribute `forward` for autocast, and unwrapping sets another one.
        self.accelerator.unwrap_model(self.stepper.wrapped, keep_fp32_wrapper=False)
        vars(self.model).pop("forward", None)

    def save(self) -> Path:
        """Writes the last checkpoint; the main process does, and all learn if it fails."""
        state, last, average = self.state, self.folder.last, self.stepper.average
        state.optimizer, state.rng = self.stepper.optimizer.state_dict(), self.processes.gather(read_rng())
        state.weights = {} if average is None else average.weights()
        kept = self.train.keep_checkpoints - 1
        # The state is written anew after an evaluation: that is not another checkpoint to keep.
        earlier = earlier_name(last, self.saved_step) if kept and state.step != self.saved_step else None
        problem = None
        if self.journal is not None:
            try:
                self.journal.sync()
                state.log_lines = self.journal.num_lines
                with average.in_model() if average is not None else nullcontext():
                    save_checkpoint(last, self.model, state, earlier=earlier)
                remove_earlier(last, kept)
            except CheckpointError as error:
                problem = error
        self._raise_everywhere(problem)
        self.saved_at, self.saved_step = time.monotonic(), state.step
        return last

    def _raise_everywhere(self, problem: CheckpointError | None) -> None:
        """What the main process met, in all of them."""
        message = self.processes.share(None if problem is None else str(problem))
        if problem is not None:
            raise problem
        if message is not None:
            raise CheckpointError(message)

    def _train_epoch(self, bar: ProgressBar) -> None:
        self.model.train()
        rate = 0.0
        state, started, clips_before = self.state, time.monotonic(), self.state.epoch_sums.get("clips", 0.0)
        batches = self._batches()
        while parts := list(islice(batches, self.train.accumulate_batches)):
            sizes = [*(len(part.labels) for part in parts), *(len(part.unreadable) for part in parts)]
            counts, num_unreadable = self.processes.stack(sizes).split(len(parts), dim=1)
            if num_unreadable.any():
                self._refuse_outage(parts, any_clip=bool(counts.any()))
                self._note_unreadable(parts)
            self._note_readable(parts)
            lr = self.schedule.lr(state.step)
            asked, due = self.stop.requested is not None, self._save_due()
            result = self.stepper.take(parts, counts, step=state.step, lr=lr, stop=asked, save=due)
            if result.problem is not None:
                self._refuse_non_finite(result.problem)
            for key, value in {**result.sums, "steps": float(result.sums["clips"] > 0)}.items():
                state.epoch_sums[key] = state.epoch_sums.get(key, 0.0) + value
            state.batches_done, state.step = state.batches_done + len(parts), state.step + 1
            rate = (state.epoch_sums["clips"] - clips_before) / max(time.monotonic() - started, 1e-6)
            bar.update(
                epoch=state.epoch,
                batches_done=state.batches_done,
                clips_per_second=rate,
                **means(state.epoch_sums),
            )
            self._log_step(result, rate)
            if state.batches_done < self.clips.num_batches:
                self._save_if_asked(result)
        self._finish_epoch(rate, time.monotonic() - started)

    def _batches(self) -> Iterator[Batch]:
        """The batches left of this epoch; an interruption that kills the loader's workers ends them quietly."""
        batches = iter(self.clips.batches(self.state.epoch, self.state.batches_done))
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if self.stop.requested is not None:
                    self._leave()
                if isinstance(error, WorkerError):
                    # Others wait for this process in the middle of a step, so that only one alone can save.
                    raise self._without_worker(error, save=self.processes.count == 1) from error
                raise
            else:
                yield batch

    def _without_worker(self, error: WorkerError, *, save: bool) -> WorkerError:
        if save:
            self.save()
        return WorkerError(f"{error} {checkpoint_left(self.folder.last)}")

    def _refuse_outage(self, parts: Sequence[Batch], *, any_clip: bool) -> None:
        """Ends the run where files are gone, so that no step is taken without them; nothing is saved."""
        try:
            self.watch.check(parts, frozenset(self.state.unreadable), any_clip=any_clip)
        except VideoError as error:
            where = f"epoch {self.state.epoch + 1}, step {self.state.step + 1}"
            raise VideoError(
                error.path,
                f"{error.reason} ({where}). Nothing was trained on this batch, since the weights would not be those of "
                f"an undisturbed run. Bring the files back. {checkpoint_left(self.folder.last)}",
            ) from error

    def _note_readable(self, parts: Sequence[Batch]) -> None:
        """Takes videos that can be read again from the list of those that cannot."""
        self.watch.note_sound(parts)
        if not self.state.unreadable:
            return
        own = [self.clips.path(int(index)) for part in parts for index in part.item_indices]
        for path in {path for paths in self.processes.gather(own) for path in paths} & self.state.unreadable.keys():
            logger.info("can be read again: %s", path)
            del self.state.unreadable[path]

    def _note_unreadable(self, parts: Sequence[Batch]) -> None:
        """Lists the videos that could not be read, each once; every process learns of them."""
        own = {problem.path: problem.reason for batch in parts for problem in batch.unreadable}
        for met in self.processes.gather(own):
            for path, reason in met.items():
                if path not in self.state.unreadable and self.processes.is_main:
                    logger.warning("left out, cannot be read: %s: %s", path, reason)
                self.state.unreadable.setdefault(path, reason)

    def _log_step(self, result: StepResult, rate: float) -> None:
        if self.state.step % self.train.log_every == 0 and result.sums["clips"]:
            lr = max(group["lr"] for group in self.stepper.optimizer.param_groups)
            norm = result.sums["norm"]
            self._log("step", {**means(result.sums), "lr": lr, "gradient_norm": norm, "clips_per_second": rate})

    def _finish_epoch(self, rate: float, seconds: float) -> None:
        """The epoch's line; a checkpoint at this place is written only after it, so that none lacks it."""
        state = self.state
        if not state.epoch_sums.get("clips"):
            self._refuse_unreadable()
        state.batches_done, epoch_means = self.clips.num_batches, means(state.epoch_sums)
        norm = state.epoch_sums["norm"] / state.epoch_sums["steps"]
        speed = {"clips_per_second": rate, "seconds": seconds}
        self._log("epoch", {**epoch_means, "gradient_norm": norm, **speed, "unreadable": len(state.unreadable)})
        logger.info(
            "epoch %d/%d  loss %.4f  accuracy %.1f %%  %.1f clips/s  %.1f GiB",
            state.epoch + 1, self.optim.epochs, epoch_means["loss"], 100 * epoch_means["accuracy"], rate, memory_gib(),
        )  # fmt: skip
        if self._stop_requested():
            self._leave()

    def _refuse_non_finite(self, problem: NonFinite) -> None:
        saved = find_checkpoint(self.folder.last)
        left = f"The last good checkpoint is {saved}" if saved else "There is no checkpoint yet"
        where = f"epoch {self.state.epoch + 1}, step {self.state.step + 1}"
        raise NonFiniteError(problem.describe(where, left, self.clips.path))

    def _evaluation_due(self) -> bool:
        done = self.state.epoch + 1
        return done == self.optim.epochs or done % self.train.eval_every == 0

    def _evaluate(self, evaluate: Evaluate) -> None:
        """Scores the model and keeps the best; a signal ends it at once, since the epoch is saved already."""
        if self._stop_requested():
            self._leave()
        self.model.eval()
        rng, average = read_rng(), self.stepper.average
        with average.in_model() if average is not None else nullcontext():
            scores = self._scores(evaluate)
            write_rng(rng)
            self._log("evaluation", scores)
            logger.info("epoch %d/%d  evaluation  %s", self.state.epoch + 1, self.optim.epochs, listed(scores))
            self._keep_best(float(scores["top1"]))

    def _scores(self, evaluate: Evaluate) -> Mapping[str, float]:
        self.stop.immediate = True
        try:
            return evaluate(self.model)
        except VideoError as error:
            raise VideoError(error.path, f"{error.reason} {checkpoint_left(self.folder.last)}") from error
        except (KeyboardInterrupt, RuntimeError) as error:
            if isinstance(error, WorkerError) and self.stop.requested is None:
                raise self._without_worker(error, save=False) from error
            if self.stop.requested is None:
                raise
            raise self._interrupted() from error
        finally:
            self.stop.immediate = False

    def _keep_best(self, top1: float) -> None:
        state, best = self.state, self.state.best_score
        state.evaluations_without_gain = 0 if best is None or top1 > best else state.evaluations_without_gain + 1
        if best is None or top1 >= best:
            state.best_score, state.best_epoch = top1, state.epoch
            problem = None
            if self.processes.is_main:
                try:
                    save_checkpoint(self.folder.best, self.model, None)
                except CheckpointError as error:
                    problem = error
            self._raise_everywhere(problem)
        patience = self.train.early_stop_evaluations
        if patience and state.evaluations_without_gain >= patience:
            state.stopped_early = True
            logger.info(
                "stopped early: no better top-1 than %.4g for %d evaluations", state.best_score or 0.0, patience
            )

    def _stop_requested(self) -> bool:
        """Whether a process was asked to stop; all of them agree."""
        return self.processes.sum([float(self.stop.requested is not None)])[0] > 0

    def _save_due(self) -> bool:
        """Whether the main process finds the last checkpoint too old."""
        minutes = (time.monotonic() - self.saved_at) / 60
        return self.processes.is_main and 0 < self.train.checkpoint_minutes <= minutes

    def _save_if_asked(self, result: StepResult) -> None:
        alone = self.processes.count == 1
        if result.stop or (alone and self.stop.requested is not None):
            self._leave()
        if result.save or (alone and self._save_due()):
            self.save()

    def _leave(self) -> None:
        self.save()
        raise self._interrupted()

    def _interrupted(self) -> TrainingInterrupted:
        signal, where = self.stop.requested or "a signal", f"{self.state.epoch + 1} of {self.optim.epochs}"
        return TrainingInterrupted(
            f"stopped by {signal} in epoch {where}, after {self.state.step} steps. "
            f"The checkpoint is {self.folder.last}; go on with --resume."
        )

    def _refuse_unreadable(self) -> None:
        path, reason = next(iter(self.state.unreadable.items()))
        raise VideoError(path, f"{reason}; and none of the other training videos could be read. Check data.train.")

    def _log(self, kind: str, values: Mapping[str, float]) -> None:
        if self.journal is not None:
            self.journal.write(kind, {"epoch": self.state.epoch + 1, "step": self.state.step, **values})
        self.accelerator.log({f"{kind}/{key}": value for key, value in values.items()}, step=self.state.step)
