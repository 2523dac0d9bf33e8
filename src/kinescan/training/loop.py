import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from kinescan.data.loader import Batch
from kinescan.errors import CheckpointError, ConfigError, NonFiniteError, TrainingInterrupted, VideoError
from kinescan.models.classifier import VideoClassifier
from kinescan.training.checkpoint import TrainState, find_checkpoint, load_state, read_rng, save_checkpoint, write_rng
from kinescan.training.engine import TrainConfig, open_accelerator
from kinescan.training.interruption import Interruption
from kinescan.training.journal import Journal, prepare_output, write_unreadable
from kinescan.training.optim import (
    OptimConfig,
    lr_ratio,
    make_optimizer,
    parameter_groups,
    set_lr,
    trainable_only,
)
from kinescan.training.progress import ProgressBar, memory_gib

logger = logging.getLogger(__name__)

Evaluate = Callable[[VideoClassifier], Mapping[str, float]]
"""Scores of a model, "top1" among them, in [0, 1]."""
Mix = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""Clips [B, T, 3, H, W] and soft labels [B, K] -> the same, mixed."""
Task = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Outputs [B, K] and the labels of a batch -> the mean loss, and which of the B are right."""
HARMLESS = (
    "output",
    "loader.num_workers",
    "evaluation",
    "train.eval_every",
    "train.log_every",
    "train.checkpoint_minutes",
    "train.trackers",
)
"""Settings that may change between a run and its resumption: the weights do not depend on them."""


