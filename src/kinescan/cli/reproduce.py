from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import kinescan
from kinescan import studies
from kinescan.cli.options import StudyOutput, json_option, settings_option
from kinescan.cli.output import print_json, reported
from kinescan.cli.terminal import print_page, print_table, print_text
from kinescan.errors import ConfigError
from kinescan.runtime.signals import Interruption

if TYPE_CHECKING:
    from kinescan.studies.reproduce import Reproduction

EXAMPLES = (
    "kinescan reproduce table9 --plan",
    "kinescan reproduce table9 --seeds 0 --only TokenT1D",
    "kinescan reproduce table5 --data ssv2 --set data.train=data/ssv2",
)


@reported
def command(
    table: Annotated[str, typer.Argument(help="table1 to table9 of the PKS4 paper.")],
    data: Annotated[
        Literal["ssv2", "k400"] | None,
        typer.Option(help="Run at the paper's size on this data set (table4: k400, all others: ssv2)."),
    ] = None,
    scale: Annotated[
        Literal["demo", "paper"] | None,
        typer.Option(help="demo: small models on synthetic data, the default without --data."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FOLDER", help="demo: windows over the videos and pictures of this folder."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of the runs, such as 0,1,2; by default those of the study.")] = "",
    only: Annotated[list[str], typer.Option(help="Run this row; may be given several times.")] = [],  # noqa: B006
    plan: Annotated[
        bool, typer.Option("--plan", help="Show rows, runs and costs; needs no data, runs nothing.")
    ] = False,
    output: StudyOutput = None,
    processes: Annotated[int, typer.Option(help="Runs at a time, each on its part of the cores.", min=1)] = 1,
    any_code: Annotated[
        bool, typer.Option("--any-code", hidden=True, help="Count and continue runs that another commit made or began.")
    ] = False,
    settings: Annotated[
        list[str],
        settings_option("Setting of every run; make.KEY: of synthetic data."),
    ] = [],  # noqa: B006
    as_json: Annotated[bool, json_option("Print everything as JSON.")] = False,
) -> None:
    """Run the rows of a table of the PKS4 paper, and show scores and costs beside the paper's; again, it continues."""
    asked: dict[str, Any] = {
        "scale": _scale(table, data, scale),
        "source": source,
        "seeds": _seeds(seeds),
        "only": only,
        "overrides": settings,
    }
    if plan:
        found = studies.reproduce.plan_reproduction(table, **asked)
    else:
        # SIGTERM ends it as Ctrl-C does: with what is done kept
        with Interruption() as stop:
            stop.immediate = True
            found = studies.reproduce.reproduce(table, output=output, processes=processes, any_code=any_code, **asked)
    if as_json:
        print_json(found.to_json())
        return
    print_page(found.to_markdown())
    if plan:
        _print_runs(found)


def _scale(table: str, data: str | None, scale: str | None) -> str:
    """At which scale the table is run."""
    if data is None:
        return scale or "demo"
    wanted = studies.paper.data_of(table)
    if scale == "demo":
        raise ConfigError("--scale demo makes its own data. Leave --data out, or take --scale paper.")
    if data != wanted:
        raise ConfigError(f"{table} of the paper is on {wanted}, got --data {data}. Give --data {wanted}.")
    return "paper"


def _seeds(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(f"--seeds takes whole numbers with commas between them, such as 0,1,2, got {text!r}.")
    return tuple(int(part) for part in parts)


def _print_runs(found: "Reproduction") -> None:
    """What would run."""
    study = found.study
    print_text(("", f"{len(study.rows) * len(study.seeds)} runs, seeds {', '.join(map(str, study.seeds))}:"))
    rows = []
    for row in study.rows:
        config = studies.costs.row_config(study, row)
        flat = kinescan.config.flat_settings(row.settings)
        told = ", ".join(f"{key.removeprefix('model.options.')} = {value}" for key, value in flat.items())
        rows.append((row.name, config.model.name, f"{config.preprocessing.num_frames}", config.optim.epochs, told))
    print_table(("row", "model", "frames", "epochs", "settings"), rows)
