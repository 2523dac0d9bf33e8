"""What may differ between a run and its resumption, and what may not."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kinescan.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

HARMLESS = (
    "output",
    "data.train",
    "data.test",
    "data.root",
    "loader.num_workers",
    "loader.prefetch_batches",
    "loader.start_method",
    "evaluation",
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


def refuse_other_labels(saved: Sequence[str], own: Sequence[str], folder: Path) -> None:
    """Passes when a checkpoint's classes are those of the data, in the same order.

    Raises:
        CheckpointError: they are not; the message shows how they differ.
    """
    if tuple(saved) != tuple(own):
        raise CheckpointError(
            f"{folder} belongs to other classes: {describe_labels(saved, own)}. Resume with the videos that the run "
            "began with, or start anew in another output."
        )


def describe_labels(saved: Sequence[str], own: Sequence[str]) -> str:
    """How the classes of a checkpoint differ from those of the data.

    Example:
        >>> describe_labels(["jump", "run", "walk"], ["run", "walk", "swim"])
        "it has 3, the data 3; only it has 'jump'; only the data have 'swim'"
        >>> describe_labels(["run", "walk"], ["walk", "run"])
        "the same 2 in another order; place 0 is 'run' there and 'walk' in the data"
    """
    only_saved = [label for label in saved if label not in set(own)]
    only_own = [label for label in own if label not in set(saved)]
    if not only_saved and not only_own:
        place = next(place for place, (old, new) in enumerate(zip(saved, own, strict=True)) if old != new)
        return (
            f"the same {len(saved)} in another order; place {place} is {saved[place]!r} there and {own[place]!r} in "
            "the data"
        )
    parts = [f"it has {len(saved)}, the data {len(own)}"]
    if only_saved:
        parts.append(f"only it has {_listed(only_saved)}")
    if only_own:
        parts.append(f"only the data have {_listed(only_own)}")
    return "; ".join(parts)


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return ", ".join(map(repr, labels[:3])) + more


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = repr(values[key]) if key in values else "not set"
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}..."


def _flat(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{where}{key}.") if isinstance(value, Mapping) else {f"{where}{key}": value}
    return flat
