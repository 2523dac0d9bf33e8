from pathlib import Path
from typing import Annotated

import typer

from kinescan import studies
from kinescan.cli.options import AsJson, StudyOutput, settings_option
from kinescan.cli.output import print_json, reported
from kinescan.cli.own_modules import OwnModules, import_own_modules
from kinescan.cli.terminal import print_page, print_table, print_text
from kinescan.runtime.signals import Interruption

EXAMPLES = (
    "kinescan study study.toml --dry-run",
    "kinescan study runs/my_study",
    "kinescan study own_motion_cpu --set data.train=VIDEOS --set 'data.group=column person'",
)


@reported
def command(
    study: Annotated[
        Path, typer.Argument(help="A study's TOML file (docs/studies.md), the folder of one begun, or own_motion_cpu.")
    ],
    settings: Annotated[list[str], settings_option("Replace a setting of every run.")] = [],  # noqa: B006
    output: StudyOutput = None,
    processes: Annotated[int, typer.Option(help="Runs at a time, each on its part of the cores.", min=1)] = 1,
    any_code: Annotated[
        bool, typer.Option("--any-code", help="Count and continue runs that another commit made or began.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build every row and list the runs; train nothing.")
    ] = False,
    modules: OwnModules = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Run rows of settings times seeds times data; what is done is kept, and the same command continues."""
    import_own_modules(modules)
    if dry_run:
        loaded = studies.run.with_overrides(studies.load_study(study), settings)
        plan = studies.plan_study(loaded, output)
        rows = [(job.row, job.data, job.seed, job.num_training or "?", job.folder) for job in plan.jobs]
        if as_json:
            print_json([dict(zip(("row", "data", "seed", "num_training", "folder"), row, strict=True)) for row in rows])
        else:
            print_table(("row", "data", "seed", "to train on", "folder"), rows)
            print_text(studies.run.hints(plan))
        return
    # SIGTERM ends it as Ctrl-C does: with what is done kept
    with Interruption() as stop:
        stop.immediate = True
        result = studies.run_study(
            study, output=output, overrides=settings, processes=processes, any_code=any_code, modules=modules
        )
    if as_json:
        print_json(result.to_json())
    else:
        print_page(result.to_markdown())
