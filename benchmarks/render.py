"""Writes docs/benchmarks.md from benchmarks/results/*.json.

Run: python benchmarks/render.py            (--check fails where the pages are not what the results say)
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
TIMING = {"wall_seconds", "cpu_seconds"}


INTRODUCTION = """# Benchmarks

Made by `python benchmarks/render.py` from `benchmarks/results/*.json`; do not edit. A speed is measured after the
parity test passed in the same run; peers take turns; times are medians; ratios are within one run. CPU time is that of
the process: the machines are shared, so trust it before wall time. What fell short of its aim stands here too.
"""


def page() -> str:
    """The whole page: one section a result file, what it was measured on first."""
    return "\n".join([INTRODUCTION, *(section(path) for path in sorted(RESULTS.glob("*.json")))])


def section(path: Path) -> str:
    result = json.loads(path.read_text(encoding="utf-8"))
    hardware = result["hardware"]
    cores = f"{hardware['threads_used']} of {hardware['cores']} cores"
    machine = f"{hardware['cpu']} ({', '.join(hardware['instructions'])}), {cores}, {hardware['memory_gib']} GiB"
    packages = ", ".join(f"{package} {number}" for package, number in result["versions"].items())
    lines = [
        f"## {result['name']}\n",
        f"[{path.name}](../benchmarks/results/{path.name}), commit `{result['commit'][:19]}`, {result['date'][:10]}, ",
        f"seed {result['seed']}, n = {result['n']}. {machine}, GPU: {hardware['gpu'] or 'none'}; {packages}.\n",
        f"Settings: {', '.join(f'{key} {value}' for key, value in result['settings'].items())}.\n",
        "| what | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows(result["results"], "")),
        "",
    ]
    return "\n".join(lines)


def rows(values: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    """Every number below a mapping, with its dotted place."""
    for key, value in values.items():
        place = f"{where}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping) and value.keys() >= TIMING:
            yield place, f"{1000 * value['cpu_seconds']:.4g} ms CPU, {1000 * value['wall_seconds']:.4g} ms wall"
        elif isinstance(value, Mapping):
            yield from rows(value, f"{place}: ")
        elif isinstance(value, list):
            yield place, ", ".join(text(item) for item in value)
        else:
            yield place, text(value)


def text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def write(path: Path, content: str, *, check: bool) -> bool:
    """Whether the file was already what it should be."""
    same = path.exists() and path.read_text(encoding="utf-8") == content
    if not same and not check:
        path.write_text(content, encoding="utf-8")
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page differs")
    check = parser.parse_args().check
    same = write(PAGE, page(), check=check)
    if check and not same:
        print(f"{PAGE} is not what benchmarks/results says: run python benchmarks/render.py", file=sys.stderr)
    return int(check and not same)


if __name__ == "__main__":
    sys.exit(main())
