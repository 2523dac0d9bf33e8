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


SCAN, CORRELATION, MODEL = "ops_selective_scan_cpu", "ops_local_correlation_cpu", "pks4_over_vit_cpu"
AIMS: tuple[tuple[str, str, tuple[str, ...], str, float], ...] = (
    ("scan forward: share of the exp roof", SCAN, ("forward", "share_of_exp_roof"), ">=", 0.25),
    ("scan forward: over the compiled loop", SCAN, ("forward", "times_faster_than", "compiled_loop"), ">=", 5),
    ("scan forward: over the eager loop", SCAN, ("forward", "times_faster_than", "eager_loop"), ">=", 20),
    (
        "scan forward, 98 tracks: over a pure-torch parallel scan",
        SCAN,
        ("forward_of_few_tracks", "times_faster_than", "parallel_scan"),
        ">=",
        40,
    ),
    (
        "scan with backward: over the compiled loop",
        SCAN,
        ("forward_and_backward", "times_faster_than", "compiled_loop"),
        ">=",
        5,
    ),
    (
        "scan with backward: peak memory over the eager loop's",
        SCAN,
        ("forward_and_backward", "peak_share_of", "eager_loop"),
        "<=",
        0.125,
    ),
    ("one step: share of the read and write floor", SCAN, ("step", "share_of_read_and_write_floor"), ">=", 0.35),
    ("one step: over the eager step", SCAN, ("step", "times_faster_than", "eager_step"), ">=", 4),
    (
        "correlation 14x14: share of the sgemm roof",
        CORRELATION,
        ("1x8x768x14x14", "forward", "share_of_sgemm_roof"),
        ">=",
        0.20,
    ),
    (
        "correlation 14x14: over the best peer",
        CORRELATION,
        ("1x8x768x14x14", "forward", "speedup_over_best_peer"),
        ">=",
        1.3,
    ),
    (
        "correlation 14x14 with backward: over the best peer",
        CORRELATION,
        ("1x8x768x14x14", "forward_and_backward", "speedup_over_best_peer"),
        ">=",
        2,
    ),
    (
        "correlation 28x28: over the best peer",
        CORRELATION,
        ("1x8x768x28x28", "forward", "speedup_over_best_peer"),
        ">=",
        2.5,
    ),
    ("PKS4-B/16 over the bare ViT: forward, CPU time", MODEL, ("forward", "cpu_ratio"), "<=", 1.12),
    ("PKS4-B/16 over the bare ViT: training step, CPU time", MODEL, ("training_step", "cpu_ratio"), "<=", 1.15),
    (
        "PKS4-B/16 over the bare ViT: peak memory of training",
        MODEL,
        ("memory", "ratios", "training_peak_bytes"),
        "<=",
        1.10,
    ),
    ("PKS4-B/16: time of 64 frames over 8", MODEL, ("growth_8_to_64", "cpu_ratio_of_minima"), "<=", 8.3),
)


def page() -> str:
    """The whole page: aims first, then one section a result file."""
    return "\n".join([INTRODUCTION, *aims(), *(section(path) for path in sorted(RESULTS.glob("*.json")))])


def aims() -> Iterator[str]:
    """A table of what was aimed at and what was reached."""
    yield "| what | aim | reached | |\n|---|---|---|---|"
    for what, name, keys, sign, aim in AIMS:
        value = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["results"]
        for key in keys:
            value = value[key] if key in value else value[key.replace("_", " ")]
        reached = value >= aim if sign == ">=" else value <= aim
        yield f"| {what} | {sign} {aim:g} | {value:.3g} | {'reached' if reached else '**missed**'} |"
    yield ""


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
