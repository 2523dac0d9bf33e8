"""Videos that belong together, such as cuts of one recording or all videos of one person."""

import re
from collections.abc import Callable

from kinescan.errors import ConfigError

_COLUMN = "column "


def column_of(group: str) -> str:
    r"""The column of a list that `data.group` names; empty where it is a pattern, or nothing.

    Example:
        >>> column_of("column person"), column_of(r"P(\d+)")
        ('person', '')
    """
    return group.removeprefix(_COLUMN).strip() if group.startswith(_COLUMN) else ""


def check_group(group: str) -> None:
    """Passes what `data.group` may be: nothing, "column NAME", or a regular expression with one group.

    Raises:
        ConfigError: it is something else.
    """
    if group.startswith(_COLUMN):
        if not column_of(group):
            raise ConfigError('group must name the column behind "column ", as in "column person".')
        return
    if group:
        _compile(group)


def make_grouping(group: str) -> Callable[[str], str]:
    r"""Gives the group of a video by its id, for a pattern; of anything else the group is empty.

    Raises:
        ConfigError: the pattern is none; or, when called, it fits nowhere in an id.

    Example:
        >>> make_grouping(r"(P\d+)_")("cam1/P03_tea.avi")
        'P03'
    """
    if not group or column_of(group):
        return lambda video_id: ""
    pattern = _compile(group)

    def find(video_id: str) -> str:
        match = pattern.search(video_id)
        if match is None or not match[1]:
            raise ConfigError(
                f"data.group {group!r} finds no group in {video_id!r}. Write a pattern that fits every path, with the "
                'group in parentheses, or "column NAME" for a column of the list.'
            )
        return match[1]

    return find


def _compile(group: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(group)
    except re.error as problem:
        raise ConfigError(
            f"group {group!r} is not a regular expression ({problem}). Write one such as '(P[0-9]+)_'."
        ) from None
    if pattern.groups != 1:
        raise ConfigError(
            f"group {group!r} has {pattern.groups} groups in parentheses; exactly one is needed, as in '(P[0-9]+)_'. "
            'For a column of a list write "column NAME".'
        )
    return pattern
