"""Takes a run up where its last checkpoint left it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinescan.errors import CheckpointError
from kinescan.models.classifier import VideoClassifier
from kinescan.models.saving.saved_model import read_config, read_weights
from kinescan.runtime.distributed import Processes
from kinescan.training.accelerator import TrainConfig
from kinescan.training.checkpoint import TrainState, load_state, write_rng
from kinescan.training.resume_check import PROCESSES, describe_longer, refuse_changes, refuse_other_labels
from kinescan.training.schedule import Schedule
from kinescan.training.step import Stepper

logger = logging.getLogger(__name__)


def restore(
    folder: Path, stepper: Stepper, schedule: Schedule, train: TrainConfig, settings: dict[str, Any]
) -> TrainState:
    """Weights, optimizer, EMA and random states of a checkpoint, put where they belong.

    Args:
        folder: a complete checkpoint.
        stepper: its model, optimizer and EMA get what the checkpoint holds.
        schedule: of the resumption.
        train: how patient the run is now.
        settings: plain settings of the resumption.

    Returns:
        Where the run stands, with the settings of the resumption.

    Raises:
        ConfigError: settings changed that the weights depend on.
        CheckpointError: the checkpoint is damaged or of another model.
    """
    model = stepper.whole
    state = load_state(folder)
    refuse_changes(state.settings, settings, folder)
    saved = read_config(folder)
    refuse_other_labels(saved.labels, model.labels, folder)
    try:
        stepper.load_weights(_weights(model, folder, saved.base))
        if stepper.ema is not None:
            stepper.ema.restore(state.weights)
        stepper.load_optimizer(state.optimizer)
        if stepper.carried is not None:
            stepper.carried.restore(_own_rows(state.carried, stepper.processes))
        if stepper.accelerator.scaler is not None and state.scaler:
            stepper.accelerator.scaler.load_state_dict(state.scaler)
        if len(state.rng) != state.settings.get(PROCESSES, len(state.rng) or 1):
            raise CheckpointError(f"it holds random states of {len(state.rng)} processes")
        # Of another number of processes, those that were not there before begin with states of their own.
        if stepper.processes.index < len(state.rng):
            write_rng(state.rng[stepper.processes.index], stepper.accelerator.device)
    except Exception as error:  # whatever the file holds instead of them
        raise CheckpointError(f"{folder} does not fit this model: {error}. Start anew in another output.") from error
    describe_longer(schedule, state.settings, state.step)
    state.settings = settings
    _take_up_early_stop(state, train.early_stop_evaluations, schedule.optim.epochs)
    if state.epoch >= schedule.optim.epochs:
        logger.info("resumed from %s: all %d epochs are done", folder, schedule.optim.epochs)
    else:
        logger.info("resumed from %s: epoch %d, batch %d", folder, state.epoch + 1, state.batches_done)
    return state


def _own_rows(carried: Sequence[Mapping[str, Tensor]], processes: Processes) -> dict[str, Tensor]:
    """This process's part of the states that all processes carried; there may be another number of them now."""
    if len(carried) == processes.count:
        return dict(carried[processes.index])
    whole = {name: torch.cat([own[name] for own in carried]) for name in carried[0]}
    return {name: rows.tensor_split(processes.count)[processes.index].contiguous() for name, rows in whole.items()}


def _weights(model: VideoClassifier, folder: Path, base: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """The weights of a saved model; of a tuned part, its base is what the model has already.

    Raises:
        CheckpointError: it was tuned on another base.
    """
    weights = read_weights(folder)
    if base is not None:
        saved, own_base = model.saved_part()
        if own_base is None or own_base["sha256"] != base["sha256"]:
            raise CheckpointError(f"it was tuned on another base, {base['source']}")
        weights |= {name: tensor for name, tensor in model.state_dict().items() if name not in saved}
    return weights


def _take_up_early_stop(state: TrainState, patience: int, num_epochs: int) -> None:
    """A run that stopped early continues where more patience is given to it now."""
    if state.stopped_early and (not patience or state.evaluations_without_gain < patience):
        state.stopped_early = False
    elif state.stopped_early and state.epoch < num_epochs:
        logger.warning(
            "the run had stopped early, after %d evaluations without a better score: nothing is trained. Raise "
            "train.early_stop_evaluations to continue",
            state.evaluations_without_gain,
        )
