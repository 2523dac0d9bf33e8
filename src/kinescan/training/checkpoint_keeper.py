"""Which checkpoints of a run are written, and when: the last, those before it, and the best."""

import logging
import time

from kinescan.errors import CheckpointError
from kinescan.runtime.distributed import Processes
from kinescan.runtime.run_folder import RunFolder
from kinescan.training.accelerator import TrainConfig
from kinescan.training.checkpoint import TrainState, earlier_name, read_rng, remove_earlier, save_checkpoint
from kinescan.training.run_log import RunLog
from kinescan.training.step import Stepper
from kinescan.training.timing import TimingCounts

logger = logging.getLogger(__name__)


class CheckpointKeeper:
    """Writes the run's state as checkpoints; the main process does, and all learn if it fails.

    Args:
        folder: of the run.
        stepper: holds model, optimizer and the EMA of the weights.
        processes: that train together; all call `save` and `keep_best`.
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

    @property
    def is_due(self) -> bool:
        """Whether this is the main process and finds the last checkpoint too old."""
        minutes = (time.monotonic() - self._saved_at) / 60
        return self._processes.is_main and 0 < self._train.checkpoint_minutes <= minutes

    def save(self) -> None:
        """Writes the last checkpoint.

        Raises:
            CheckpointError: it cannot be written.
        """
        state, last, ema = self.state, self.folder.last, self._stepper.ema
        own_rng = read_rng(self._stepper.accelerator.device)
        state.optimizer, state.rng = self._stepper.optimizer.state_dict(), self._processes.gather(own_rng)
        scaler = self._stepper.accelerator.scaler
        state.scaler = {} if scaler is None else scaler.state_dict()
        state.weights = {} if ema is None else ema.weights()
        self._note_timing()
        carried = self._stepper.carried
        state.carried = [] if carried is None else self._processes.gather(carried.tensors())
        kept = self._train.keep_checkpoints - 1
        # The state is written anew after an evaluation: that is not another checkpoint to keep.
        earlier = earlier_name(last, self._saved_step) if kept and state.step != self._saved_step else None
        problem = None
        if self._processes.is_main:
            try:
                self._log.sync()
                state.log_lines = self._log.num_lines
                with self._stepper.ema_weights():
                    save_checkpoint(last, self._stepper.model, state, earlier=earlier)
                remove_earlier(last, kept)
            except CheckpointError as error:
                problem = error
        self._raise_everywhere(problem)
        self._saved_at, self._saved_step = time.monotonic(), state.step

    def keep_best(self, score: float) -> None:
        """Writes the best checkpoint where none was better, of the weights that the model holds; ends a run in time.

        Args:
            score: of the evaluation, in [0, 1]; top-1, or per-frame mAP.

        Raises:
            CheckpointError: it cannot be written.
        """
        state, best = self.state, self.state.best_score
        state.evaluations_without_gain = 0 if best is None or score > best else state.evaluations_without_gain + 1
        if best is None or score >= best:
            state.best_score, state.best_epoch = score, state.epoch
            problem = None
            if self._processes.is_main:
                try:
                    save_checkpoint(self.folder.best, self._stepper.model, None)
                except CheckpointError as error:
                    problem = error
            self._raise_everywhere(problem)
        patience = self._train.early_stop_evaluations
        if patience and state.evaluations_without_gain >= patience:
            state.stopped_early = True
            logger.info(
                "stopped early: no better score than %.4g for %d evaluations", state.best_score or 0.0, patience
            )

    def _note_timing(self) -> None:
        """Tells state and model how far apart the frames of all clips were so far."""
        counts = TimingCounts()
        for plain in self._processes.gather(self.timings.to_plain()):
            counts.merge(plain)
        self.state.timing = counts.to_plain()
        self._stepper.model.timing = counts.timing() or self._stepper.model.timing

    def _raise_everywhere(self, problem: CheckpointError | None) -> None:
        """What the main process met, in all of them."""
        message = self._processes.broadcast(None if problem is None else str(problem))
        if problem is not None:
            raise problem
        if message is not None:
            raise CheckpointError(message)
