import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from kinescan.data.loader import Batch
from kinescan.data.transforms import finish_clips
from kinescan.models.classifier import VideoClassifier
from kinescan.models.pks4_state import PKS4State
from kinescan.runtime.device import widest_float
from kinescan.runtime.distributed import Processes
from kinescan.training.carried import CarriedState, StatefulForward
from kinescan.training.ema import WeightEma
from kinescan.training.frame_task import FrameTask
from kinescan.training.optim import (
    OptimConfig,
    make_optimizer,
    parameter_groups,
    refuse_other_groups,
    refuse_other_shapes,
    set_lr,
)
from kinescan.training.sharding import ShardedModel, copied, divided_optimizer, whole
from kinescan.training.sync_batch_norm import SynchronisedNorms

Mix = Callable[[Tensor, Tensor, torch.Generator, Sequence[int] | None], tuple[Tensor, Tensor]]
"""Clips [B, T, 3, H, W], soft labels [B, K] and `Batch.positions` -> clips and labels, mixed.

A batch in several parts is mixed part by part with equal generators, so partners have to be in the same part.
"""
LEAST_SCALE = 1.0
"""Smallest scale of the loss in float16: gradients that overflow even at this scale count as not finite."""
TALLY = "tally."
"""Prefix of the keys in `StepResult.sums` under which a task counts something for each class."""
Task = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Outputs [B, ...] and the labels of a batch -> the mean loss, and which of the B are right, or how far in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class NonFinite:
    """NaN or infinity met in a step, which was therefore not taken.

    Attributes:
        what: "loss" or "gradient norm".
        value: NaN or infinity.
        pixels_finite: whether all pixels were finite.
        item_indices: the clips to blame.
    """

    what: str
    value: float
    pixels_finite: bool
    item_indices: list[int]

    def describe(self, where: str, left: str, path: Callable[[int], str]) -> str:
        """The message of the error: what was met in which step, by which videos, and what to do."""
        source = "pixels are finite" if self.pixels_finite else "pixels hold NaN or infinity"
        videos = ", ".join(map(path, self.item_indices))
        return (
            f"{self.what} is {self.value} in {where}; {source}; videos: {videos}. {left}. Check these videos; with "
            "finite pixels try a lower optim.lr or optim.clip_norm."
        )


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did, over all parts and processes.

    Attributes:
        sums: "loss" and "correct" summed over clips, "clips", and "norm", that of the gradients; of a task of frames,
            its tally, "tally.0" and so on.
        stop: a process was asked to stop.
        save: a process wants a checkpoint.
        skipped: with mixed precision "fp16", gradients overflowed, so that nothing was changed but the scale of the
            loss.
        problem: why the step was not taken; None if all went well.
    """

    sums: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "correct": 0.0, "norm": 0.0, "clips": 0.0})
    stop: bool = False
    save: bool = False
    skipped: bool = False
    problem: NonFinite | None = None


class Stepper:
    """Takes optimizer steps: each over one batch, in several parts and by several processes, as if it were whole.

    Args:
        model: trained in place; what is trained of it is chosen already.
        accelerator: device, precision and gradients of several processes.
        processes: those that train together.
        norms: the model's batch norms, synchronised.
        optim: learning rates and loss.
        num_classes: of the data.
        mix: mixup and cutmix; None for neither.
        task: for labels that are not classes; None for classification by cross-entropy.
        seed: of mixup and cutmix.
        carry_rows: rows of a batch whose state continues with the next batch; 0: each batch starts without a state.
        sharded: the sharded copy (`model`) and the whole model; None where every process keeps all of it.

    Attributes:
        model: the model that is trained.
        whole: the model that is evaluated and saved: the same, or with `sharded` the whole one.
        processes: those that train together.
        wrapped: the model as the accelerator runs it.
        optimizer: AdamW over the trained parameters.
        ema: the EMA of the weights; None where none is kept.
        carried: the states of the rows; None where each batch starts anew.

    Raises:
        ConfigError: the model has no state to carry.
    """

    def __init__(
        self,
        model: VideoClassifier,
        accelerator: Accelerator,
        processes: Processes,
        norms: SynchronisedNorms,
        optim: OptimConfig,
        *,
        num_classes: int,
        mix: Mix | None,
        task: Task | None,
        seed: int,
        carry_rows: int = 0,
        sharded: ShardedModel | None = None,
    ) -> None:
        self.model, self.accelerator, self.processes = model, accelerator, processes
        self.norms, self.optim = norms, optim
        self.num_classes, self.mix, self.seed = num_classes, mix, seed
        self.task = task or self._classify
        self.labels_are_classes = task is None
        self.sharded = sharded
        self.whole = model if sharded is None else sharded.plain
        groups = parameter_groups(self.whole, optim, layer_depths=model.layer_depths(), num_layers=model.num_layers)
        self._clip_shape = (1, model.preprocessing.num_frames, 3, model.config.image_size, model.config.image_size)
        self.carried = CarriedState(self.whole, carry_rows) if carry_rows else None
        called = model if self.carried is None else StatefulForward(model)
        if sharded is None:
            self.wrapped = accelerator.prepare_model(called)
        else:
            self.wrapped = sharded.shard(called)
            parameters = dict(model.named_parameters())
            for group in groups:
                group["params"] = [parameters[name] for name in group["param_names"]]
        self.trained = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = accelerator.prepare_optimizer(make_optimizer(groups, optim))
        self.ema = WeightEma(model, optim.ema_decay) if optim.ema_decay else None

    @contextmanager
    def evaluated(self) -> Iterator[VideoClassifier]:
        """The whole model on the device, with the EMA of its weights where one is kept; every process calls this."""
        if self.sharded is not None:
            with self.sharded.evaluated(self._ema_weights()) as model:
                yield model
            return
        with nullcontext() if self.ema is None else self.ema.in_model():
            yield self.model

    @contextmanager
    def saved(self) -> Iterator[VideoClassifier]:
        """As `evaluated`, wherever it is."""
        if self.sharded is None:
            with self.evaluated() as model:
                yield model
        else:
            self.sharded.gather(self._ema_weights())
            yield self.whole

    def leave_whole(self) -> None:
        """Leaves what was trained, or its EMA, in the whole model; every process calls this."""
        if self.sharded is not None:
            self.sharded.gather(self._ema_weights())
        elif self.ema is not None:
            self.ema.leave_in_model()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Gives the model weights, which are the same in every process.

        Raises:
            RuntimeError: tensors are missing, left over or of another shape.
        """
        self.whole.load_state_dict(weights)
        if self.sharded is not None:
            self.sharded.spread()

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Gives the optimizer a state of whole tensors, which is the same in every process.

        Raises:
            ValueError: it is of other parameters, or of other shapes.
        """
        refuse_other_groups(state, self.optimizer.state_dict())
        if self.sharded is not None:
            state = divided_optimizer(state, self.optimizer)
        # What was read may be the file's own memory.
        self.optimizer.load_state_dict(copied(state))
        refuse_other_shapes(self.optimizer)

    def _ema_weights(self) -> Mapping[str, Tensor]:
        return {} if self.ema is None else self.ema.weights_by_name

    def take(
        self,
        batches: Sequence[Batch],
        counts: Tensor,
        *,
        step: int,
        lr: float,
        stop: bool = False,
        save: bool = False,
    ) -> StepResult:
        """One step over a batch whose parts of this process are `batches`.

        Args:
            batches: the parts; each process has as many, some may be empty.
            counts: [processes, parts], clips in each part of each process.
            step: steps taken before.
            lr: learning rate of this step.
            stop: this process was asked to stop; the others learn of it.
            save: this process wants a checkpoint; the others learn of it.
        """
        total = int(counts.sum())
        if total == 0:
            if self.carried is not None:
                self.carried.forget()
            stops, saves = self.processes.sum([float(stop), float(save)])
            return StepResult(stop=stops > 0, save=saves > 0)
        # Sums stay on the device: they are read once, after the backward pass was launched.
        device = self.accelerator.device
        wide = widest_float(device)
        sums, tally = torch.zeros(2, dtype=wide, device=device), self._no_tally()
        outputs = []
        for index, batch in enumerate(batches):
            clips, targets = self._prepare(batch, step)
            with self._gradients_shared(last=index + 1 == len(batches)):
                logits, loss, right = self._run(clips, targets, batch)
                if logits is not None:
                    tally = tally + self._tally(logits, targets)
                    sums = sums + torch.stack([loss.detach().to(wide) * len(targets), right.sum().to(wide)])
                    loss = _scaled(loss, len(targets) * self.processes.count / total)
                outputs.append(logits)
                if logits is not None or self.processes.count > 1:
                    self.accelerator.backward(loss)
        norms = whole(self.accelerator.clip_grad_norm_(self.trained, self.optim.clip_norm or math.inf))
        asked = torch.tensor([float(stop), float(save)], dtype=wide).to(device, non_blocking=True)
        told = self.processes.sum_tensor(torch.cat([sums, asked, tally.to(wide)]))
        norm, loss_sum, correct, stops, saves, *counts_of_classes = torch.cat([norms.to(wide)[None], told]).tolist()
        skipped = math.isfinite(loss_sum) and not math.isfinite(norm) and self._may_skip()
        if not skipped and not (math.isfinite(loss_sum) and math.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            what, value = ("gradient norm", norm) if math.isfinite(loss_sum) else ("loss", loss_sum / total)
            return StepResult(problem=self._problem(what, value, batches, outputs))
        set_lr(self.optimizer, lr)
        # Of gradients that overflowed, this lowers the scale of the loss and leaves the weights as they are.
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None and not skipped:
            self.ema.update(step + 1)
        read = {"loss": loss_sum, "correct": correct, "norm": 0.0 if skipped else norm, "clips": float(total)}
        read |= {f"{TALLY}{index}": count for index, count in enumerate(counts_of_classes)}
        return StepResult(sums=read, stop=stops > 0, save=saves > 0, skipped=skipped)

    def _may_skip(self) -> bool:
        """Whether a lower scale of the loss may help against gradients that overflow."""
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() > LEAST_SCALE

    def _prepare(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Clips and targets of a part on the device; soft targets [B, K] for classes, mixed by seed and step."""
        device = self.accelerator.device
        clips, targets = (tensor.to(device, non_blocking=True) for tensor in (batch.clips, batch.labels))
        if batch.left:
            clips = finish_clips(clips, batch.left, self.model.preprocessing)
        if self.labels_are_classes:
            targets = (targets[:, None] == torch.arange(self.num_classes, device=device)).float()
            if self.mix is not None and len(targets):
                # Sampled on the CPU, so that every device mixes alike.
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
                clips, targets = self.mix(clips, targets, generator, batch.positions)
        return clips, targets

    def _run(self, clips: Tensor, targets: Tensor, batch: Batch) -> tuple[Tensor | None, Tensor, Tensor]:
        """Logits, mean loss and right answers of a part; of several processes, an empty one runs and counts nothing."""
        self.norms.idle = len(targets) == 0
        if len(targets):
            logits = self._logits(clips, batch).float()
            loss, right = self.task(logits, targets)
            return logits.detach(), loss, right
        if self.carried is not None:
            self.carried.forget()
        nothing = torch.zeros(())
        if self.processes.count == 1:
            return None, nothing, nothing
        blank = torch.zeros(self._clip_shape, device=self.accelerator.device)
        logits = self._call(blank) if self.carried is None else self._call(blank, PKS4State())[0]
        return None, logits.float().sum() * 0.0, nothing

    def _logits(self, clips: Tensor, batch: Batch) -> Tensor:
        """What the model says of the clips; with a state to carry, each row continues from the batch before."""
        if self.carried is None:
            logits: Tensor = self._call(clips)
            return logits
        logits, after = self._call(clips, self.carried.take(batch.positions, batch.starts, clips.device))
        self.carried.put(batch.positions, after)
        return logits

    def _call(self, *inputs: Any) -> Any:
        """What the model gives, in the precision of the run: accelerate's wrapper computes in it by itself."""
        if self.sharded is None:
            return self.wrapped(*inputs)
        with self.accelerator.autocast():
            return self.wrapped(*inputs)

    def _no_tally(self) -> Tensor:
        """Zeros for `_tally`."""
        task = self.task
        num_classes = task.num_tallied(self.model.config.num_classes) if isinstance(task, FrameTask) else 0
        return torch.zeros(2 * num_classes, dtype=torch.int64, device=self.accelerator.device)

    def _tally(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What the task counts for each class; nothing where it counts none."""
        if not isinstance(self.task, FrameTask):
            return self._no_tally()
        return self.task.tally(logits, targets).flatten()

    def _classify(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The task unless another is given: cross-entropy with soft targets [B, K]."""
        loss = F.cross_entropy(logits, targets, label_smoothing=self.optim.label_smoothing)
        return loss, logits.detach().argmax(dim=1) == targets.argmax(dim=1)

    def _gradients_shared(self, *, last: bool) -> AbstractContextManager[None]:
        """Processes average their gradients once a step, with the last part."""
        # Divided gradients are summed with each part: whole ones would be kept for it.
        if last or self.processes.count == 1 or self.sharded is not None:
            return nullcontext()
        return self.accelerator.no_sync(self.wrapped)

    def _problem(
        self, what: str, value: float, batches: Sequence[Batch], outputs: Sequence[Tensor | None]
    ) -> NonFinite:
        """Which clips of which process are to blame: those with broken pixels, else with broken outputs, else all."""
        broken: list[int] = []
        blamed: list[int] = []
        everyone: list[int] = []
        for batch, logits in zip(batches, outputs, strict=True):
            if logits is None:
                continue
            indices = [int(index) for index in batch.item_indices]
            everyone += indices
            broken += _chosen(indices, ~torch.isfinite(batch.clips).flatten(1).all(dim=1))
            blamed += _chosen(indices, ~torch.isfinite(logits).flatten(1).all(dim=1).cpu())
        gathered = self.processes.gather((broken, blamed, everyone))
        found = [list(chain.from_iterable(lists)) for lists in zip(*gathered, strict=True)]
        chosen = next(indices for indices in found if indices)
        return NonFinite(what=what, value=value, pixels_finite=not found[0], item_indices=chosen)


def _scaled(loss: Tensor, factor: float) -> Tensor:
    """The part's contribution to the batch's mean; a batch of one part is left as it is, bit for bit."""
    return loss if factor == 1.0 else loss * factor


def _chosen(indices: Sequence[int], chosen: Tensor) -> list[int]:
    return [index for index, wanted in zip(indices, chosen.tolist(), strict=True) if wanted]
