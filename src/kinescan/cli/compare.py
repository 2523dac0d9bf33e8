from pathlib import Path
from typing import Annotated

import typer

from kinescan import studies
from kinescan.cli.options import AsJson
from kinescan.cli.output import print_json, reported
from kinescan.cli.terminal import print_page

EXAMPLES = (
    "kinescan compare runs/first runs/second runs/third",
    "kinescan compare runs/pks4-* runs/vit-* --output comparison",
    "kinescan compare runs/a runs/b --json",
)


@reported
def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished runs; the first is the base.")],
    output: Annotated[Path | None, typer.Option(help="Folder for the tables and the learning curves.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put runs side by side: those that differ in their seed alone are one row, with mean, spread and difference."""
    result = studies.compare_runs(runs, output=output)
    if as_json:
        print_json(result.to_json())
    else:
        print_page(result.to_markdown())
