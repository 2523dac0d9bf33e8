from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from kinescan.config import parse_overrides
from kinescan.data.synthetic import (
    AppearanceConfig,
    EventsConfig,
    MotionConfig,
    SyntheticReport,
    WindowConfig,
    level_settings,
    make_appearance,
    make_events,
    make_motion,
    make_windows,
)
from kinescan.errors import ConfigError
from kinescan.settings import build_settings, closest

_MAKERS: dict[str, tuple[Any, Callable[[str | Path, Any], SyntheticReport]]] = {
    "motion": (MotionConfig, make_motion),
    "appearance": (AppearanceConfig, make_appearance),
    "events": (EventsConfig, make_events),
}
_OVER_FILES = (WindowConfig, make_windows)
"""What makes "motion" where the pixels come from a folder."""


def make(
    kind: Literal["motion", "appearance", "events"],
    output: str | Path,
    *,
    source: str | Path | None = None,
    level: int | None = None,
    overrides: Sequence[str] = (),
    **values: Any,
) -> SyntheticReport:
    """Makes a data set of video files.

    Args:
        kind: "motion" (only the motion tells the class), "appearance" (only the look does) or "events" (long videos in
            which something happens from time to time).
        output: folder, made if need be.
        source: folder of videos and pictures over which windows move, of "motion"; None: rendered objects.
        level: of difficulty, of "motion": an index into `MOTION_LEVELS`; `values` and `overrides` replace its settings.
        overrides: "key=value" each, for fields of `MotionConfig` (with `source` of `WindowConfig`), `AppearanceConfig`
            or `EventsConfig`; they replace `values`.
        **values: fields of the same.

    Raises:
        ConfigError: a value is wrong, the folder is not empty or cannot be written, or there are too few sources.
    """
    config, maker = _resolved(kind, source=source, level=level, overrides=overrides, values=values)
    return maker(output, config)


def check_made(kind: Literal["motion", "appearance", "events"], values: Mapping[str, Any]) -> None:
    """Passes what `make` takes by name; nothing is written, and no source is looked at.

    Raises:
        ConfigError: a name is unknown, or a value is wrong.
    """
    source, level = values.get("source"), values.get("level")
    known = _config_of(kind, source).__dataclass_fields__.keys() | {"source", "level"}
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown key {key!r}. {closest(key, sorted(known))}")
    rest = {key: value for key, value in values.items() if key not in ("source", "level")}
    _resolved(kind, source=source, level=level, overrides=(), values=rest)


def _config_of(kind: str, source: str | Path | None) -> Any:
    return (_OVER_FILES if source is not None and kind == "motion" else _MAKERS[kind])[0]


def _resolved(
    kind: str, *, source: str | Path | None, level: int | None, overrides: Sequence[str], values: Mapping[str, Any]
) -> tuple[Any, Callable[[str | Path, Any], SyntheticReport]]:
    """The settings of what is made, and what makes it."""
    values = dict(values)
    if kind != "motion" and (source is not None or level is not None):
        option = "--from" if source is not None else "--level"
        raise ConfigError(f"{option} is of the kind motion only, and the kind is {kind}. Leave it out.")
    config, maker = _MAKERS[kind]
    if source is not None:
        config, maker = _OVER_FILES
        values |= {"source": str(source)}
    if level is not None:
        values = level_settings(level, config) | values
    return build_settings(config, values | parse_overrides(overrides)), maker
