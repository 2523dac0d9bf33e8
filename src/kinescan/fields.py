"""What the fields of settings may hold: values of their types, finite, and no larger than makes sense."""

import dataclasses
import math
import types
import typing
from collections.abc import Hashable
from functools import cache
from typing import Any, cast

from kinescan.errors import ConfigError

MAX_COUNT = 2**31 - 1
"""Of anything that is counted and has no smaller limit of its own."""
MAX_TEXT = 2**12
"""Characters of a text in settings: no path is longer."""
MAX_SEED = 2**32 - 1
"""NumPy takes seeds of 32 bits."""


def check_types(settings: Any) -> None:
    """Passes a dataclass whose fields hold values of their types; for the start of its `__post_init__`.

    A whole number stands for any number, but neither truth values nor text do; lists stand for tuples. Numbers are
    finite and of at most 64 bits, and text holds no null character.

    Raises:
        ConfigError: a field holds something else; it is named with what it may hold.

    Example:
        >>> from kinescan.preprocessing import Preprocessing
        >>> Preprocessing(num_frames=True)
        Traceback (most recent call last):
        kinescan.errors.ConfigError: num_frames must be a whole number, got True.
    """
    for name, hint in _hints(cast(Hashable, type(settings))).items():
        value = getattr(settings, name)
        if not fits(value, hint):
            raise ConfigError(f"{name} must be {_describe(hint)}, got {_shown(value)}.")


def check_most(settings: Any, **most: float) -> None:
    """Passes a dataclass whose named fields are no larger than given; of tuples, each value; None passes.

    Raises:
        ConfigError: one is larger.
    """
    for name, limit in most.items():
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple | list) else [value]:
            if number is not None and number > limit:
                raise ConfigError(f"{name} must be at most {limit:g}, got {number!r}.")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as `check_types` has it.

    Example:
        >>> fits(3, float), fits(True, int), fits([1, 2], tuple[int, ...]), fits(math.inf, float | None)
        (True, False, True, False)
    """
    origin, inside = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, option) for option in inside)
    if origin is typing.Literal:
        return any(value == option and type(value) is type(option) for option in inside)
    if origin is int:
        return _is_number(value) and value == int(value) and not isinstance(value, float)
    if origin is float:
        return _is_number(value)
    if origin is str:
        return isinstance(value, str) and len(value) <= MAX_TEXT and "\0" not in value
    if origin is tuple:
        return isinstance(value, tuple | list) and _fits_tuple(value, inside)
    if origin in (list, dict):
        return isinstance(value, origin) and _fits_items(value, inside)
    return value is None if origin is type(None) else isinstance(value, origin)


def _is_number(value: Any) -> bool:
    # NumPy's numbers are registered so, too.
    if isinstance(value, bool) or not isinstance(value, typing.SupportsFloat) or isinstance(value, str | bytes):
        return False
    if isinstance(value, typing.SupportsIndex):
        return -(2**63) <= int(value) < 2**63
    return isinstance(value, float) and math.isfinite(value)


def _fits_tuple(value: Any, inside: tuple[Any, ...]) -> bool:
    if len(inside) == 2 and inside[1] is ...:
        return all(fits(item, inside[0]) for item in value)
    return not inside or (len(value) == len(inside) and all(map(fits, value, inside)))


def _fits_items(value: Any, inside: tuple[Any, ...]) -> bool:
    if not inside:
        return True
    if isinstance(value, dict):
        return all(fits(key, inside[0]) and fits(item, inside[1]) for key, item in value.items())
    return all(fits(item, inside[0]) for item in value)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _describe(hint: Any) -> str:
    origin, inside = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_describe, inside))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, inside))
    if origin is tuple:
        if len(inside) == 2 and inside[1] is ...:
            return f"a list whose items are each {_describe(inside[0])}"
        return f"a list of {len(inside)}, each {_describe(inside[0])}"
    text = f"text of at most {MAX_TEXT} characters, none of them null"
    words = {
        int: "a whole number",
        float: "a finite number",
        bool: "true or false",
        str: text,
        type(None): "None",
    }
    return words.get(origin, getattr(origin, "__name__", str(origin)))


def _shown(value: Any) -> str:
    # Python refuses to write out the longest numbers.
    if isinstance(value, int) and not -(10**80) < value < 10**80:
        return "a number of more than 80 digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
