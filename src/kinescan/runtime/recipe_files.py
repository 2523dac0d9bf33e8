"""Where recipes are found: those that come with the package, and files."""

from pathlib import Path

from kinescan.errors import ConfigError
from kinescan.runtime.addresses import as_path, is_remote
from kinescan.runtime.run_folder import RunFolder
from kinescan.runtime.urls import refuse_url
from kinescan.settings import closest

RECIPES = Path(__file__).parents[1] / "recipes"
"""Those that come with the package."""
MOST_NAMED = 6


def packaged_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name.

    Example:
        >>> "own_videos_cpu" in packaged_recipes()
        True
    """
    return {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}


def packaged_studies() -> dict[str, Path]:
    """The studies that come with the package, by name; those of the paper's tables are in `kinescan reproduce`.

    Example:
        >>> list(packaged_studies())
        ['own_motion_cpu']
    """
    return {path.stem: path for path in sorted((RECIPES / "studies").glob("*.toml")) if "pks4_" not in path.stem}


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: the one that is named, or else the one that comes with the package.

    Args:
        name: a TOML file, also at an address (https://, s3://, ...); or NAME, NAME.toml or recipes/NAME.toml of a
            packaged recipe, where no such file is here.

    Raises:
        ConfigError: there is neither, where the closest name is in the message; or the address is of another kind.

    Example:
        >>> find_recipe("own_videos_cpu").name, find_recipe("recipes/own_videos_cpu.toml").name
        ('own_videos_cpu.toml', 'own_videos_cpu.toml')
    """
    path, packaged = Path(name), packaged_recipes()
    if is_remote(name):
        return as_path(name)
    refuse_url(name, "Name a recipe's file.")
    if path.is_file():
        return path
    plain = path.parent in (Path("."), Path(RECIPES.name)) and path.suffix in ("", ".toml")
    if plain and path.stem in packaged:
        return packaged[path.stem]
    if RunFolder(path).recipe.is_file():
        raise ConfigError(
            f"{name} is the folder of a run. To continue it: kinescan train {name} --resume; for a new run with its "
            f"settings: kinescan train {RunFolder(path).recipe} --output ANOTHER"
        )
    if path.exists() and path.suffix == ".toml":
        # A folder or a pipe of that name: reading it says so.
        return path
    if path.is_dir():
        raise ConfigError(
            f"{str(name)!r} is a folder and no recipe. To train on videos in it: kinescan train own_videos_cpu --set "
            f"data.train={name}; to continue a run, name its own folder, and --resume."
        )
    beside = sorted(path.parent.glob("*.toml")) if path.parent.is_dir() else []
    there = f" Beside it: {', '.join(near.name for near in beside[:MOST_NAMED])}." if beside else ""
    raise ConfigError(
        f"recipe {str(name)!r}: no such file, and no recipe of that name comes with kinescan. "
        f"{closest(path.stem, packaged)}{there} `kinescan list recipes` shows all."
    )
