"""Which checkpoints of a run are written, and when: the last, those before it, and the best."""

import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from kinescan.errors import CheckpointError
from kinescan.models.saving.saved_model import ModelFiles
from kinescan.runtime.distributed import Processes
from kinescan.runtime.run_folder import RunFolder
from kinescan.training.accelerator import TrainConfig
from kinescan.training.checkpoint import (
    Known,
    TrainState,
    earlier_name,
    read_rng,
    remove_earlier,
    write_checkpoint,
)
from kinescan.training.checkpoint_writer import CheckpointWriter, HostCopy
from kinescan.training.run_log import RunLog
from kinescan.training.step import Stepper
from kinescan.training.timing import TimingCounts

logger = logging.getLogger(__name__)


@dataclass
class _Snapshot:
    """The large tensors after a step, copied to the CPU; kept until those of a later step are copied.

    Attributes:
        step: steps taken.
        files: of the model.
        optimizer: state dict of the optimizer.
        weights: with an EMA, the weights that are trained.
        known: files that already hold them, by name: another checkpoint of this step links these.
    """

    step: int
    files: ModelFiles
    optimizer: dict[str, Any]
    weights: dict[str, Any]
    known: dict[str, Known]


class CheckpointKeeper:
    """Writes the run's state as checkpoints; the main process does, and all learn if it fails.

    The training waits while the state is copied; a thread writes it. Two checkpoints of the same step share what is
    large. Used as a context, it ends when all is on the disk.

    Args:
        folder: of the run.
        stepper: holds model, optimizer and the EMA of the weights.
        processes: that train together; all call `save`, `keep_best` and `finish`.
        log: of the run, brought to the disk before a state that counts its lines.
        train: how often to save, how many to keep, and how patient to be.
        state: where the run stands; changed by the loop as it goes.

    Attributes:
        folder: of the run.
        state: where the run stands.
        timings: of the clips of this process.
    """

    def __init__(
        self,
        folder: RunFolder,
        stepper: Stepper,
        processes: Processes,
        log: RunLog,
        train: TrainConfig,
        state: TrainState,
    ) -> None:
        self.folder, self.state = folder, state
        self._stepper, self._processes, self._log, self._train = stepper, processes, log, train
        self._saved_at, self._saved_step = time.monotonic(), state.step
        # of several processes, the main one holds what all had counted when the run was left
        self.timings = TimingCounts(state.timing if processes.is_main else None)
        self._writer, self._memory, self._model_memory = CheckpointWriter(), HostCopy(), HostCopy()
        self._snapshot: _Snapshot | None = None

    def __enter__(self) -> "CheckpointKeeper":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.close()
        if error is None:
            self.finish()
            return
        if self._writer.problem is not None and self._writer.problem is not error:
            logger.error("%s", self._writer.problem)

    @property
    def is_due(self) -> bool:
        """Whether this is the main process and finds the last checkpoint too old, or learnt that it was not written."""
        minutes = (time.monotonic() - self._saved_at) / 60
        is_old = 0 < self._train.checkpoint_minutes <= minutes
        return self._processes.is_main and (is_old or self._writer.problem is not None)

    def save(self) -> None:
        """Copies what the last checkpoint is to hold, which is then written.

        Raises:
            CheckpointError: an earlier one could not be written.
        """
        state, last, stepper = self.state, self.folder.last, self._stepper
        state.rng = self._processes.gather(read_rng(stepper.accelerator.device))
        scaler = stepper.accelerator.scaler
        state.scaler = {} if scaler is None else scaler.state_dict()
        self._note_timing()
        carried = stepper.carried
        state.carried = [] if carried is None else self._processes.gather(carried.tensors())
        self._sync_log()
        snapshot = self._take_snapshot()
        if self._processes.is_main:
            kept = self._train.keep_checkpoints - 1
            # The state is written anew after an evaluation: that is not another checkpoint to keep.
            earlier = earlier_name(last, self._saved_step) if kept and state.step != self._saved_step else None
            # Copies, since the training continues; what is large is in the snapshot.
            light = TrainState(**HostCopy().take({**vars(state), "optimizer": {}, "weights": {}}))
            whole = replace(light, optimizer=snapshot.optimizer, weights=snapshot.weights)
            self._writer.submit(partial(_write_last, last, snapshot, whole, earlier, kept))
        self._saved_at, self._saved_step = time.monotonic(), state.step

    def keep_best(self, score: float) -> None:
        """Takes the score of what `save` saved last: writes it as the best checkpoint where none was better.

        Without a better score for `early_stop_evaluations` evaluations, the state says that the run stops early.

        Args:
            score: of the evaluation, in [0, 1]; top-1, or per-frame mAP.

        Raises:
            CheckpointError: an earlier one could not be written.
        """
        state, best = self.state, self.state.best_score
        state.evaluations_without_gain = 0 if best is None or score > best else state.evaluations_without_gain + 1
        if best is None or score >= best:
            state.best_score, state.best_epoch = score, state.epoch
            snapshot = self._take_snapshot()
            if self._processes.is_main:
                self._writer.submit(partial(_write_best, self.folder.best, snapshot))
        self._stop_early_if_due()

    def _stop_early_if_due(self) -> None:
        state, patience = self.state, self._train.early_stop_evaluations
        if patience and state.evaluations_without_gain >= patience:
            state.stopped_early = True
            logger.info(
                "stopped early: no better score than %.4g for %d evaluations", state.best_score or 0.0, patience
            )

    def finish(self) -> None:
        """Waits until all checkpoints are on the disk; every process calls this.

        Raises:
            CheckpointError: a checkpoint could not be written.
        """
        self.settle()
        self._raise_everywhere(self._writer.problem)

    def settle(self) -> None:
        """Waits until this process has written all that `save` and `keep_best` handed to its thread."""
        self._writer.wait()

    def settle_together(self) -> None:
        """As `settle`, of all processes; every process calls this."""
        self.settle()
        self._processes.broadcast(None)

    def _take_snapshot(self) -> _Snapshot:
        """The large part of the state as it is after this step; every process calls this."""
        step, stepper, is_main = self.state.step, self._stepper, self._processes.is_main
        if self._snapshot is not None and self._snapshot.step == step:
            return self._snapshot
        # What is being written lies in the memory that the next copy fills.
        self._writer.wait()
        with stepper.saved() as model:
            files = model.files_to_save()
            files = replace(files, tensors=self._model_memory.take(files.tensors, kept=is_main))
        own = {} if stepper.ema is None else stepper.ema.own_weights()
        large = self._memory.take({"optimizer": stepper.optimizer.state_dict(), "weights": own}, kept=is_main)
        self._snapshot = _Snapshot(step=step, files=files, known={}, **large)
        return self._snapshot

    def _sync_log(self) -> None:
        """Brings the log to the disk; what the disk refused before is raised, too, in all processes."""
        problem = self._writer.problem
        if self._processes.is_main and problem is None:
            try:
                self._log.sync()
                self.state.log_lines = self._log.num_lines
            except CheckpointError as error:
                problem = error
        self._raise_everywhere(problem)

    def _note_timing(self) -> None:
        """Writes the distances of frames in all clips so far, of all processes, into state and model."""
        counts = TimingCounts()
        for plain in self._processes.gather(self.timings.to_plain()):
            counts.merge(plain)
        self.state.timing = counts.to_plain()
        self._stepper.whole.timing = counts.timing() or self._stepper.whole.timing

    def _raise_everywhere(self, problem: Exception | None) -> None:
        """Raises in every process what the main process could not write."""
        message = self._processes.broadcast(None if problem is None else str(problem))
        if problem is not None:
            raise problem
        if message is not None:
            raise CheckpointError(message)


def _write_last(last: Path, snapshot: _Snapshot, state: TrainState, earlier: Path | None, kept: int) -> None:
    snapshot.known = write_checkpoint(last, snapshot.files, state, earlier=earlier, known=snapshot.known)
    remove_earlier(last, kept)


def _write_best(best: Path, snapshot: _Snapshot) -> None:
    known = write_checkpoint(best, snapshot.files, None, known=snapshot.known)
    snapshot.known = snapshot.known or known
