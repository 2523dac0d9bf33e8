"""Packages whose names are loaded when they are first used, so that a short command starts quickly (PEP 562)."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, Sequence[str]], submodules: Sequence[str] = ()
) -> Callable[[str], Any]:
    """The `__getattr__` of a package that loads each of its names from the module that holds it.

    Args:
        package: the package's `__name__`.
        modules: module -> the names that are taken from it. A module below the package is reachable by its own name
            too.
        submodules: further modules below the package.

    Returns:
        A function from a name to its value; it raises AttributeError for other names.

    Example:
        >>> get = lazy_names("json", {"json.decoder": ["JSONDecoder"]})
        >>> get("JSONDecoder").__name__, get("decoder").__name__
        ('JSONDecoder', 'json.decoder')
    """
    below = f"{package}."
    homes = {name: module for module, names in modules.items() for name in names}
    inner = {module.removeprefix(below).partition(".")[0] for module in modules if module.startswith(below)}
    known = (inner | set(submodules)) - set(homes)

    def load(name: str) -> Any:
        if name in homes:
            return getattr(importlib.import_module(homes[name]), name)
        if name in known:
            return importlib.import_module(below + name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load
