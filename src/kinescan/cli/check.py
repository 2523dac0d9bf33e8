from pathlib import Path
from typing import Annotated

import typer

from kinescan import runs
from kinescan.cli.options import DataSet, LabelReader, RecipeSettings, Split, Workers, json_option
from kinescan.cli.output import FAILED, print_json, reported
from kinescan.cli.terminal import print_text
from kinescan.runtime.output_folder import prepare_output

EXAMPLES = (
    "kinescan data check VIDEOS --test OTHER_VIDEOS --workers 8",
    "kinescan data check data/ucf101 --reader ucf101 --split 2 --output reports/ucf101",
    "kinescan data check recipes/ssv2_pks4_b16_8f.toml --quick --json",
)


@reported
def command(
    source: DataSet,
    settings: RecipeSettings = [],  # noqa: B006
    test: Annotated[str | None, typer.Option(help="The same for evaluation, to find what lies on both sides.")] = None,
    reader: LabelReader = None,
    split: Split = None,
    workers: Workers = None,
    quick: Annotated[bool, typer.Option("--quick", help="Decode nothing: only look at structure and packets.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder for check.json and check.txt.")] = None,
    as_json: Annotated[bool, json_option("Print the report as JSON.")] = False,
) -> None:
    """Find broken, cut, missing and doubled videos; nothing is deleted. Exits with 1 where something was found."""
    folder = None if output is None else prepare_output(output)
    found = runs.check.check(
        source, test=test, reader=reader, split=split, overrides=settings, num_workers=workers, decode=not quick
    )
    # Printed first: the disk may be full by now.
    if as_json:
        print_json(found.to_json())
    else:
        print_text(found.to_text().splitlines())
    if folder is not None:
        runs.check.save(found, folder)
    if not found.is_sound():
        raise typer.Exit(FAILED)
