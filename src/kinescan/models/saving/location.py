"""Where the model is that a user names: a saved model, a run, an exported model, or a repository on the hub."""

import os
from pathlib import Path

from kinescan.errors import CheckpointError, ConfigError
from kinescan.models.saving.shipped import shipped_model
from kinescan.models.weights.hub import is_hub_name
from kinescan.runtime.run_folder import CHECKPOINTS, RUNS, RunFolder
from kinescan.runtime.urls import refuse_url

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
"""Of a saved model."""
EXPORT_FILE = "export.json"
HUB_PAGES = "https://huggingface.co/"
"""The address of a model's page begins so; its name follows."""
MOST_NAMED = 6
WANTED = "the folder of a run, of a saved model or of an exported one, a hub name (ORG/NAME), or motion"


def locate_model(source: str | Path, *, wanted: str = WANTED) -> str:
    """The folder that a user means, or the hub name as it was given where nothing here has that name.

    A run stands for its best checkpoint (its last one where nothing was evaluated), as does its folder `checkpoints`; a
    file of a saved or exported model stands for its folder. A hub name is ORG/NAME, or ORG/NAME@REVISION; where a
    folder ORG is here, it has to be written hf-hub:ORG/NAME. "motion" is the model that comes with the package, unless
    a folder here has that name.

    Args:
        source: the folder of a saved model, a run or an exported model, a file in one, a hub name, or "motion".
        wanted: what to give instead, for the error.

    Raises:
        CheckpointError: nothing has that name, or what has it is not a model.
        ConfigError: `source` is not a name, such as a compiled or wrapped model.

    Example:
        >>> locate_model("user/model")
        'user/model'
    """
    if not isinstance(source, str | os.PathLike):
        is_module = hasattr(source, "state_dict")
        raise ConfigError(
            f"a model is a classifier of kinescan or {wanted}, got {type(source).__name__}."
            + " Compile a model in place, with model.compile(); of a wrapped one, give the model within." * is_module
        )
    text = str(source)
    if isinstance(source, str) and is_hub_name(text.removeprefix(HUB_PAGES).rstrip("/")):
        source = text = text.removeprefix(HUB_PAGES).rstrip("/")
    if not text.strip():
        raise CheckpointError("the model's name is empty. Give a folder, such as a run's, or a hub name (ORG/NAME).")
    refuse_url(text, f"Copy the model to this machine. Give {wanted}.", error=CheckpointError)
    path = Path(source).expanduser()
    try:
        there = path.exists()
    except OSError as error:
        raise CheckpointError(f"{text}: cannot be looked at ({error.strerror}). Check the name.") from None
    if not there and (shipped := shipped_model(text)) is not None:
        return str(shipped)
    if not there:
        return _hub_name(text, path, wanted)
    folder = path if path.is_dir() else path.parent
    if not path.is_dir() and not _is_model(folder) and best_checkpoint(folder) is None:
        raise CheckpointError(
            f"{text} is a file and belongs to no saved model. Give the folder that save_pretrained wrote "
            f"({WEIGHTS_FILE}, {CONFIG_FILE}), a run's or an exported one; for the weights of a backbone use "
            "create_model(name, weights=FILE), or kinescan train RECIPE --set model.weights=FILE."
        )
    if _is_model(folder):
        return str(folder)
    found = best_checkpoint(folder) or (best_checkpoint(folder.parent) if folder.name == CHECKPOINTS else None)
    if found is None:
        _refuse(text, folder)
    return str(folder if found is None else found)


def best_checkpoint(run: Path) -> Path | None:
    """The best checkpoint of a run, or its last one where nothing was evaluated; None where there is neither."""
    for folder in (RunFolder(run).best, RunFolder(run).last):
        if (folder / WEIGHTS_FILE).is_file():
            return folder
    return None


def _is_model(folder: Path) -> bool:
    return (folder / EXPORT_FILE).is_file() or (folder / CONFIG_FILE).is_file()


def _refuse(text: str, folder: Path) -> None:
    """Says what a folder without a model is, where that can be told.

    Raises:
        CheckpointError: it is a run that has saved nothing yet, or a folder of runs.
    """
    if RunFolder(folder).recipe.is_file() or RunFolder(folder).checkpoints.is_dir():
        raise CheckpointError(
            f"{text} is the folder of a run without a checkpoint yet. Wait for its first one, or continue it: "
            f"kinescan train RECIPE --output {text} --resume"
        )
    runs = _runs_in(folder)
    if runs:
        raise CheckpointError(f"{text} is a folder of runs and no model. Name one of them: {_listed(runs)}.")


def _hub_name(text: str, path: Path, wanted: str) -> str:
    """The name, where it can only be one on the hub.

    Raises:
        CheckpointError: it reads as a path, or a folder here has the name of the organisation.
    """
    parent = path.parent
    here = parent != Path(".") and (parent.is_dir() or parent.parts[0] == RUNS)
    if is_hub_name(text) and (text.startswith("hf-hub:") or not here):
        return text
    runs = _runs_in(parent if parent.is_dir() and parent != Path(".") else Path(RUNS))
    there = f" Runs there: {_listed(runs)}." if runs else ""
    hub = f" For the model of that name on the hub write hf-hub:{text}." if is_hub_name(text) else ""
    raise CheckpointError(f"{text}: no such file or folder.{there}{hub} Give {wanted}.")


def _runs_in(folder: Path) -> list[Path]:
    """Those with a checkpoint, the newest first."""
    try:
        found = [(best, run) for run in folder.iterdir() if (best := best_checkpoint(run)) is not None]
        return [run for _, run in sorted(found, key=lambda pair: -(pair[0] / WEIGHTS_FILE).stat().st_mtime)]
    except OSError:
        return []


def _listed(runs: list[Path]) -> str:
    more = f" and {len(runs) - MOST_NAMED} more" if len(runs) > MOST_NAMED else ""
    return ", ".join(map(str, runs[:MOST_NAMED])) + more
