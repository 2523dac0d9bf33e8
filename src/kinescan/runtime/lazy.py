"""Modules that find a name when it is asked for (PEP 562): those that load late, and old names of what was renamed."""

import importlib
import sys
import warnings
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


def old_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module that still gives what was renamed, and warns of deprecation.

    Args:
        module: its `__name__`.
        names: old name -> the name that it has now in that module.

    Returns:
        A function from a name to its value; it raises AttributeError for other names.

    Example:
        >>> import json, warnings
        >>> with warnings.catch_warnings(record=True, action="always") as told:
        ...     old_names("json", {"read": "loads"})("read") is json.loads
        True
        >>> print(told[0].message)
        json.read is deprecated. Use json.loads.
    """

    def load(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        text = f"{module}.{name} is deprecated. Use {module}.{names[name]}."
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], names[name])

    return load
