from pathlib import Path
from typing import Annotated

import typer

from kinescan import runs
from kinescan.cli.options import AsJson, settings_option
from kinescan.cli.output import print_json, reported
from kinescan.cli.own_modules import OwnModules, import_own_modules
from kinescan.cli.terminal import print_page, print_table
from kinescan.runtime.launch import is_main_process

EXAMPLES = (
    "kinescan cross-validate recipes/own_videos_cpu.toml --folds 5 --set data.train=VIDEOS",
    "kinescan cross-validate RECIPE --set 'data.group=column person' --set data.validation_ratio=0.2",
    "kinescan cross-validate runs/own_videos_cpu-folds --resume",
)


@reported
def command(
    recipe: Annotated[
        Path, typer.Argument(help="A recipe, as for train; with --resume, also the folder of a cross-validation.")
    ],
    folds: Annotated[
        int | None, typer.Option(help="How many parts the videos are divided into. By default data.folds, or 5.")
    ] = None,
    settings: Annotated[list[str], settings_option("Replace a setting, such as data.group.")] = [],  # noqa: B006
    output: Annotated[
        Path | None, typer.Option(help="Folder of all runs. By default the next free runs/NAME-folds.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue: folds that are done stay as they are.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what each fold holds out; train nothing.")] = False,
    modules: OwnModules = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Train a recipe once for each fold of its videos, held out in turn; mean and standard deviation at the end."""
    import_own_modules(modules)
    if dry_run:
        found = runs.cross_validate.plan_folds(recipe, folds=folds, overrides=settings)
    else:
        found = runs.cross_validate.cross_validate(
            recipe, folds=folds, overrides=settings, output=output, resume=resume
        )
    if not is_main_process():
        return
    if as_json:
        print_json(found.to_json())
    elif dry_run:
        header = ("fold", "to train on", "to choose on", "held out", "held-out groups")
        rows = [
            (fold.number, fold.num_training, fold.num_validation, fold.num_held_out, ", ".join(fold.groups))
            for fold in found.folds
        ]
        print_table(header, rows)
    else:
        print_page(found.to_markdown())
