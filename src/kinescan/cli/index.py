from typing import Annotated

import typer

from kinescan import runs
from kinescan.cli.options import DataSet, LabelReader, RecipeSettings, Split, Workers, json_option
from kinescan.cli.output import FAILED, print_json, reported
from kinescan.cli.terminal import print_text

EXAMPLES = (
    "kinescan data index VIDEOS --workers 8",
    "kinescan data index recipes/ssv2_pks4_b16_8f.toml",
    "kinescan data index labels.csv --set data.root=VIDEOS --json",
)


@reported
def command(
    source: DataSet,
    settings: RecipeSettings = [],  # noqa: B006
    test: Annotated[str | None, typer.Option(help="The same for evaluation.")] = None,
    reader: LabelReader = None,
    split: Split = None,
    workers: Workers = None,
    as_json: Annotated[bool, json_option("Print what was found as JSON.")] = False,
) -> None:
    """Keep the table of frames of each video, so that opening it later reads little. Exits with 1 for broken files."""
    found = runs.index.index(source, test=test, reader=reader, split=split, overrides=settings, num_workers=workers)
    if as_json:
        print_json(found.to_json())
    else:
        print_text(
            [
                f"{found.num_files} files in {found.seconds:.1f} s: the tables of {found.num_kept} are kept in "
                f"{found.folder}; {found.num_small} are too small to need one",
                *(f"not kept: {path}" for path in found.not_kept),
                *(f"unreadable: {path}: {reason}" for path, reason in found.unreadable.items()),
            ]
        )
    if found.unreadable or found.not_kept:
        raise typer.Exit(FAILED)
