"""Turns plain mappings (TOML tables, JSON, keyword arguments) into the parts' frozen dataclasses, and back."""

import dataclasses
import difflib
import functools
import inspect
import json
import re
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, ParamSpec, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from kinescan.errors import ConfigError

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MOST_SHOWN = 200
OLD_NAMES = {"recompute": "activation_checkpointing", "taps": "kernel_size"}
"""Earlier names of settings, which are still accepted, and what they are called now."""


def build_settings(cls: type[T], values: Mapping[str, Any], *, where: str = "") -> T:
    """An instance of the dataclass `cls` with `values`, checked against its field types; the rest are defaults.

    Args:
        cls: a dataclass; its fields may be dataclasses themselves.
        values: field name -> plain value; nested mappings for nested dataclasses.
        where: dotted key of `cls` in the recipe, named in errors.

    Returns:
        The instance; its own `__post_init__` has checked ranges.

    Raises:
        ConfigError: a key is unknown (the closest is named), a value has the wrong type, or a check of `cls` failed.

    Example:
        >>> from kinescan.preprocessing import Preprocessing
        >>> build_settings(Preprocessing, {"num_frames": 16}).num_frames
        16
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or cls.__name__} must be a table of settings, got {type(values).__name__}.")
    values = current_names(cls, values)
    _refuse_unknown_keys(cls, values, where)
    try:
        text = json.dumps(values, default=_plain)
    except (ValueError, RecursionError, TypeError) as error:
        raise ConfigError(f"{where or cls.__name__} holds a value that no setting can have ({error}).") from None
    try:
        built: T = _adapter(cast(Any, cls)).validate_json(text, strict=True)
        return built
    except ValidationError as error:
        raise ConfigError(_first_problem(error, cls, where)) from None


def to_plain(settings: Any) -> dict[str, Any]:
    """The fields of a settings dataclass as JSON-like values (tuples become lists); None fields are kept.

    Example:
        >>> from kinescan.preprocessing import Preprocessing
        >>> to_plain(Preprocessing())["mean"]
        [0.48145466, 0.4578275, 0.40821073]
    """
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings), default=_plain))
    return plain


def accept_old_names(cls: type[T]) -> type[T]:
    """A class decorator, above @dataclass: the constructor takes `OLD_NAMES` of the fields, and they can be read.

    Both warn of deprecation. `dataclasses.replace` takes them, too: an old name wins over the value that is copied.
    Dataclasses that are derived from `cls` take them as well, without the decorator.
    """
    _take_old_names(cls, _old_names_of(cls))

    def __new__(kind: type[Any], *args: Any, **values: Any) -> Any:
        # @dataclass gives a derived class its constructor once the class is made: this is the first chance to wrap it.
        owner = next(base for base in kind.__mro__ if "__dataclass_fields__" in vars(base))
        if not hasattr(vars(owner).get("__init__"), "__wrapped__"):
            _take_old_names(owner, _old_names_of(owner))
        return object.__new__(kind)

    cls.__new__ = __new__  # type: ignore[method-assign, assignment]
    cls.__signature__ = _ConstructorSignature()  # type: ignore[attr-defined]
    return cls


def renamed(**old_names: str) -> Callable[[type[T]], type[T]]:
    """A class decorator, above @dataclass: as `accept_old_names`, for the old names of one class alone.

    Args:
        **old_names: old name of a field -> its name now.

    Example:
        >>> from kinescan.data import Batch
        >>> "places" in vars(Batch), "places" in Batch.__dataclass_fields__
        (True, False)
    """

    def take(cls: type[T]) -> type[T]:
        _take_old_names(cls, old_names)
        return cls

    return take


def renamed_parameters(**old_names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator of a function or method: it takes parameters by their old names, too, and warns of deprecation.

    Args:
        **old_names: old name of a parameter -> its name now.

    Raises:
        TypeError: (by the function) a parameter is given by both names.
    """

    def take(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def taking(*args: P.args, **values: P.kwargs) -> R:
            for old in old_names.keys() & values.keys():
                new = old_names[old]
                if new in values:
                    raise TypeError(f"{function.__name__}() got {new} and its old name, {old}. Give {new} alone.")
                text = f"{function.__name__}({old}=...) is deprecated. Use {new}=."
                warnings.warn(text, DeprecationWarning, stacklevel=2)
                values[new] = values.pop(old)
            return function(*args, **values)

        taking.old_parameters = tuple(old_names)  # type: ignore[attr-defined]
        return taking

    return take


def old_name(old: str, new: str) -> Any:
    """A property that reads and sets the attribute `new`, and warns of deprecation."""

    def read(self: Any) -> Any:
        _warn(type(self), old, new, stacklevel=3)
        return getattr(self, new)

    def write(self: Any, value: Any) -> None:
        _warn(type(self), old, new, stacklevel=3)
        setattr(self, new, value)

    return property(read, write, doc=f"The old name of `{new}`; deprecated.")


class _ConstructorSignature:
    """`__signature__` of a class whose constructor takes old names: what `help` shows are the fields."""

    def __get__(self, instance: Any, owner: type[Any]) -> inspect.Signature:
        signature = inspect.signature(owner.__init__)
        return signature.replace(parameters=list(signature.parameters.values())[1:])


def _take_old_names(cls: type[Any], old_names: Mapping[str, str]) -> None:
    made = cls.__init__

    @functools.wraps(made)
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        for old in old_names.keys() & values.keys():
            _warn(cls, old, old_names[old], stacklevel=3)
            values[old_names[old]] = values.pop(old)
        made(self, *args, **values)

    cls.__init__ = __init__
    for old, new in old_names.items():
        setattr(cls, old, old_name(old, new))


def current_names(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by the names that the fields of the dataclass `cls` have now.

    Raises:
        ConfigError: a field is given by both names, with different values.

    Example:
        >>> from kinescan.models import PKS4Config
        >>> current_names(PKS4Config, {"recompute": True})
        {'activation_checkpointing': True}
    """
    current = dict(values)
    for old, new in _old_names_of(cls).items():
        if old not in current:
            continue
        value = current.pop(old)
        if current.setdefault(new, value) != value:
            raise ConfigError(
                f"{old} is the old name of {new}: both are given, with different values. Leave {old} out."
            )
    return current


def other_names(name: str) -> set[str]:
    """The other names of a setting.

    Example:
        >>> other_names("recompute"), other_names("activation_checkpointing"), other_names("depth")
        ({'activation_checkpointing'}, {'recompute'}, set())
    """
    return {old for old, new in OLD_NAMES.items() if new == name} | {
        new for old, new in OLD_NAMES.items() if old == name
    }


def _old_names_of(cls: type[Any]) -> dict[str, str]:
    fields = {field.name for field in dataclasses.fields(cls)}
    return {old: new for old, new in OLD_NAMES.items() if new in fields and old not in fields}


def _warn(cls: type[Any], old: str, new: str, *, stacklevel: int) -> None:
    text = f"{cls.__name__}.{old} is deprecated. Use {new}."
    warnings.warn(text, DeprecationWarning, stacklevel=stacklevel)


_OTHER_WORDS = {"gpu": "cuda", "nvidia": "cuda", "bfloat16": "bf16", "float32": "no", "fp32": "no", "none": "no"}
"""What a setting's value is called elsewhere, though other letters are closer."""


def closest(word: str, allowed: Iterable[str]) -> str:
    """A hint for an error message: the closest allowed word, or all of them."""
    allowed = sorted(allowed)
    near = _nearest(word, allowed)
    return f"Did you mean {near!r}?" if near else f"Allowed: {', '.join(allowed)}."


def _nearest(word: str, allowed: Sequence[str]) -> str | None:
    other = _OTHER_WORDS.get(word.lower())
    if other in allowed:
        return other
    return next(iter(difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)), None)


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    if not hasattr(cls, "__pydantic_config__"):
        cls.__pydantic_config__ = ConfigDict(extra="forbid")
    return TypeAdapter(cls)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    return str(value)


def _refuse_unknown_keys(cls: Any, values: Mapping[str, Any], where: str) -> None:
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        dotted = f"{where}.{key}" if where else key
        if key not in hints:
            raise ConfigError(f"unknown key {dotted!r}. {closest(key, hints)}")
        if isinstance(value, str) and _SURROGATE.search(value):
            shown = value.encode("utf-8", "backslashreplace").decode()
            raise ConfigError(
                f"{dotted} holds bytes that are not UTF-8, which a recipe cannot hold: {shown!r}. Rename the file or "
                "folder, or give a link to it."
            )
        nested = _dataclass_in(hints[key])
        if nested is not None and isinstance(value, Mapping):
            _refuse_unknown_keys(nested, value, dotted)
        named = _dataclass_by_name(hints[key])
        if named is not None and isinstance(value, Mapping):
            for name, entry in value.items():
                if isinstance(entry, Mapping):
                    _refuse_unknown_keys(named, entry, f"{dotted}.{name}")


def _dataclass_in(hint: Any) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)


def _dataclass_by_name(hint: Any) -> Any:
    """Of a table whose keys are free and whose values are all of one dataclass."""
    if typing.get_origin(hint) is not dict:
        return None
    return _dataclass_in(typing.get_args(hint)[1])


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _first_problem(error: ValidationError, cls: Any, where: str) -> str:
    problem = error.errors()[0]
    parts = [where] if where else []
    dotted = ".".join(parts + [str(part) for part in problem["loc"]])
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        for part in problem["loc"]:
            cls = _dataclass_in(typing.get_type_hints(cls).get(str(part))) if dataclasses.is_dataclass(cls) else None
        if dotted and dataclasses.is_dataclass(cls) and str(cause).split(" ")[0] in typing.get_type_hints(cls):
            return f"{dotted}.{cause}"
        return f"{dotted}: {cause}" if dotted else str(cause)
    given = _shown(problem["input"])
    hint = ""
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        allowed = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        near = _nearest(problem["input"].lower(), allowed)
        hint = f" Did you mean {near!r}?" if near else ""
    return f"{dotted}: {problem['msg'].lower()}, got {given}.{hint}"
