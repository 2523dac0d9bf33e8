from typing import Any

from kinescan.runtime.files import read_text, read_toml
from kinescan.runtime.recipe_files import find_recipe


def recipe(name: str) -> str:
    """The text of a recipe, to copy and change.

    Args:
        name: of a recipe that comes with kinescan, or a TOML file.

    Raises:
        ConfigError: no such recipe is found.
    """
    return read_text(find_recipe(name))


def recipe_values(name: str) -> dict[str, Any]:
    """The settings that a recipe gives; those that it leaves out are not among them.

    Raises:
        ConfigError: no such recipe is found, or it is not TOML.
    """
    return read_toml(find_recipe(name))
