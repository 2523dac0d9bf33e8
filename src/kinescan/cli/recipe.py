import sys
from typing import Annotated

import typer

from kinescan import runs
from kinescan.cli.options import json_option
from kinescan.cli.output import print_json, reported

EXAMPLES = (
    "kinescan recipe own_videos_cpu > my.toml",
    "kinescan recipe ssv2_pks4_b16_8f --json",
    "kinescan recipe recipes/demo_motion_pks4.toml",
)


@reported
def command(
    name: Annotated[str, typer.Argument(help="A recipe that comes with kinescan, such as own_videos_cpu.")],
    as_json: Annotated[bool, json_option("Print its settings as JSON.")] = False,
) -> None:
    """Print a recipe, to copy and change."""
    if as_json:
        print_json(runs.recipe.recipe_values(name))
    else:
        sys.stdout.write(runs.recipe.recipe(name))
