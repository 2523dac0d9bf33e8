from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import kinescan
from kinescan import runs
from kinescan.cli.options import json_option
from kinescan.cli.output import FAILED, print_json, reported
from kinescan.cli.terminal import print_table

EXAMPLES = (
    "kinescan bench --quick",
    "kinescan bench ops_selective_scan pks4_over_vit --output my_results",
    "kinescan bench --list",
)


@reported
def command(
    names: Annotated[list[str] | None, typer.Argument(help="Benchmarks; by default all that are not too long.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes, to see that all runs; in three minutes.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results. By default benchmarks/results of the checkout.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Say what there is, and run nothing.")] = False,
    as_json: Annotated[bool, json_option("Print what became of each as JSON.")] = False,
) -> None:
    """Measure speed and memory again, side by side with the peers, and write the page of the results."""
    if listed:
        _print_suite(as_json=as_json)
        return
    done, page = runs.bench.bench(names or (), quick=quick, output=output)
    if as_json:
        print_json({"page": str(page), "benchmarks": [asdict(run) for run in done]})
    else:
        print_table(
            ("benchmark", "seconds", "result"),
            [(run.name, run.seconds or "", run.problem or ", ".join(map(_short, run.results))) for run in done],
        )
        print(f"\npage: {page}")
    if any(run.failed for run in done):
        raise typer.Exit(FAILED)


def _print_suite(*, as_json: bool) -> None:
    suite = runs.bench.read_suite(runs.bench.find_checkout(Path(kinescan.__file__)))
    if as_json:
        print_json({name: {**asdict(entry), "missing": entry.missing()} for name, entry in suite.items()})
        return
    rows = [
        (
            name,
            f"{entry.minutes:g} min",
            "" if entry.quick is None else "quick",
            f"{entry.says}{' (only by name)' if entry.by_name else ''}",
        )
        for name, entry in suite.items()
    ]
    print_table(("benchmark", "about", "", "what"), rows)


def _short(path: str) -> str:
    return Path(path).name
