"""Trackers of a run (TensorBoard, Weights & Biases, ...): opened under the run's name, with its settings."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from kinescan.errors import ConfigError, DependencyError
from kinescan.settings import closest

FOLDER = "tensorboard"
"""Of TensorBoard's files, in the run's folder: it names a run by the folder that it finds it in."""
_NAME_OPTION = {
    "wandb": "name",
    "trackio": "name",
    "mlflow": "run_name",
    "clearml": "task_name",
    "swanlab": "experiment_name",
}
"""Tracker -> its option for the name of a run; the others are told in another way, or know none."""


def check_trackers(names: Sequence[str]) -> None:
    """Passes where all trackers are known and installed.

    Raises:
        ConfigError: one is unknown.
        DependencyError: one is not installed.
    """
    known = [str(name) for name in LOGGER_TYPE_TO_CLASS]
    installed = [str(name) for name in get_available_trackers()]
    for name in names:
        if name not in known:
            raise ConfigError(f"train.trackers: unknown tracker {name!r}. {closest(name, known)}")
        if name not in installed:
            raise DependencyError(f"train.trackers: {name} cannot be imported. Install it: pip install {name}")


def open_trackers(
    accelerator: Accelerator, names: Sequence[str], *, project: str, run: str, output: Path, settings: Mapping[str, Any]
) -> None:
    """Opens a run's trackers; the accelerator then logs to all of them.

    Args:
        accelerator: made without trackers.
        names: of the trackers.
        project: what runs are gathered under.
        run: the run's name.
        output: its folder.
        settings: of the run, nested; trackers get them flat, by dotted keys.
    """
    if not names:
        return
    opened: list[Any] = []
    for name in names:
        if name == "tensorboard":
            opened.append(LOGGER_TYPE_TO_CLASS[name](FOLDER, str(output)))
        elif name == "aim":
            opened.append(LOGGER_TYPE_TO_CLASS[name](run, str(output), experiment=project))
        else:
            opened.append(name)
    accelerator.log_with = opened
    options = {name: {_NAME_OPTION[name]: run} for name in names if name in _NAME_OPTION}
    if "clearml" in names:
        options["clearml"]["project_name"] = project
    accelerator.init_trackers(project, config=plain_settings(settings) or None, init_kwargs=options)
    for tracker in accelerator.trackers:
        # Comet's experiments are named when they are open, which they are in the main process alone.
        if tracker.name == "comet_ml" and accelerator.is_main_process:
            tracker.tracker.set_name(run)


def plain_settings(settings: Mapping[str, Any], where: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings by dotted keys; lists are written as JSON, since trackers take numbers and text only.

    Example:
        >>> plain_settings({"optim": {"lr": 0.1, "betas": [0.9, 0.98]}, "seed": 0})
        {'optim.lr': 0.1, 'optim.betas': '[0.9, 0.98]', 'seed': 0}
    """
    flat: dict[str, bool | int | float | str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= plain_settings(value, f"{where}{key}.")
        else:
            flat[f"{where}{key}"] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return flat
