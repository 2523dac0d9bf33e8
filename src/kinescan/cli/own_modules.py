"""The option `--import MODULE` of the verbs that make or load models."""

from collections.abc import Sequence
from typing import Annotated

import typer

from kinescan.runtime.own_modules import import_own_module

IMPORT = "--import"
OwnModules = Annotated[
    list[str],
    typer.Option(
        IMPORT,
        metavar="MODULE",
        help="Import your module first, which registers a model (ks.register_model): my_module for my_module.py here. "
        "It runs its code.",
    ),
]


def import_own_modules(names: Sequence[str]) -> None:
    """Imports each module, in order.

    Raises:
        ConfigError: no such module is found, or its code fails.
    """
    for name in names:
        import_own_module(name)


def behind_the_verb(arguments: Sequence[str]) -> list[str]:
    """The same command line, with each `--import MODULE` that stands before the verb right behind it.

    Example:
        >>> behind_the_verb(["--import", "mine", "eval", "runs/a"])
        ['eval', '--import', 'mine', 'runs/a']
    """
    count = 0
    while count < len(arguments):
        if arguments[count] == IMPORT:
            count += 2
        elif arguments[count].startswith(f"{IMPORT}="):
            count += 1
        else:
            break
    return [*arguments[count : count + 1], *arguments[:count], *arguments[count + 1 :]]
