from collections.abc import Sequence
from dataclasses import dataclass, field

from kinescan.config import parse_overrides
from kinescan.data.video import Limits
from kinescan.settings import build_settings


@dataclass(frozen=True, kw_only=True)
class _Settings:
    data: Limits = field(default_factory=Limits)


def chosen_limits(overrides: Sequence[str]) -> Limits:
    """What one file may take, for verbs that have no recipe.

    Args:
        overrides: "data.max_pixels=..." and "data.timeout_seconds=...".

    Raises:
        ConfigError: another setting, or a value that makes no sense.

    Example:
        >>> chosen_limits(["data.max_pixels=1000000"])
        Limits(timeout_seconds=120.0, max_pixels=1000000)
    """
    return build_settings(_Settings, parse_overrides(overrides)).data
