import logging
from pathlib import Path

from kinescan.config import RunConfig, load_recipe
from kinescan.errors import ConfigError
from kinescan.models.saving import location
from kinescan.models.saving.location import RECIPE_FILE, WEIGHTS_FILE, best_checkpoint, locate_model
from kinescan.runtime.folder_lock import is_locked

logger = logging.getLogger(__name__)

RUNS = Path(location.RUNS)


def model_folder(source: str | Path | None, *, hint: str) -> str:
    """Where the model is that a user means: a run's best checkpoint, a saved or exported model, or a hub name.

    Args:
        source: a run's folder, a model's folder, or a hub name; None for the newest run under ./runs.
        hint: how the verb takes a model, such as "--model RUN".

    Raises:
        ConfigError: None was given and there is no run.
        CheckpointError: there is no model of that name.
    """
    if source is None:
        run = newest_run(RUNS)
        if run is None:
            raise ConfigError(
                f"no model was given, and {RUNS.resolve()} holds no run with a checkpoint. Name one: {hint}."
            )
        logger.info("model: %s (the newest run)", run)
        source = run
    return locate_model(source)


def newest_run(runs: Path) -> Path | None:
    """The run in a folder whose checkpoint was written last."""
    found = [(checkpoint, run) for run in runs.glob("*") if (checkpoint := best_checkpoint(run)) is not None]
    return max(found, key=lambda pair: (pair[0] / WEIGHTS_FILE).stat().st_mtime)[1] if found else None


def run_of(model: str | Path) -> Path | None:
    """The run that a model's folder belongs to, known by its recipe; None for other models."""
    path = Path(model)
    for folder in (path, *path.resolve().parents[:2]):
        if (folder / RECIPE_FILE).is_file() and (folder / "checkpoints").is_dir():
            return folder
    return None


def recipe_of(run: Path) -> RunConfig | None:
    """The settings of a run; None where its recipe was not written to its end.

    Raises:
        ConfigError: the recipe is damaged.
    """
    config = load_recipe(run / RECIPE_FILE)
    if config.data.train:
        return config
    logger.warning("%s is empty: the run's settings are not known, and those of the model are taken", run / RECIPE_FILE)
    return None


def choose_output(name: str, *, resume: bool) -> Path:
    """The folder of a run that names none: the next free runs/NAME, runs/NAME-2, ...; to resume, the one before it.

    One that another run has only begun to write into is not free.
    """
    taken: list[Path] = []
    number = 1
    while True:
        folder = RUNS / (name if number == 1 else f"{name}-{number}")
        if not ((folder / "checkpoints").is_dir() or is_locked(folder)):
            return taken[-1] if resume and taken else folder
        taken.append(folder)
        number += 1
