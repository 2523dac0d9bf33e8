"""Modules of the user's own that are imported by name: `--import my_module`, `[model] module = "my_module"`."""

import importlib
import os
import sys
import traceback
from pathlib import Path

from kinescan.errors import ConfigError, KinescanError

_MOST_LETTERS = 200
_imported_by: dict[str, str] = {}
"""Module that became known -> the one that was asked for, which imported it."""


def import_own_module(name: str) -> None:
    """Imports a module that is installed or lies in the working folder, which is searched first, as by `python -m`.

    It runs the module's code. Give only a name that the user typed, or that is in a recipe that the user named;
    never one that was read from a model's or a run's folder.

    Args:
        name: as in Python's `import`: my_module for my_module.py, my_package.my_module.

    Raises:
        ConfigError: no module has that name, the name belongs to another one, or its code fails.
    """
    if not is_module_name(name) or name.endswith(".py"):
        meant = name.removesuffix(".py").replace(os.sep, ".").strip(".")
        hint = f" Did you mean {meant}?" if is_module_name(meant) else ""
        raise ConfigError(f"{name!r} is not the name of a module. Give my_module for the file my_module.py.{hint}")
    folder = os.getcwd()
    if folder not in {os.path.abspath(entry) for entry in sys.path[:1]}:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    before = set(sys.modules)
    try:
        module = importlib.import_module(name)
    except KinescanError as error:
        raise ConfigError(f"module {name}: {error}") from error
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"module {name} needs {error.name}, which is not installed here.") from error
        raise ConfigError(
            f"no module {error.name!r} in {folder}, and none is installed. Run the command in the folder of "
            f"{error.name}.py, or install the package that holds it."
        ) from error
    # The code is the user's: whatever it raises is reported with file and line.
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        where_raised = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        raise ConfigError(
            f"module {name} cannot be imported: {type(error).__name__}: {error}{where_raised}."
        ) from error
    _refuse_another_of_its_name(name, Path(folder), getattr(module, "__file__", None))
    for found in set(sys.modules) - before:
        _imported_by.setdefault(found, name)


def module_of(cls: type) -> str | None:
    """Which module to import to have a class; None for classes of kinescan and of the program itself.

    Example:
        >>> from kinescan.errors import ConfigError
        >>> module_of(ConfigError) is None
        True
    """
    module = cls.__module__
    if module in ("__main__", "builtins") or module.partition(".")[0] == __name__.partition(".")[0]:
        return None
    return _imported_by.get(module, module)


def is_module_name(text: str) -> bool:
    """Whether a text can be the name of a module: identifiers with points between them.

    Example:
        >>> is_module_name("my_package.scanner"), is_module_name("scanner.py; rm"), is_module_name("")
        (True, False, False)
    """
    return len(text) <= _MOST_LETTERS and text.isascii() and all(part.isidentifier() for part in text.split("."))


def _refuse_another_of_its_name(name: str, folder: Path, file: str | None) -> None:
    """A file here that is called like a module that Python had imported already would be left out without a word."""
    base = folder.joinpath(*name.split("."))
    own = next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)
    if own is not None and (file is None or not own.samefile(file)):
        raise ConfigError(f"the name {name} belongs to {file or 'a module of Python'}, not to {own}. Rename your file.")