class ClipSource(Protocol):
    """Training clips in batches, in an order that depends on the epoch (and the source's seed) only."""

    @property
    def num_batches(self) -> int:
        """Batches in an epoch."""

    @property
    def batch_size(self) -> int:
        """Clips in a full batch."""

    @property
    def num_classes(self) -> int:
        """Classes; every label is below it."""

    def batches(self, epoch: int, first_batch: int) -> Iterable[Batch]:
        """The batches of an epoch from `first_batch` on."""

    def path(self, item_index: int) -> str:
        """The video of an item, for messages."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a run left behind.

    Attributes:
        last: checkpoint after the last epoch.
        best: checkpoint with the best top-1 on the evaluation's videos; None without evaluation.
        best_score: its top-1 in [0, 1].
        best_epoch: its epoch, from 0.
        steps: optimizer steps taken.
        unreadable: path -> reason of videos that could not be read.
    """

    last: Path
    best: Path | None
    best_score: float | None
    best_epoch: int | None
    steps: int
    unreadable: dict[str, str]


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
) -> FitResult:
    """Trains a model; its weights are those after the last epoch when this returns.

    Writes checkpoints/last, checkpoints/best, log.jsonl, unreadable.json and the trackers' files into `output`.

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

    Returns:
        Where the checkpoints are and how good the best one was.

    Raises:
        ConfigError: `output` cannot be written or holds a run already, patterns match nothing, or settings changed.
        CheckpointError: a checkpoint cannot be written, or the one to resume from is damaged or does not fit.
        NonFiniteError: loss or gradients became NaN or infinite; names epoch, step and videos.
        VideoError: not one training video could be read.
        TrainingInterrupted: Ctrl-C or SIGTERM came; the message says which checkpoint was left.
    """
    train, optim = train or TrainConfig(), optim or OptimConfig()
    output = prepare_output(output)
    last = refuse_existing_run(output, resume=resume)
    if mix is not None and task is not None:
        raise ConfigError("mix takes labels that are classes. Leave it out when the run has a task of its own.")
    if clips.num_batches < 1:
        raise ConfigError("there is no training clip. Check data.train.")
    home = next(model.parameters()).device
    with trainable_only(model, train.trainable), open_accelerator(train, output) as accelerator, Interruption() as stop:
        plain = dict(settings or {})
        run = _Run(model, clips, accelerator, stop, output, train, optim, mix, task, evaluate, seed, plain)
        try:
            if last is not None:
                run.restore(last)
            elif resume:
                logger.warning("%s holds no checkpoint: starting anew", output)
            run.go()
        finally:
            run.close()
            model.to(home)
    state = run.state
    best = output / "checkpoints" / "best"
    return FitResult(
        last=output / "checkpoints" / "last",
        best=best if state.best_score is not None else None,
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
    last = find_checkpoint(output / "checkpoints" / "last")
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
        stop: Interruption,
        output: Path,
        train: TrainConfig,
        optim: OptimConfig,
        mix: Mix | None,
        task: Task | None,
        evaluate: Evaluate | None,
        seed: int,
        settings: dict[str, Any],
    ) -> None:
        self.clips, self.accelerator, self.stop = clips, accelerator, stop
        self.train, self.optim, self.mix, self.evaluate, self.seed = train, optim, mix, evaluate, seed
        self.task = task or self._classify
        self.labels_are_classes = task is None
        self.checkpoints, self.output = output / "checkpoints", output
        self.state = TrainState(settings=settings)
        self.model = model
        groups = parameter_groups(model, optim, layer_depths=model.layer_depths(), num_layers=model.num_layers)
        self.wrapped = accelerator.prepare_model(model)
        self.optimizer = accelerator.prepare_optimizer(make_optimizer(groups, optim))
        self.trained = [parameter for group in groups for parameter in group["params"]]
        self.peak_lr = optim.peak_lr(clips.batch_size * accelerator.num_processes)
        self.journal: Journal | None = None
        self.saved_at = time.monotonic()

    def restore(self, folder: Path) -> None:
        """Takes up weights, optimizer, position and random states from a checkpoint."""
        state = load_state(folder)
        _refuse_changes(state.settings, self.state.settings, folder)
        saved = type(self.model).from_pretrained(folder)
        try:
            self.model.load_state_dict(saved.state_dict())
            _refuse_other_groups(state.optimizer, self.optimizer.state_dict())
            self.optimizer.load_state_dict(state.optimizer)
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{folder} does not fit this model: {error}. Start anew in another output."
            ) from error
        write_rng(state.rng)
        state.settings = self.state.settings
        self.state = state
        logger.info("resumed from %s: epoch %d, batch %d", folder, state.epoch + 1, state.batches_done)

    def go(self) -> None:
        """Runs every epoch that is left."""
        self.journal = Journal(self.output / "log.jsonl", keep_until=self.state.step if self.state.step else None)
        state = self.state
        with ProgressBar(self.optim.epochs, self.clips.num_batches) as bar:
            while state.epoch < self.optim.epochs:
                if state.batches_done < self.clips.num_batches:
                    self._train_epoch(bar)
                if self.evaluate is not None and self._evaluation_due():
                    self.save()
                    self._evaluate(self.evaluate)
                state.epoch, state.batches_done, state.epoch_sums = state.epoch + 1, 0, {}
                self.save()
        self.model.eval()

    def close(self) -> None:
        """Closes logs and gives the model its own forward back."""
        write_unreadable(self.output / "unreadable.json", self.state.unreadable)
        if self.state.unreadable:
            path = self.output / "unreadable.json"
            logger.warning("%d training videos could not be read; reasons in %s", len(self.state.unreadable), path)
        if self.journal is not None:
            self.journal.close()
        # accelerate sets an instance attribute `forward` for autocast, and unwrapping sets another one.
        self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        vars(self.model).pop("forward", None)

    def save(self) -> Path:
        """Writes the last checkpoint."""
        self.state.optimizer, self.state.rng = self.optimizer.state_dict(), read_rng()
        self.saved_at = time.monotonic()
        return save_checkpoint(self.checkpoints / "last", self.model, self.state)

    def _train_epoch(self, bar: ProgressBar) -> None:
        self.model.train()
        rate = 0.0
        state, started, clips_before = self.state, time.monotonic(), self.state.epoch_sums.get("clips", 0.0)
        for batch in self._batches():
            step = self._step(batch)
            for key, value in step.items():
                state.epoch_sums[key] = state.epoch_sums.get(key, 0.0) + value
            state.batches_done, state.step = state.batches_done + 1, state.step + 1
            rate = (state.epoch_sums["clips"] - clips_before) / max(time.monotonic() - started, 1e-6)
            means = _means(state.epoch_sums)
            bar.update(epoch=state.epoch, batches_done=state.batches_done, clips_per_second=rate, **means)
            if state.step % self.train.log_every == 0 and step["clips"]:
                lr = max(group["lr"] for group in self.optimizer.param_groups)
                self._log("step", {**_means(step), "lr": lr, "gradient_norm": step["norm"], "clips_per_second": rate})
            self._save_if_asked()
        state.batches_done, means = self.clips.num_batches, _means(state.epoch_sums)
        if not state.epoch_sums.get("clips"):
            self._refuse_unreadable()
        seconds = time.monotonic() - started
        self._log("epoch", {**means, "clips_per_second": rate, "seconds": seconds, "unreadable": len(state.unreadable)})
        logger.info(
            "epoch %d/%d  loss %.4f  accuracy %.1f %%  %.1f clips/s  %.1f GiB",
            state.epoch + 1, self.optim.epochs, means["loss"], 100 * means["accuracy"], rate, memory_gib(),
        )  # fmt: skip

    def _batches(self) -> Iterator[Batch]:
        """The batches left of this epoch; an interruption that kills the loader's workers ends them quietly."""
        batches = iter(self.clips.batches(self.state.epoch, self.state.batches_done))
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError:
                if self.stop.requested is None:
                    raise
                self._leave()
            else:
                yield batch

    def _step(self, batch: Batch) -> dict[str, float]:
        """One optimizer step; the sums of what the log shows."""
        for problem in batch.unreadable:
            if problem.path not in self.state.unreadable:
                logger.warning("left out, cannot be read: %s: %s", problem.path, problem.reason)
                self.state.unreadable[problem.path] = problem.reason
        num_clips = len(batch.labels)
        if num_clips == 0:
            return {"loss": 0.0, "correct": 0.0, "norm": 0.0, "clips": 0.0}
        clips, targets = self._mixed(batch)
        clips, targets = clips.to(self.accelerator.device), targets.to(self.accelerator.device)
        logits = self.wrapped(clips).float()
        loss, right = self.task(logits, targets)
        self._check_finite("loss", loss, batch, logits)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.trained, self.optim.clip_norm or math.inf)
        self._check_finite("gradient norm", norm, batch, logits)
        set_lr(self.optimizer, self.peak_lr * self._lr_ratio())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        correct = right.sum().item()
        return {"loss": loss.item() * num_clips, "correct": correct, "norm": norm.item(), "clips": float(num_clips)}

    def _classify(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The task unless another is given: cross-entropy with soft targets [B, K]."""
        loss = F.cross_entropy(logits, targets, label_smoothing=self.optim.label_smoothing)
        return loss, logits.detach().argmax(dim=1) == targets.argmax(dim=1)

    def _mixed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Clips and soft targets [B, K]; the draw depends on seed and step only."""
        if not self.labels_are_classes:
            return batch.clips, batch.labels
        targets = F.one_hot(batch.labels, self.clips.num_classes).float()
        if self.mix is None:
            return batch.clips, targets
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.state.step)
        return self.mix(batch.clips, targets, generator)

    def _lr_ratio(self) -> float:
        per_epoch = self.clips.num_batches
        return lr_ratio(
            self.state.step,
            num_steps=self.optim.epochs * per_epoch,
            warmup_steps=self.optim.warmup_epochs * per_epoch,
            min_ratio=self.optim.min_lr_ratio,
        )

    def _check_finite(self, what: str, value: Tensor, batch: Batch, logits: Tensor) -> None:
        if torch.isfinite(value):
            return
        broken = ~torch.isfinite(batch.clips).flatten(1).all(dim=1)
        source = "pixels hold NaN or infinity" if broken.any() else "pixels are finite"
        guilty = broken if broken.any() else ~torch.isfinite(logits.detach()).all(dim=1).cpu()
        chosen = [index for index, bad in zip(batch.item_indices, guilty, strict=True) if bad or not guilty.any()]
        videos = ", ".join(self.clips.path(int(index)) for index in chosen)
        saved = find_checkpoint(self.checkpoints / "last")
        left = f"The last good checkpoint is {saved}" if saved else "There is no checkpoint yet"
        raise NonFiniteError(
            f"{what} is {value.item()} in epoch {self.state.epoch + 1}, step {self.state.step + 1}; {source}; videos: "
            f"{videos}. {left}. Check these videos; with finite pixels try a lower optim.lr or optim.clip_norm."
        )

    def _evaluation_due(self) -> bool:
        done = self.state.epoch + 1
        return done == self.optim.epochs or done % self.train.eval_every == 0

    def _evaluate(self, evaluate: Evaluate) -> None:
        """Scores the model and keeps the best; a signal ends it at once, since the epoch is saved already."""
        if self.stop.requested is not None:
            self._leave()
        self.model.eval()
        rng = read_rng()
        self.stop.immediate = True
        try:
            scores = evaluate(self.model)
        except (KeyboardInterrupt, RuntimeError) as error:
            if self.stop.requested is None:
                raise
            self.stop.immediate = False
            raise self._interrupted() from error
        self.stop.immediate = False
        write_rng(rng)
        self._log("evaluation", scores)
        logger.info("epoch %d/%d  evaluation  %s", self.state.epoch + 1, self.optim.epochs, _listed(scores))
        if self.state.best_score is None or scores["top1"] >= self.state.best_score:
            self.state.best_score, self.state.best_epoch = float(scores["top1"]), self.state.epoch
            save_checkpoint(self.checkpoints / "best", self.model, None)

    def _save_if_asked(self) -> None:
        if self.stop.requested is not None:
            self._leave()
        minutes = (time.monotonic() - self.saved_at) / 60
        if self.train.checkpoint_minutes and minutes >= self.train.checkpoint_minutes:
            self.save()

    def _leave(self) -> None:
        self.save()
        raise self._interrupted()

    def _interrupted(self) -> TrainingInterrupted:
        return TrainingInterrupted(
            f"stopped by {self.stop.requested} in epoch {self.state.epoch + 1} of {self.optim.epochs}, after "
            f"{self.state.step} steps. The checkpoint is {self.checkpoints / 'last'}; go on with --resume."
        )

    def _refuse_unreadable(self) -> None:
        path, reason = next(iter(self.state.unreadable.items()))
        raise VideoError(path, f"{reason}; and none of the other training videos could be read. Check data.train.")

    def _log(self, kind: str, values: Mapping[str, float]) -> None:
        assert self.journal is not None
        self.journal.write(kind, {"epoch": self.state.epoch + 1, "step": self.state.step, **values})
        self.accelerator.log({f"{kind}/{key}": value for key, value in values.items()}, step=self.state.step)


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    """Loss and accuracy per clip."""
    clips = max(sums.get("clips", 0.0), 1.0)
    return {"loss": sums.get("loss", 0.0) / clips, "accuracy": sums.get("correct", 0.0) / clips}


def _listed(scores: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in scores.items())


def _refuse_other_groups(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    names = [[group["param_names"] for group in state["param_groups"]] for state in (saved, own)]
    if names[0] != names[1]:
        raise ValueError("its optimizer holds other parameters, or in another order")


def _refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    old, new = _flat(before), _flat(now)
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    harmful = [key for key in changed if not any(key == name or key.startswith(f"{name}.") for name in HARMLESS)]
    if harmful:
        listed = "; ".join(f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in harmful)
        raise ConfigError(
            f"{folder} was written with other settings: {listed}. Resume with the run's own recipe.toml, or start anew "
            "in another output."
        )


def _flat(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{where}{key}.") if isinstance(value, Mapping) else {f"{where}{key}": value}
    return flat
