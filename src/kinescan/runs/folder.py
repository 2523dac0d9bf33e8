import logging
from dataclasses import replace
from pathlib import Path

from kinescan.config import DataConfig, RunConfig, load_recipe
from kinescan.errors import ConfigError
from kinescan.models.saving.location import WEIGHTS_FILE, best_checkpoint, locate_model
from kinescan.models.saving.saved_model import CARD_FILE, read_config
from kinescan.models.saving.shipped import MOTION, SHIPPED
from kinescan.runtime.files import read_toml
from kinescan.runtime.folder_lock import is_locked
from kinescan.runtime.run_folder import RUNS as DEFAULT_FOLDER
from kinescan.runtime.run_folder import RunFolder

logger = logging.getLogger(__name__)

RUNS = Path(DEFAULT_FOLDER)
OF_THE_RUN = -1
"""The `data.split_seed` that stands for the run's seed."""


def model_folder(source: str | Path | None, *, hint: str, or_shipped: bool = False) -> str:
    """Where the model is that a user means: a run's best checkpoint, a saved or exported model, or a hub name.

    Args:
        source: a run's folder, a model's folder, or a hub name; None for the newest run under ./runs.
        hint: how the verb takes a model, such as "--model RUN".
        or_shipped: without a run, take the motion model that comes with the package, and say so.

    Raises:
        ConfigError: None was given and no run was found.
        CheckpointError: no model has that name.
    """
    if source is None:
        run = newest_run(RUNS)
        if run is None and or_shipped:
            logger.info("model: %s", describe_motion_model())
            return str(SHIPPED / MOTION)
        if run is None:
            raise ConfigError(
                f"no model was given, and {RUNS.resolve()} holds no run with a checkpoint. Name one: {hint}."
            )
        logger.info("model: %s (the newest run)", run)
        source = run
    return locate_model(source)


def describe_motion_model() -> str:
    """What the model that comes with the package can name and what not, in one line."""
    motions = ", ".join(read_config(SHIPPED / MOTION).labels or ())
    return (
        f"{MOTION}, which comes with kinescan. It names how a picture or what is large in it moves ({motions}); "
        f"it knows no actions and no things. Its card: {SHIPPED / MOTION / CARD_FILE}"
    )


def newest_run(runs: Path) -> Path | None:
    """The run in a folder whose checkpoint was written last."""
    found = [(checkpoint, run) for run in runs.glob("*") if (checkpoint := best_checkpoint(run)) is not None]
    return max(found, key=lambda pair: (pair[0] / WEIGHTS_FILE).stat().st_mtime)[1] if found else None


def run_of(model: str | Path) -> Path | None:
    """The run that a model's folder belongs to, known by its recipe; None for other models."""
    path = Path(model)
    for folder in (path, *path.resolve().parents[:2]):
        if RunFolder(folder).is_run():
            return folder
    return None


def recipe_of(run: Path) -> RunConfig | None:
    """The settings of a run; None where its recipe was not written to its end.

    Raises:
        ConfigError: the recipe is damaged.
    """
    recipe = RunFolder(run).recipe
    config = as_begun(load_recipe(recipe), run)
    if config.data.train:
        return config
    logger.warning("%s is empty: the run's settings are not known, and those of the model are taken", recipe)
    return None


def as_begun(config: RunConfig, run: Path) -> RunConfig:
    """The settings with the division of the videos that a run of an earlier version began with, if it is one.

    The default of `data.split_seed` was the run's seed then. The run's recipe says so, or does not know the setting.

    Args:
        config: of the run, or of its resumption.
        run: its folder; one that holds no run yet changes nothing.

    Raises:
        ConfigError: the recipe in the folder is damaged.
    """
    recipe = RunFolder(run).recipe
    if config.data.split_seed != DataConfig.split_seed or not recipe.is_file():
        return config
    data = read_toml(recipe).get("data")
    if not isinstance(data, dict) or data.get("split_seed", OF_THE_RUN) != OF_THE_RUN:
        return config
    return replace(config, data=replace(config.data, split_seed=OF_THE_RUN))


def choose_output(name: str, *, resume: bool) -> Path:
    """The folder of a run that names none: the next free runs/NAME, runs/NAME-2, ...; to resume, the one before it.

    One that another run has only begun to write into is not free.
    """
    taken: list[Path] = []
    number = 1
    while True:
        folder = RUNS / (name if number == 1 else f"{name}-{number}")
        if not (RunFolder(folder).checkpoints.is_dir() or is_locked(folder)):
            return taken[-1] if resume and taken else folder
        taken.append(folder)
        number += 1
