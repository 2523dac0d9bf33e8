from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from kinescan.config import parse_overrides
from kinescan.data.synthetic import (
    AppearanceConfig,
    EventsConfig,
    MotionConfig,
    SyntheticReport,
    make_appearance,
    make_events,
    make_motion,
)
from kinescan.settings import build_settings

_MAKERS: dict[str, tuple[Any, Callable[[str | Path, Any], SyntheticReport]]] = {
    "motion": (MotionConfig, make_motion),
    "appearance": (AppearanceConfig, make_appearance),
    "events": (EventsConfig, make_events),
}


def make(
    kind: Literal["motion", "appearance", "events"],
    output: str | Path,
    *,
    overrides: Sequence[str] = (),
    **values: Any,
) -> SyntheticReport:
    """Makes a data set of video files.

    Args:
        kind: "motion" (only the motion tells the class), "appearance" (only the look does) or "events" (long videos in
            which something happens from time to time).
        output: folder, made if need be.
        overrides: "key=value" each, for fields of `MotionConfig`, `AppearanceConfig` or `EventsConfig`; they replace
            `values`.
        **values: fields of the same.

    Raises:
        ConfigError: a value is wrong, or the folder is not empty or cannot be written.
    """
    config, maker = _MAKERS[kind]
    return maker(output, build_settings(config, values | parse_overrides(overrides)))
