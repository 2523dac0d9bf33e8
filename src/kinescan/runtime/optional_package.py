"""The door to packages that not everyone has."""

import importlib
from typing import Any

from kinescan.errors import DependencyError


def optional_package(name: str, extra: str | None = "export") -> Any:
    """A package that not everyone has.

    Args:
        name: what is imported.
        extra: the kinescan extra that brings it; None where none does.

    Raises:
        DependencyError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        brought = name if extra is None else f"'kinescan[{extra}]'"
        raise DependencyError(f"this needs {name} ({error}). Install it with: pip install {brought}") from None
