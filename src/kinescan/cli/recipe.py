import sys
from typing import Annotated

import typer

from kinescan.cli.output import print_json, reported
from kinescan.config import find_recipe
from kinescan.runtime.files import read_text, read_toml

EXAMPLES = (
    "kinescan recipe own_videos_cpu > my.toml",
    "kinescan recipe ssv2_pks4_b16_8f --json",
    "kinescan recipe recipes/demo_motion_pks4.toml",
)


def recipe(name: str) -> str:
    """The text of a recipe, to copy and change.

    Args:
        name: of a recipe that comes with kinescan, or a TOML file.

    Raises:
        ConfigError: there is none of that name.
    """
    return read_text(find_recipe(name))


@reported
def command(
    name: Annotated[str, typer.Argument(help="A recipe that comes with kinescan, such as own_videos_cpu.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print its settings as JSON.")] = False,
) -> None:
    """Print a recipe, to copy and change."""
    if as_json:
        print_json(read_toml(find_recipe(name)))
    else:
        sys.stdout.write(recipe(name))
