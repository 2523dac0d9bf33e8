"""What may differ between a run and its resumption, and what may not."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kinescan.errors import CheckpointError, ConfigError
from kinescan.models.labels import describe_labels

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
    "model.new_head",
    "model.options.recompute",
    "train.eval_every",
    "train.log_every",
    "train.checkpoint_minutes",
    "train.keep_checkpoints",
    "train.early_stop_evaluations",
    "train.trackers",
)
"""Settings that may change: the weights do not depend on them. Videos may move; which ones they are may not change."""
SHOWN_LETTERS = 80


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Passes when a run goes on as it began; harmless changes are listed in the log.

    Args:
        before: the plain settings in the checkpoint.
        now: those of the resumption.
        folder: the checkpoint, named in the error.

    Raises:
        ConfigError: settings changed that the weights depend on; each is listed.
    """
    old, new = _flat(before), _flat(now)
    changed = {
        key: f"{key} was {_shown(old, key)}, is {_shown(new, key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }
    harmless = [key for key in changed if any(key == name or key.startswith(f"{name}.") for name in HARMLESS)]
    harmful = [text for key, text in changed.items() if key not in harmless]
    if harmful:
        raise ConfigError(
            f"{folder} was written with other settings: {'; '.join(harmful)}. Resume with the run's own recipe.toml, "
            "or start anew in another output."
        )
    if harmless:
        logger.info("changed since the checkpoint, harmless: %s", "; ".join(changed[key] for key in harmless))


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


def _flat(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{where}{key}.") if isinstance(value, Mapping) else {f"{where}{key}": value}
    return flat
