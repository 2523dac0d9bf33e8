"""What a run tells those who watch it: its start, every step, epoch and evaluation, and its end."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from kinescan.models.classifier import VideoClassifier


@dataclass(frozen=True, kw_only=True)
class Start:
    """A run that begins or continues.

    Attributes:
        model: that is trained.
        num_epochs: in the whole run.
        batches_per_epoch: batches in each.
        epoch: the one that comes next, from 0.
        step: optimizer steps taken before.
        is_main: whether this process is the one that writes files.
    """

    model: VideoClassifier
    num_epochs: int
    batches_per_epoch: int
    epoch: int
    step: int
    is_main: bool


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step that was taken.

    Attributes:
        epoch: from 0.
        step: optimizer steps taken, this one included.
        batches_done: batches of the epoch behind us.
        num_clips: in this step, of all processes; 0 where nothing could be read and no step was taken.
        loss: mean of this step's clips.
        accuracy: of this step's clips, in [0, 1].
        lr: largest learning rate of the parameter groups.
        gradient_norm: of all gradients together, before clipping.
        epoch_loss: mean of the epoch so far.
        epoch_accuracy: of the epoch so far, in [0, 1].
        clips_per_second: of the epoch so far.
        balanced_accuracy: of this step's frames, the mean over classes; None where clips are classified.
    """

    epoch: int
    step: int
    batches_done: int
    num_clips: int
    loss: float
    accuracy: float
    lr: float
    gradient_norm: float
    epoch_loss: float
    epoch_accuracy: float
    clips_per_second: float
    balanced_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """An epoch whose batches are all behind us.

    Attributes:
        epoch: from 0.
        step: optimizer steps taken.
        loss: mean of the clips.
        accuracy: in [0, 1].
        gradient_norm: mean of the steps.
        clips_per_second: since the epoch began, or was resumed.
        seconds: since then.
        num_unreadable: training videos that could not be read so far.
        balanced_accuracy: of the frames, the mean over classes; None where clips are classified.
    """

    epoch: int
    step: int
    loss: float
    accuracy: float
    gradient_norm: float
    clips_per_second: float
    seconds: float
    num_unreadable: int
    balanced_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of the model; while it is told, the model holds the weights that were scored.

    Attributes:
        epoch: from 0.
        step: optimizer steps taken.
        scores: as `evaluate` gave them; the one that chooses the best checkpoint is among them.
    """

    epoch: int
    step: int
    scores: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class End:
    """A run that ended, well or not.

    Attributes:
        step: optimizer steps taken.
        unreadable: path -> reason of training videos that could not be read.
        error: what ended it early; None when it came to its end.
    """

    step: int
    unreadable: Mapping[str, str]
    error: BaseException | None


class Callback:
    """Watches a run; each method does nothing until it is overridden, and what it raises ends the run.

    Of several processes, each tells its own callbacks. They must not sample from the global random generators if the
    weights are to be those of a run without them.

    Example:
        >>> class Losses(Callback):
        ...     def __init__(self):
        ...         self.losses = []
        ...
        ...     def on_step(self, step):
        ...         self.losses.append(step.loss)
    """

    def on_start(self, start: Start) -> None:
        """Before the first step, when a resumption was accepted."""

    def on_step(self, step: Step) -> None:
        """After every step."""

    def on_epoch(self, epoch: Epoch) -> None:
        """After the last step of an epoch, before its evaluation and its checkpoint."""

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """After an evaluation, before the best checkpoint is written."""

    def on_end(self, end: End) -> None:
        """Once, however the run ended, if `on_start` came to its end."""


class Callbacks(Callback):
    """Several as one, told in their order; at the end, the last to start is told first, and none is left out.

    Args:
        callbacks: that are told, in this order.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = tuple(callbacks)
        self._started: list[Callback] = []

    def on_start(self, start: Start) -> None:
        """Tells each."""
        for callback in self._callbacks:
            callback.on_start(start)
            self._started.append(callback)

    def on_step(self, step: Step) -> None:
        """Tells each."""
        for callback in self._callbacks:
            callback.on_step(step)

    def on_epoch(self, epoch: Epoch) -> None:
        """Tells each."""
        for callback in self._callbacks:
            callback.on_epoch(epoch)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Tells each."""
        for callback in self._callbacks:
            callback.on_evaluation(evaluation)

    def on_end(self, end: End) -> None:
        """Tells each that was told of the start, though one before it fails."""
        with ExitStack() as stack:
            for callback in self._started:
                stack.callback(callback.on_end, end)
        self._started.clear()
