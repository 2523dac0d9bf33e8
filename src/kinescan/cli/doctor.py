from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from kinescan import runs
from kinescan.cli.options import json_option
from kinescan.cli.output import FAILED, print_json, reported
from kinescan.cli.terminal import print_table, print_text

if TYPE_CHECKING:
    from kinescan.runs.doctor import Diagnosis

EXAMPLES = (
    "kinescan doctor",
    "kinescan doctor --json > doctor.json",
    "kinescan doctor --json | grep -A3 problem",
)


@reported
def command(
    as_json: Annotated[bool, json_option("Print the findings as JSON.")] = False,
) -> None:
    """Say what works on this machine, and why other things do not."""
    diagnosis = runs.doctor.diagnose()
    if as_json:
        print_json(asdict(diagnosis))
    else:
        _print(diagnosis)
    if diagnosis.problems:
        raise typer.Exit(FAILED)


def _print(diagnosis: "Diagnosis") -> None:
    here = diagnosis.environment
    print_text([f"kinescan {here['kinescan']}, commit {here['commit'] or 'unknown'}, Python {here['python']}"])
    print_text([f"{here['system']}: {here['cpu']}, {here['num_cores']} cores, {here['memory_gib']} GiB"])
    print_text([f"devices: {', '.join((*diagnosis.devices, *here['accelerators']))}", ""])
    versions = [*here["packages"].items(), *((k, v or "not installed") for k, v in diagnosis.optional.items())]
    print_table(("package", "version"), versions)
    print()
    rows = [(found.what, "runs" if found.works else "no", found.note) for found in diagnosis.backends]
    print_table(("op", "", "note"), rows)
    print()
    print_table(("decoder", "note"), list(diagnosis.decoders.items()))
    print()
    for problem in diagnosis.problems:
        print_text([f"problem: {problem}"])
    print("all is well" if not diagnosis.problems else f"{len(diagnosis.problems)} to repair")
