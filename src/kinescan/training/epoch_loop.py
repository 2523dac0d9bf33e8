"""The loop: batches become steps, epochs end in an evaluation and a checkpoint."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NoReturn

from kinescan.data.loader import Batch
from kinescan.errors import NonFiniteError, TrainingInterrupted, VideoError, WorkerError
from kinescan.models.classifier import VideoClassifier
from kinescan.models.mode import train_mode
from kinescan.runtime.signals import Interruption
from kinescan.training.callbacks import Callback, Epoch, Evaluation, Step
from kinescan.training.checkpoint import checkpoint_left, find_checkpoint, read_rng, write_rng
from kinescan.training.checkpoint_keeper import CheckpointKeeper
from kinescan.training.clips import ClipSource
from kinescan.training.outage import OutageWatch
from kinescan.training.progress import means
from kinescan.training.schedule import Schedule
from kinescan.training.step import NonFinite, Stepper, StepResult

logger = logging.getLogger(__name__)

Evaluate = Callable[[VideoClassifier], Mapping[str, float]]
"""Scores of a model in [0, 1], and its loss; called by every process at once, with the same result in each."""


class EpochLoop:
    """The epochs of a run that are left.

    Args:
        clips: training batches.
        stepper: takes the steps.
        schedule: learning rate of each.
        keeper: writes checkpoints; holds the state, which the loop moves on.
        callbacks: are told of steps, epochs and evaluations.
        stop: whether a signal came.
        evaluate: scores the model after epochs; None for no evaluation.
        accumulate_batches: batches of a step.
        eval_every: epochs between two evaluations.
        chosen_by: the score that the best checkpoint is chosen by.
    """

    def __init__(
        self,
        clips: ClipSource,
        stepper: Stepper,
        schedule: Schedule,
        keeper: CheckpointKeeper,
        callbacks: Callback,
        stop: Interruption,
        evaluate: Evaluate | None,
        *,
        accumulate_batches: int,
        eval_every: int,
        chosen_by: str = "top1",
    ) -> None:
        self._clips, self._stepper, self._schedule, self._keeper = clips, stepper, schedule, keeper
        self._callbacks, self._stop, self._evaluator = callbacks, stop, evaluate
        self._accumulate_batches, self._eval_every, self._chosen_by = accumulate_batches, eval_every, chosen_by
        self._processes, self._state = stepper.processes, keeper.state
        self._num_epochs = schedule.optim.epochs
        self._watch = OutageWatch(clips, self._processes, self._state.absent)
        self._state.absent = self._watch.absent

    def run(self) -> None:
        """Runs every epoch that is left."""
        state = self._state
        if self._num_epochs == 0:
            # Nothing is trained: the checkpoint is what the model starts as.
            self._keeper.save()
        while state.epoch < self._num_epochs and not state.stopped_early:
            if state.batches_done < self._clips.num_batches:
                self._train_epoch()
            if self._evaluator is not None and self._evaluation_due():
                self._keeper.save()
                self._evaluate(self._evaluator)
            state.epoch, state.batches_done, state.epoch_sums = state.epoch + 1, 0, {}
            self._keeper.save()

    def _train_epoch(self) -> None:
        train_mode(self._stepper.model)
        rate = 0.0
        state, started, clips_before = self._state, time.monotonic(), self._state.epoch_sums.get("clips", 0.0)
        batches = self._batches()
        while parts := list(islice(batches, self._accumulate_batches)):
            result = self._take(parts)
            taken = result.sums["clips"] > 0 and not result.skipped
            for key, value in {**result.sums, "steps": float(taken), "skipped": float(result.skipped)}.items():
                state.epoch_sums[key] = state.epoch_sums.get(key, 0.0) + value
            state.batches_done, state.step = state.batches_done + len(parts), state.step + 1
            rate = (state.epoch_sums["clips"] - clips_before) / max(time.monotonic() - started, 1e-6)
            self._callbacks.on_step(self._step(result, rate))
            if state.batches_done < self._clips.num_batches:
                self._save_if_asked(result)
        self._finish_epoch(rate, time.monotonic() - started)

    def _batches(self) -> Iterator[Batch]:
        """The batches left of this epoch; an interruption that kills the loader's workers ends them quietly."""
        batches = iter(self._clips.batches(self._state.epoch, self._state.batches_done))
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if self._stop.requested is not None:
                    self._leave()
                if isinstance(error, WorkerError):
                    # Others wait for this process in the middle of a step, so that only one alone can save.
                    raise self._without_worker(error, save=self._processes.count == 1) from error
                raise
            else:
                yield batch

    def _take(self, parts: Sequence[Batch]) -> StepResult:
        """One step; videos that cannot be read are noted before it."""
        state = self._state
        sizes = [*(len(part.labels) for part in parts), *(len(part.unreadable) for part in parts)]
        counts, num_unreadable = self._processes.stack(sizes).split(len(parts), dim=1)
        if num_unreadable.any():
            self._refuse_outage(parts, any_clip=bool(counts.any()))
            self._watch.note_unreadable(parts, state.unreadable)
        self._watch.note_readable(parts, state.unreadable)
        lr = self._schedule.lr(state.step)
        asked, due = self._stop.requested is not None, self._keeper.is_due
        result = self._stepper.take(parts, counts, step=state.step, lr=lr, stop=asked, save=due)
        if result.problem is not None:
            self._refuse_non_finite(result.problem)
        for part in parts:
            self._keeper.timings.add(part.frame_seconds)
        return result

    def _step(self, result: StepResult, rate: float) -> Step:
        state, own, epoch = self._state, means(result.sums), means(self._state.epoch_sums)
        return Step(
            epoch=state.epoch,
            step=state.step,
            batches_done=state.batches_done,
            num_clips=int(result.sums["clips"]),
            **own,
            lr=max(group["lr"] for group in self._stepper.optimizer.param_groups),
            gradient_norm=result.sums["norm"],
            epoch_loss=epoch["loss"],
            epoch_accuracy=epoch["accuracy"],
            clips_per_second=rate,
        )

    def _finish_epoch(self, rate: float, seconds: float) -> None:
        """The epoch's line; a checkpoint at this point is written only after it, so that none lacks it."""
        state = self._state
        if not state.epoch_sums.get("clips"):
            self._refuse_unreadable()
        state.batches_done = self._clips.num_batches
        epoch = Epoch(
            epoch=state.epoch,
            step=state.step,
            **means(state.epoch_sums),
            gradient_norm=state.epoch_sums["norm"] / max(state.epoch_sums["steps"], 1.0),
            clips_per_second=rate,
            seconds=seconds,
            num_unreadable=len(state.unreadable),
        )
        self._callbacks.on_epoch(epoch)
        if state.epoch_sums.get("skipped"):
            logger.info(
                "%d of %d steps were left out while float16 looked for a scale of the loss",
                state.epoch_sums["skipped"],
                state.epoch_sums["skipped"] + state.epoch_sums["steps"],
            )
        if self._stop_requested():
            self._leave()

    def _evaluation_due(self) -> bool:
        done = self._state.epoch + 1
        return done == self._num_epochs or done % self._eval_every == 0

    def _evaluate(self, evaluate: Evaluate) -> None:
        """Scores the model and keeps the best; a signal ends it at once, since the epoch is saved already."""
        if self._stop_requested():
            self._leave()
        self._stepper.model.eval()
        self._stepper.whole.eval()
        device = self._stepper.accelerator.device
        rng = read_rng(device)
        with self._stepper.evaluated() as model:
            scores = self._scores(evaluate, model)
            write_rng(rng, device)
            self._callbacks.on_evaluation(
                Evaluation(epoch=self._state.epoch, step=self._state.step, scores=dict(scores))
            )
            self._keeper.keep_best(float(scores[self._chosen_by]))

    def _scores(self, evaluate: Evaluate, model: VideoClassifier) -> Mapping[str, float]:
        self._stop.immediate = True
        try:
            with self._stepper.accelerator.autocast():
                return evaluate(model)
        except VideoError as error:
            raise VideoError(error.path, f"{error.reason} {self._left()}") from error
        except (KeyboardInterrupt, RuntimeError) as error:
            if isinstance(error, WorkerError) and self._stop.requested is None:
                raise self._without_worker(error, save=False) from error
            if self._stop.requested is None:
                raise
            raise self._interrupted() from error
        finally:
            self._stop.immediate = False

    def _stop_requested(self) -> bool:
        """Whether a process was asked to stop; all of them agree."""
        return self._processes.sum([float(self._stop.requested is not None)])[0] > 0

    def _save_if_asked(self, result: StepResult) -> None:
        alone = self._processes.count == 1
        if result.stop or (alone and self._stop.requested is not None):
            self._leave()
        if result.save or (alone and self._keeper.is_due):
            self._keeper.save()

    def _leave(self) -> NoReturn:
        self._keeper.save()
        self._keeper.finish()
        raise self._interrupted()

    def _interrupted(self) -> TrainingInterrupted:
        signal, where = self._stop.requested or "a signal", f"{self._state.epoch + 1} of {self._num_epochs}"
        return TrainingInterrupted(
            f"stopped by {signal} in epoch {where}, after {self._state.step} steps. "
            f"The checkpoint is {self._keeper.folder.last}; continue it with --resume."
        )

    def _without_worker(self, error: WorkerError, *, save: bool) -> WorkerError:
        if save:
            self._keeper.save()
            self._keeper.finish()
        return WorkerError(f"{error} {self._left()}")

    def _refuse_outage(self, parts: Sequence[Batch], *, any_clip: bool) -> None:
        """Ends the run where files are gone, so that no step is taken without them; nothing is saved."""
        try:
            self._watch.check(parts, frozenset(self._state.unreadable), any_clip=any_clip)
        except VideoError as error:
            raise VideoError(
                error.path,
                f"{error.reason} ({self._next_step()}). Nothing was trained on this batch, since the weights would not "
                f"be those of an undisturbed run. Bring the files back. {self._left()}",
            ) from error

    def _refuse_non_finite(self, problem: NonFinite) -> NoReturn:
        self._keeper.settle_together()
        saved = find_checkpoint(self._keeper.folder.last)
        left = f"The last good checkpoint is {saved}" if saved else "There is no checkpoint yet"
        raise NonFiniteError(problem.describe(self._next_step(), left, self._clips.path))

    def _refuse_unreadable(self) -> NoReturn:
        path, reason = next(iter(self._state.unreadable.items()))
        raise VideoError(path, f"{reason}; and none of the other training videos could be read. Check data.train.")

    def _next_step(self) -> str:
        return f"epoch {self._state.epoch + 1}, step {self._state.step + 1}"

    def _left(self) -> str:
        self._keeper.settle()
        return checkpoint_left(self._keeper.folder.last)
