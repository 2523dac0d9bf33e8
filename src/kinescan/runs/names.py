"""What can be named on a command line or in a recipe."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

from kinescan.data.interval_layouts import INTERVAL_DATASETS
from kinescan.data.listing import DATASETS
from kinescan.errors import ConfigError
from kinescan.models.catalog import CATALOG, REGISTERED, offered_models
from kinescan.runtime.backend_names import Backend
from kinescan.runtime.files import read_text, read_toml
from kinescan.runtime.recipe_files import packaged_recipes, packaged_studies
from kinescan.settings import closest

SETTINGS = "settings"
"""Listed by `kinescan.runs.recipe_reference`."""
MADE = {
    "motion": "kinescan data make motion OUT: only the motion tells the class",
    "appearance": "kinescan data make appearance OUT: only the look tells the class",
    "events": "kinescan data make events OUT: long videos, and lists of what happens from when to when",
}


def list_names(kind: str | None = None, *, recipes: str | Path | None = None) -> dict[str, Any]:
    """What can be named: models, recipes, studies, data sets, backends.

    Args:
        kind: one of these; None for all.
        recipes: folder to look for recipes in; None for those that come with kinescan.

    Returns:
        For each kind, name -> one line about it; the backends are names alone.

    Raises:
        ConfigError: the kind is unknown.

    Example:
        >>> "pks4_vit_b16" in list_names("models")["models"]
        True
    """
    makers: dict[str, Callable[[], Any]] = {
        "models": _models,
        "recipes": partial(_recipes, recipes),
        "studies": _studies,
        "datasets": _datasets,
        "backends": _backends,
    }
    if kind is None:
        return {name: make() for name, make in makers.items()}
    if kind not in makers:
        raise ConfigError(f"cannot list {kind!r}. {closest(kind, [*makers, SETTINGS])}")
    return {kind: makers[kind]()}


def _models() -> dict[str, str]:
    offered = {entry.name: "of an installed package" for entry in offered_models()}
    own = {name: _summary(found.settings, found.model.config_class.__name__) for name, found in REGISTERED.items()}
    models = offered | own | {name: _summary(settings) for name, settings in CATALOG.items()}
    return {name: models[name] for name in sorted(models)}


def _recipes(folder: str | Path | None) -> dict[str, str]:
    found = packaged_recipes() if folder is None else {str(path): path for path in sorted(Path(folder).glob("*.toml"))}
    return {name: _first_comment(path) for name, path in found.items()}


def _studies() -> dict[str, str]:
    return {name: _first_comment(path) for name, path in packaged_studies().items()}


def _datasets() -> dict[str, str]:
    intervals = {name: layout.summary for name, layout in INTERVAL_DATASETS.items()}
    return {name: layout.summary for name, layout in DATASETS.items()} | intervals | MADE


def _backends() -> list[str]:
    return list(get_args(Backend))


def _summary(settings: Mapping[str, Any], config: str = "PKS4Config") -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or f"the defaults of {config}"


def _first_comment(path: Path) -> str:
    """The recipe's first line where it is a comment, else the model that it trains."""
    try:
        first = read_text(path).partition("\n")[0]
        if first.startswith("#"):
            return first.lstrip("# ")
        model = read_toml(path).get("model", {})
    except ConfigError as error:
        return f"cannot be read: {error}"
    return str(model.get("name", "") if isinstance(model, dict) else model)
