"""Tables of settings among `--set NAME.KEY=VALUE`."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from kinescan.config import parse_overrides
from kinescan.errors import ConfigError
from kinescan.settings import build_settings

T = TypeVar("T")


def take_table(name: str, kind: type[T], overrides: Sequence[str]) -> tuple[T, list[str]]:
    """The settings of one table, and the overrides that belong to others.

    Raises:
        ConfigError: a setting is unknown, or its value makes no sense.
    """
    own = [text for text in overrides if text.split("=")[0].split(".")[0].strip() == name]
    values = parse_overrides(own).get(name, {})
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name} is a table of settings: give --set {name}.NAME=VALUE.")
    return build_settings(kind, values, where=name), [text for text in overrides if text not in own]
