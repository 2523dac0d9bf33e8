"""What may differ between a run and its resumption, and what may not."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kinescan.errors import CheckpointError, ConfigError
from kinescan.models.catalog import current_model_name
from kinescan.models.weights.labels import describe_labels
from kinescan.settings import OLD_NAMES
from kinescan.training.schedule import Schedule

logger = logging.getLogger(__name__)

HARMLESS = (
    "output",
    "data.train",
    "data.test",
    "data.root",
    "data.timeout_seconds",
    "data.max_pixels",
    "loader.num_workers",
    "loader.prefetch_batches",
    "loader.start_method",
    "evaluation",
    "model.module",
    "model.new_head",
    "model.options.activation_checkpointing",
    "train.sharding",
    "train.eval_every",
    "train.log_every",
    "train.checkpoint_minutes",
    "train.keep_checkpoints",
    "train.early_stop_evaluations",
    "train.trackers",
    "train.tracker_project",
    "train.tracker_run",
)
"""Settings that may change: the weights do not depend on them. Videos may move; which ones they are may not change."""
ADDED: Mapping[str, Any] = {
    "data.overlaps": False,
    "data.group": "",
    "data.split_seed": -1,
    "data.validation_ratio": 0.0,
    "data.folds": 0,
    "data.fold": 1,
    "data.event_ratio": 0.5,
    "data.windows_per_epoch": 0,
    "data.clips_per_epoch": 0,
    "preprocessing.whole_frame": False,
    "preprocessing.frame_rate": 0.0,
    "train.carry_state": False,
    "evaluation.grace_seconds": 0.0,
    "augment.invert_rate": 0.0,
    "train.tracker_project": "kinescan",
    "train.tracker_run": "",
    "train.tf32": False,
    "train.sharding": "none",
    "model.text.templates": [],
    "model.text.weights": "",
}
"""Settings that checkpoints of earlier versions do not have, with the value that stands for what these versions did."""
PROCESSES = "processes"
GLOBAL_BATCH = "global_batch"
"""Clips of a batch of all processes together."""
ROUNDING = "computed_by"
"""What the last digits of the weights depend on: threads, versions, processor."""
SHOWN_LETTERS = 80


def describe_computing(device: torch.device, precision: str, *, sharded: bool = False) -> dict[str, Any]:
    """What the last digits of a run's numbers depend on besides its settings.

    Args:
        device: that the model computes on.
        precision: as accelerate calls it.
        sharded: whether parameters are divided between processes.

    Example:
        >>> sorted(describe_computing(torch.device("cpu"), "no"))
        ['device', 'precision', 'processor', 'threads', 'torch']
    """
    on_gpu = device.type == "cuda"
    processor = torch.cuda.get_device_name(device) if on_gpu else torch.backends.cpu.get_cpu_capability()
    return {
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "processor": processor,
        "device": device.type,
        "precision": precision,
        **({"sharding": "full"} if sharded else {}),
    }


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Passes when a run continues as it began; harmless changes are listed in the log.

    Args:
        before: the plain settings in the checkpoint.
        now: those of the resumption.
        folder: the checkpoint, named in the error.

    Raises:
        ConfigError: settings changed that the weights depend on; each is listed.
    """
    old, new = _flat(_current(before)), _flat(_current(now))
    old |= {key: value for key, value in ADDED.items() if key in new and key not in old}
    divided = _divided_otherwise(old, new)
    old.pop(GLOBAL_BATCH, None), new.pop(GLOBAL_BATCH, None)
    changed = {
        key: f"{key} was {_shown(old, key)}, is {_shown(new, key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }
    harmless = [key for key in changed if any(key == name or key.startswith(f"{name}.") for name in HARMLESS)]
    rounding = [key for key in changed if key.startswith(f"{ROUNDING}.")]
    raised = ["optim.epochs"] if _is_raised(old.get("optim.epochs"), new.get("optim.epochs")) else []
    harmful = [text for key, text in changed.items() if key not in (*harmless, *rounding, *raised, *divided)]
    if "optim.epochs" in changed and not raised:
        harmful.append("optim.epochs can be raised, not lowered")
    if PROCESSES in changed and not divided:
        harmful.append(f"{PROCESSES} times loader.batch_size has to stay the same")
    if harmful:
        raise ConfigError(
            f"{folder} was written with other settings: {'; '.join(harmful)}. Resume with the run's own recipe.toml, "
            "or start anew in another output."
        )
    if harmless:
        logger.info("changed since the checkpoint, harmless: %s", "; ".join(changed[key] for key in harmless))
    if divided:
        logger.warning(
            "divided between processes otherwise than before: %s. Batches are the same; what processes sample "
            "themselves, as by dropout, and the last digits of the weights differ from those of a run that was never "
            "stopped",
            "; ".join(changed[key] for key in divided if key in changed),
        )
    # Checkpoints of earlier versions do not say how they were computed.
    if rounding and any(key in old for key in rounding):
        logger.warning(
            "computed otherwise than before: %s. From here on, the last digits of the weights differ from those of a "
            "run that was never stopped",
            "; ".join(changed[key].removeprefix(f"{ROUNDING}.") for key in rounding),
        )


def _divided_otherwise(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings that only divide the same batches between another number of processes; empty where none does."""
    if old.get(PROCESSES) == new.get(PROCESSES) or _global_batch(old) is None:
        return ()
    return (PROCESSES, "loader.batch_size") if _global_batch(old) == _global_batch(new) else ()


def _global_batch(flat: Mapping[str, Any]) -> int | None:
    """Clips of a batch of all processes; checkpoints of earlier versions tell it by its factors."""
    whole, factors = flat.get(GLOBAL_BATCH), (flat.get(PROCESSES), flat.get("loader.batch_size"))
    if isinstance(whole, int):
        return whole
    processes, batch_size = factors
    return processes * batch_size if isinstance(processes, int) and isinstance(batch_size, int) else None


def _is_raised(before: Any, now: Any) -> bool:
    return isinstance(before, int) and isinstance(now, int) and now > before


def describe_longer(schedule: Schedule, before: Mapping[str, Any], step: int) -> None:
    """Says in the log what the learning rate does where a run continues with more epochs than it had.

    Args:
        schedule: of the resumption.
        before: the plain settings in the checkpoint.
        step: steps taken.
    """
    epochs = _flat(before).get("optim.epochs")
    if _is_raised(epochs, schedule.optim.epochs):
        logger.warning(
            "optim.epochs was %d, is %d: warm-up and cosine are those of %d epochs from step %d on: a learning rate of "
            "%.3g there instead of %.3g. The weights will not be those of a run that began with %d epochs",
            *(epochs, schedule.optim.epochs, schedule.optim.epochs, step + 1),
            *(schedule.lr(step), schedule.with_epochs(int(epochs or 0)).lr(step), schedule.optim.epochs),
        )


def refuse_other_labels(saved: Sequence[str] | None, own: Sequence[str] | None, folder: Path) -> None:
    """Passes when a checkpoint's classes are those of the data, in the same order.

    Raises:
        CheckpointError: they are not; the message shows how they differ.
    """
    if saved is None or own is None:
        differs = "one of the two has no labels"
        same = saved is own
    else:
        same = tuple(saved) == tuple(own)
        differs = "" if same else describe_labels(saved, own)
    if not same:
        raise CheckpointError(
            f"{folder} belongs to other classes: {differs}. Resume with the videos that the run "
            "began with, or start anew in another output."
        )


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = repr(values[key]) if key in values else "not set"
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}..."


def _current(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings by the names that models and their options have now."""
    model = settings.get("model")
    if not isinstance(model, Mapping):
        return settings
    options = {OLD_NAMES.get(key, key): value for key, value in model.get("options", {}).items()}
    current = {**settings, "model": {**model, "name": current_model_name(str(model.get("name"))), "options": options}}
    data = settings.get("data")
    if isinstance(data, Mapping) and data.get("split_seed", ADDED["data.split_seed"]) == -1 and "seed" in settings:
        # Of the run's seed, and of a number that is the same: no difference.
        current["data"] = {**data, "split_seed": settings["seed"]}
    return current


def _flat(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{where}{key}.") if isinstance(value, Mapping) else {f"{where}{key}": value}
    return flat
