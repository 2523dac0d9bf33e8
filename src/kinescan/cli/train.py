from pathlib import Path
from typing import Annotated

import typer

from kinescan import runs
from kinescan.cli.options import AsJson, settings_option
from kinescan.cli.output import print_json, reported
from kinescan.cli.own_modules import OwnModules, import_own_modules
from kinescan.cli.plan import show_plan
from kinescan.cli.terminal import print_page
from kinescan.runtime.launch import is_main_process

EXAMPLES = (
    "kinescan train recipes/own_videos_cpu.toml --set data.train=VIDEOS",
    "kinescan train recipes/ssv2_pks4_b16_8f.toml --set optim.lr=1e-3 --output runs/ssv2 --dry-run",
    "kinescan train recipes/own_videos_cpu.toml --set data.train=VIDEOS --resume",
)


@reported
def command(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="A recipe: a name (`kinescan list recipes`) or a TOML file; with --resume, also a run's folder."
        ),
    ],
    settings: Annotated[list[str], settings_option("Replace a setting, such as optim.lr=1e-3.")] = [],  # noqa: B006
    output: Annotated[
        Path | None, typer.Option(help="Folder of the run. By default the next free one under runs/.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run's last checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show recipe, parameter groups, memory and time; train nothing.")
    ] = False,
    modules: OwnModules = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model on labelled videos, as a recipe says."""
    import_own_modules(modules)
    if dry_run:
        show_plan(*runs.train.plan(recipe, overrides=settings), as_json=as_json)
        return
    result = runs.train.train(recipe, overrides=settings, output=output, resume=resume)
    if not is_main_process():
        return
    if as_json:
        print_json(result.to_json())
    else:
        print_page(result.report.to_markdown())
