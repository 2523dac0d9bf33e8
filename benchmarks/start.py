"""How soon the command line answers: CPU seconds and memory of each verb's help, and of `kinescan list`.

Run: python benchmarks/start.py            (about half a minute of one core)
Writes benchmarks/results/start_cpu.json. Each command runs in processes of its own; the first run, which may compile
Python files, does not count, and what is printed is checked.
"""

import argparse
import statistics
import subprocess
import sys
from typing import Any

import measure
from kinescan.cli.main import VERBS

NAME = "start_cpu"
AIMS = {"seconds": 1.0, "peak_mib": 150.0}
COMMANDS = (*((verb, "--help") for verb in VERBS), ("list",), ("list", "settings"))


MEASURED = """
import resource, subprocess, sys
run = subprocess.run([sys.executable, "-m", "kinescan", *sys.argv[1:]], stdout=subprocess.PIPE)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
said = b"Usage:" in run.stdout or b"pks4_vit_b16" in run.stdout or b"optim.lr" in run.stdout
print(run.returncode or not said, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""
"""Started from a small process: the peak of a child is at least what its parent held when it was started."""


def run(command: tuple[str, ...]) -> tuple[float, float]:
    """CPU seconds and the peak of resident memory in MiB of one process (Linux)."""
    done = subprocess.run([sys.executable, "-c", MEASURED, *command], stdout=subprocess.PIPE, text=True, check=True)
    failed, seconds, mebibytes = done.stdout.split()
    if failed not in ("0", "False"):
        raise SystemExit(f"kinescan {' '.join(command)} failed")
    return float(seconds), float(mebibytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for command in COMMANDS:
        runs = [run(command) for _ in range(arguments.repetitions + 1)][1:]
        seconds, mebibytes = zip(*runs, strict=True)
        found[" ".join(command)] = {
            "seconds": round(statistics.median(seconds), 3),
            "seconds_max": round(max(seconds), 3),
            "peak_mib": round(max(mebibytes), 1),
        }
    worst = {key: max(values[key] for values in found.values()) for key in ("seconds", "peak_mib")}
    results = {
        "commands": found,
        "worst": worst,
        "aims": {key: {"aim": aim, "reached": worst[key] <= aim} for key, aim in AIMS.items()},
    }
    print(measure.write_result(NAME, seed=0, n=arguments.repetitions, settings=vars(arguments), results=results))


if __name__ == "__main__":
    main()
