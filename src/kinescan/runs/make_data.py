from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from kinescan.config import parse_overrides
from kinescan.data.synthetic import AppearanceConfig, MotionConfig, SyntheticReport, make_appearance, make_motion
from kinescan.settings import build_settings


def make(
    kind: Literal["motion", "appearance"], output: str | Path, *, overrides: Sequence[str] = (), **values: Any
) -> SyntheticReport:
    """Makes a data set of video files.

    Args:
        kind: "motion" (only the motion tells the class) or "appearance" (only the look does).
        output: folder, made if need be.
        overrides: "key=value" each, for fields of `MotionConfig` or `AppearanceConfig`; they replace `values`.
        **values: fields of `MotionConfig` or `AppearanceConfig`.

    Raises:
        ConfigError: a value is wrong, or the folder is not empty or cannot be written.
    """
    values |= parse_overrides(overrides)
    if kind == "motion":
        return make_motion(output, build_settings(MotionConfig, values))
    return make_appearance(output, build_settings(AppearanceConfig, values))
