import dataclasses
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from kinescan.config import RunConfig
from kinescan.models.registry import known_models
from kinescan.runs.recipe_keys import RecipeKey
from kinescan.runtime.escaping import escape_markdown

_ATTRIBUTE = re.compile(r"^(\w+): (.*)$")
PAGE_HEAD = """# Settings: every key of a recipe

A recipe is a TOML file; each key here is a key there, and `--set KEY=VALUE` replaces one. A key that is absent has its
default. `kinescan list settings` prints the same; this page is made by `kinescan list settings --markdown`.
"""


def recipe_keys() -> tuple[RecipeKey, ...]:
    """Every key of a recipe, in the order of its tables; the options of models last, registered ones among them.

    Example:
        >>> [key.default for key in recipe_keys() if key.key == "data.held_out_ratio"]
        ['0.2']
    """
    return (*_keys(RunConfig, ""), *_model_options())


def keys_file() -> str:
    """The text of recipe_keys.json: the keys, one a line."""
    return "[\n" + ",\n".join(json.dumps(dataclasses.asdict(key)) for key in recipe_keys()) + "\n]\n"


def reference_page() -> str:
    """The keys as a Markdown page, one table for each table of a recipe."""
    parts, heading = [PAGE_HEAD], None
    for key in recipe_keys():
        table = "options of " + _families(key.models) if key.models else key.key.rpartition(".")[0] or "run"
        if table != heading:
            parts.append(f"\n## {table}\n\n| key | type | default | meaning |\n|---|---|---|---|\n")
            heading = table
        cells = (f"`{key.key}`", escape_markdown(key.kind), f"`{key.default}`" if key.default else "", key.meaning)
        parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def _keys(cls: type[Any], prefix: str, models: tuple[str, ...] = ()) -> Iterator[RecipeKey]:
    hints, meanings = typing.get_type_hints(cls), _meanings(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _keys(hint, f"{prefix}{field.name}.")
            continue
        if hint == dict[str, Any] and prefix == "model.":
            continue
        yield RecipeKey(
            key=f"{prefix}{field.name}",
            kind=_kind(hint),
            default=_default(field),
            meaning=meanings.get(field.name, ""),
            models=models,
        )


def _model_options() -> Iterator[RecipeKey]:
    """Fields of the models' own configs: each config once, with the models that have it."""
    by_config: dict[type[Any], list[str]] = {}
    for name, architecture in known_models().items():
        by_config.setdefault(architecture.model.config_class, []).append(name)
    for cls, names in by_config.items():
        yield from _keys(cls, "model.options.", tuple(names))


def _families(models: Sequence[str]) -> str:
    return ", ".join(models)


def _meanings(cls: type[Any]) -> dict[str, str]:
    """What the docstrings of a class and of those before it say of each attribute."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        lines = (inspect.cleandoc(base.__doc__ or "")).splitlines()
        if "Attributes:" not in lines:
            continue
        name = ""
        for line in lines[lines.index("Attributes:") + 1 :]:
            if line and not line.startswith(" "):
                break
            match = _ATTRIBUTE.match(line[4:]) if not line.startswith("     ") else None
            if match:
                name = match[1]
                found[name] = match[2]
            elif name and line.strip():
                found[name] += " " + line.strip()
    return found


def _kind(hint: Any) -> str:
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    if hint in names:
        return names[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(json.dumps(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(argument) for argument in arguments if argument is not type(None))
    if origin in (tuple, list):
        return f"list of {_kind(arguments[0])}" if arguments else "list"
    if origin is dict or typing.get_origin(origin) is dict:
        return f"table of {_kind(arguments[1])}"
    if origin is not None and issubclass(origin, typing.Mapping):
        return f"table of {_kind(arguments[1])}"
    return getattr(hint, "__name__", str(hint))


def _default(field: "dataclasses.Field[Any]") -> str:
    made = field.default_factory
    value = field.default if made is dataclasses.MISSING else made()
    if value is dataclasses.MISSING or value is None:
        return ""
    return json.dumps(value, default=list)


if __name__ == "__main__":
    sys.stdout.write(keys_file())
