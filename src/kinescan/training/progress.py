import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from kinescan.runtime.quantities import duration
from kinescan.training.callbacks import Callback, End, Start, Step
from kinescan.training.frame_task import balanced_accuracy
from kinescan.training.step import TALLY

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0
WIDE = 110
"""A terminal with fewer columns gets fewer numbers."""
_TERMINAL_GONE = (OSError, SystemExit)
"""What drawing raises when the terminal was closed (rich raises SystemExit); a run does not end for it."""


class ProgressBar(Callback):
    """Loss, accuracy, clips/s, memory and time left: a live bar on a terminal, a log line now and then elsewhere.

    Args:
        num_epochs: epochs in the whole run.
        batches_per_epoch: batches in each.
        console: where to draw; by default standard error.
        shown: False for processes that leave it to another one.
    """

    def __init__(
        self, num_epochs: int, batches_per_epoch: int, *, console: Console | None = None, shown: bool = True
    ) -> None:
        # The command line sets the level; --quiet raises it.
        self._shown = shown and logging.getLogger("kinescan").level <= logging.INFO
        self._num_epochs = num_epochs
        self._per_epoch = batches_per_epoch
        self._console = Console(stderr=True) if console is None else console
        self._progress: Progress | None = None
        self._started = time.monotonic()
        self._last_line = self._started
        self._done_before: int | None = None
        self._device = torch.device("cpu")

    def __enter__(self) -> Self:
        self._started = self._last_line = time.monotonic()
        if self._shown and self._console.is_terminal:
            columns = (
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(bar_width=24 if self._console.width > WIDE else 8),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._task = self._progress.add_task("train", total=self._per_epoch, epoch="", text="starting")
            with suppress(*_TERMINAL_GONE):
                self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            with suppress(*_TERMINAL_GONE):
                self._progress.stop()

    def on_start(self, start: Start) -> None:
        """Starts to show."""
        self._device = next(start.model.parameters()).device
        self.__enter__()

    def on_step(self, step: Step) -> None:
        """Shows the epoch so far."""
        self.update(
            epoch=step.epoch,
            batches_done=step.batches_done,
            loss=step.epoch_loss,
            accuracy=step.epoch_accuracy,
            clips_per_second=step.clips_per_second,
        )

    def on_end(self, end: End) -> None:
        """Leaves the terminal as it was."""
        self.__exit__(None, None, None)

    def update(self, *, epoch: int, batches_done: int, loss: float, accuracy: float, clips_per_second: float) -> None:
        """Shows where the run stands after a batch.

        Args:
            epoch: from 0.
            batches_done: in this epoch.
            loss: mean of the epoch so far.
            accuracy: mean of the epoch so far, in [0, 1].
            clips_per_second: of the epoch so far.
        """
        left = f"{self._time_left(epoch, batches_done)} left"
        text = (
            f"loss {loss:.3f}  accuracy {accuracy:.1%}  {clips_per_second:.1f} clips/s  "
            f"{memory_gib(self._device):.1f} GiB  {left}"
        )
        if self._progress is not None:
            if self._console.width <= WIDE:
                text = f"loss {loss:.3f}  {accuracy:.0%} right  {clips_per_second:.1f}/s  {left}"
            label = f"{epoch + 1}/{self._num_epochs}"
            with suppress(*_TERMINAL_GONE):
                self._progress.update(self._task, completed=batches_done, epoch=label, text=text)
        elif self._shown and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            logger.info(
                "epoch %d/%d  batch %d/%d  %s", epoch + 1, self._num_epochs, batches_done, self._per_epoch, text
            )

    def _time_left(self, epoch: int, batches_done: int) -> str:
        done = epoch * self._per_epoch + batches_done
        if self._done_before is None:
            self._done_before = done - 1
        rate = (done - self._done_before) / max(time.monotonic() - self._started, 1e-6)
        return duration((self._num_epochs * self._per_epoch - done) / rate)


def memory_gib(device: torch.device) -> float:
    """Memory in use in GiB: on a GPU, the most that torch held there so far; else the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if device.type == "mps":
        return torch.mps.current_allocated_memory() / 2**30
    resident: int = psutil.Process().memory_info().rss
    return resident / 2**30


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """Loss and accuracy per clip; where classes were counted, the accuracy that is balanced over them, too."""
    clips = max(sums.get("clips", 0.0), 1.0)
    found = {"loss": sums.get("loss", 0.0) / clips, "accuracy": sums.get("correct", 0.0) / clips}
    tally = [sums[f"{TALLY}{index}"] for index in range(len(sums)) if f"{TALLY}{index}" in sums]
    return found | ({"balanced_accuracy": balanced_accuracy(tally)} if tally else {})


def listed(scores: Mapping[str, float]) -> str:
    """Scores as one line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in scores.items())
