import logging
from pathlib import Path

from kinescan.errors import ConfigError
from kinescan.training.lock import is_locked

logger = logging.getLogger(__name__)

RUNS = Path("runs")
RECIPE_FILE = "recipe.toml"
WEIGHTS_FILE = "model.safetensors"


def model_folder(source: str | Path | None) -> str:
    """Where the model is that a user means: a run's best checkpoint, a saved model, or a hub name.

    Args:
        source: a run's folder, a model's folder, or a hub name; None for the newest run under ./runs.

    Raises:
        ConfigError: None was given and there is no run.
    """
    if source is None:
        run = newest_run(RUNS)
        if run is None:
            raise ConfigError("no model was given, and ./runs holds no run with a checkpoint. Name one with --model.")
        logger.info("model: %s (the newest run)", run)
        source = run
    checkpoint = best_checkpoint(Path(source))
    return str(source if checkpoint is None else checkpoint)


def best_checkpoint(run: Path) -> Path | None:
    """The best checkpoint of a run, or its last one where nothing was evaluated; None where there is neither."""
    for name in ("best", "last"):
        folder = run / "checkpoints" / name
        if (folder / WEIGHTS_FILE).is_file():
            return folder
    return None


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
