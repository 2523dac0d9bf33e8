"""Every key of a recipe as it was written down when kinescan was built: to be shown without loading torch.

`kinescan.runs.recipe_reference` reads the same from the classes of settings, and made recipe_keys.json of it.
"""

import json
from dataclasses import dataclass
from importlib.resources import files

KEYS_FILE = "recipe_keys.json"


@dataclass(frozen=True, kw_only=True)
class RecipeKey:
    """One key of a recipe.

    Attributes:
        key: dotted, as `--set` takes it.
        kind: the type of its value.
        default: its default as TOML shows it; empty where it has none.
        meaning: what it sets, with unit and range.
        models: for keys under model.options, the models that take it; empty for all others.
    """

    key: str
    kind: str
    default: str
    meaning: str
    models: tuple[str, ...] = ()


def stored_keys() -> tuple[RecipeKey, ...]:
    """Every key of a recipe, in the order of its tables; the options of kinescan's own models last.

    Example:
        >>> [key.default for key in stored_keys() if key.key == "data.held_out_ratio"]
        ['0.2']
    """
    entries = json.loads((files(__package__) / KEYS_FILE).read_text(encoding="utf-8"))
    return tuple(RecipeKey(**{**entry, "models": tuple(entry["models"])}) for entry in entries)
