from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from kinescan import runs
from kinescan.cli.options import json_option
from kinescan.cli.output import FAILED, print_json, reported
from kinescan.cli.terminal import print_table, print_text
from kinescan.errors import ConfigError

if TYPE_CHECKING:
    from kinescan.runs.doctor import Diagnosis
    from kinescan.runs.gpu_check import GpuCheck

EXAMPLES = (
    "kinescan doctor",
    "kinescan doctor --json > doctor.json",
    "kinescan doctor --gpu-check",
)


@reported
def command(
    gpu_check: Annotated[
        bool,
        typer.Option(
            "--gpu-check",
            help="First check the GPU, in less than ten minutes: kernels against references, training in each "
            "precision, memory, speed. The result is kept, and later calls read it.",
        ),
    ] = False,
    device: Annotated[
        str, typer.Option(help="For --gpu-check: auto or cuda; cpu rehearses it, which says nothing about a GPU.")
    ] = "auto",
    as_json: Annotated[bool, json_option("Print the findings as JSON.")] = False,
) -> None:
    """Say what works on this machine, and why other things do not."""
    if gpu_check:
        check = runs.gpu_check.check_gpu(device)
        if check.rehearsal:
            _print_rehearsal(check, as_json=as_json)
            return
    elif device != "auto":
        raise ConfigError("--device is for --gpu-check: give both, or neither.")
    diagnosis = runs.doctor.diagnose()
    if as_json:
        print_json(asdict(diagnosis))
    else:
        _print(diagnosis)
    if diagnosis.problems:
        raise typer.Exit(FAILED)


def _print_rehearsal(check: "GpuCheck", *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(check))
    else:
        print_table(
            ("part", "", "s", "note"),
            [
                (each.name, each.status, f"{each.seconds:.0f}", "; ".join((*each.problems, *each.notes)))
                for each in check.parts
            ],
        )
        path = runs.gpu_check.result_path(rehearsal=True)
        print_text(["", f"a rehearsal on a CPU, with tiny sizes: it says nothing about a GPU. Written to {path}"])
    if check.problems:
        raise typer.Exit(FAILED)


def _print(diagnosis: "Diagnosis") -> None:
    here = diagnosis.environment
    print_text([f"kinescan {here['kinescan']}, commit {here['commit'] or 'unknown'}, Python {here['python']}"])
    print_text([f"{here['system']}: {here['cpu']}, {here['num_cores']} cores, {here['memory_gib']} GiB"])
    unused = [f"{kind} (not used)" for kind in diagnosis.unused_devices]
    print_text([f"devices: {', '.join((*diagnosis.devices, *here['accelerators'], *unused))}", ""])
    versions = [*here["packages"].items(), *((k, v or "not installed") for k, v in diagnosis.optional.items())]
    print_table(("package", "version"), versions)
    print()
    rows = [(found.what, "runs" if found.works else "no", found.note) for found in diagnosis.backends]
    print_table(("op", "", "note"), rows)
    print()
    print_table(("decoder", "note"), list(diagnosis.decoders.items()))
    print()
    checked = diagnosis.gpu_check
    print_text([f"GPU check: {checked.note}", *(f"changed since: {change}" for change in checked.changed)])
    print()
    for problem in diagnosis.problems:
        print_text([f"problem: {problem}"])
    print("all is well" if not diagnosis.problems else f"{len(diagnosis.problems)} to repair")
