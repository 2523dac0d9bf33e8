"""Every number that README says was measured stands in the result that its row points to."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROW = re.compile(
    r"^\|(?P<what>[^|]*\((?P<file>benchmarks/results/[\w-]+\.json)\)[^|]*)\|(?P<cells>.*)\|$", re.MULTILINE
)
NUMBER = re.compile(r"(?<![\w.])(?P<digits>\d[\d,]*(?:\.\d+)?) ?(?P<unit>µs|ms|s|GiB|MiB|GB|MB|x|%)?(?![\w.])")
UNITS = {
    **{"s": ("seconds", 1.0), "ms": ("seconds", 1e-3), "µs": ("seconds", 1e-6)},
    **{"GiB": ("bytes", 2.0**30), "MiB": ("bytes", 2.0**20), "GB": ("bytes", 1e9), "MB": ("bytes", 1e6)},
    **{"x": ("", 1.0), "%": ("", 0.01), None: ("", 1.0)},
}
SCAN, CORRELATION, CPU = "ops_selective_scan_cpu", "ops_local_correlation_cpu", "cpu_seconds"
KEPT = ("forward_and_backward_in_kept_memory", "forward_in_kept_memory", "step_in_kept_memory")
BAND, DENSE = "1x8x768x14x14", "compiled dense symmetric"
LONG, LAST = ("pks4_vit_ti16, 4 blocks, 64 pixels",), "100000 frames"
Keys = tuple[str, ...]
CLAIMS: tuple[tuple[str, Keys, Keys, Keys, bool], ...] = (
    *(
        (SCAN, (part, "times", "ours", CPU), (part, "times", peer, CPU), (part, "times_faster_than", peer), True)
        for part, peer in zip(KEPT, ("compiled_loop", "compiled_loop", "compiled_step"), strict=True)
    ),
    *(
        (
            CORRELATION,
            (BAND, part, "candidates", "kinescan", CPU),
            (BAND, part, "candidates", DENSE, CPU),
            (BAND, part, "speedup_over_best_peer"),
            True,
        )
        for part in ("forward", "forward and backward")
    ),
    (
        "pks4_over_vit_cpu",
        ("forward", "pks4_vit_b16", CPU),
        ("forward", "vit_b16", CPU),
        ("forward", "cpu_ratio"),
        False,
    ),
    (
        "models_cpu",
        ("forward, bfloat16", "pks4_vit_b16, 64 frames", CPU),
        ("forward, bfloat16", "videomae, 64 frames", CPU),
        ("pks4_cpu_time_over", "forward, bfloat16", "64 frames", "videomae"),
        False,
    ),
    (
        "deployment_cpu",
        ("latency", "openvino, bfloat16", CPU),
        ("latency", "torch.compile, bfloat16 autocast", CPU),
        ("times_faster_than_eager", "openvino, bfloat16"),
        True,
    ),
    (
        "stream_cpu",
        (*LONG, "windows", LAST, CPU),
        (*LONG, "windows", LAST, "cpu_seconds_of_a_young_stream"),
        (*LONG, "time_over_a_young_stream_at_the_end"),
        False,
    ),
    (
        "statekv_speed_cpu",
        ("total_seconds", "statekv"),
        ("total_seconds", "full"),
        ("total_over_full", "statekv"),
        False,
    ),
)
"""Row by row: the result; where our seconds, the peer's and the ratio stand in it; whether more of the ratio is better.
Written down here once more, so that a table made from the wrong place is found."""


def at(results: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        results = results[key]
    return results


def numbers(values: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a result with the key that it stands under."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from numbers(value, f"{key} {name}" if key else name)
    elif isinstance(values, list):
        for value in values:
            yield from numbers(value, key)
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield key, float(values)


def is_said(text: str, unit: str | None, found: list[tuple[str, float]]) -> bool:
    """Whether a number of the right kind, rounded up or down as the text is, is among those found."""
    kind, scale = UNITS[unit]
    step = 10.0 ** -len(text.partition(".")[2])
    wanted = float(text.replace(",", ""))
    return any(kind in key and abs(value / scale - wanted) < step * (1 + 1e-9) for key, value in found)


def is_above(text: str, unit: str | None, median: float, more_is_better: bool) -> bool:
    """Whether a number says more for us than the median does; by however little."""
    claimed = float(text.replace(",", "")) * UNITS[unit][1]
    return claimed > median * (1 + 1e-9) if more_is_better else claimed < median * (1 - 1e-9)


def measured_rows() -> list[tuple[str, str, str]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [(match["what"].strip(), match["file"], match["cells"]) for match in ROW.finditer(text)]


def test_readme_has_a_table_of_measured_numbers_and_each_row_points_to_its_result() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = next(block for block in text.split("\n\n") if block.startswith("| measured"))
    assert len(table.splitlines()) - 2 == len(ROW.findall(table)) >= 3


@pytest.mark.parametrize(("what", "file", "cells"), measured_rows())
def test_numbers_of_readme_stand_in_the_result_that_they_point_to(what: str, file: str, cells: str) -> None:
    document = json.loads((ROOT / file).read_text(encoding="utf-8"))
    found = list(numbers(document["results"]))
    claimed = [(match["digits"], match["unit"]) for match in NUMBER.finditer(cells)]
    assert claimed, f"{what}: no number"
    missing = [f"{digits} {unit or ''}" for digits, unit in claimed if not is_said(digits, unit, found)]
    assert missing == [], f"{what}: not in {file}"


@pytest.mark.parametrize(("row", "claim"), list(zip(measured_rows(), CLAIMS, strict=True)))
def test_no_number_of_readme_is_above_the_median_behind_it(row: tuple[str, str, str], claim: Any) -> None:
    (what, file, cells), (name, ours, peer, ratio, more_is_better) = row, claim
    assert Path(file).stem == name, what
    results = json.loads((ROOT / file).read_text(encoding="utf-8"))["results"]
    medians = [at(results, ratio)]
    if len(ratio) > 1 and f"{ratio[-2]}_lowest" in at(results, ratio[:-2]):  # of several processes
        medians += [at(results, (*ratio[:-2], f"{ratio[-2]}_{end}", ratio[-1])) for end in ("lowest", "highest")]
        assert medians[1] <= medians[0] <= medians[2]
    own, other, said = (list(NUMBER.finditer(cell)) for cell in cells.split("|"))
    assert len(said) == len(medians), f"{what}: median, lowest and highest, or the median of one process"
    pairs = [(own[0], at(results, ours), False), (other[0], at(results, peer), True)]
    pairs += [(match, median, more_is_better) for match, median in zip(said, medians, strict=True)]
    above = [match[0] for match, median, more in pairs if is_above(match["digits"], match["unit"], median, more)]
    assert above == [], what


def test_ratios_in_the_text_of_readme_are_not_above_the_median_either() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"\[([\d.]+)x\]\(benchmarks/results/([\w-]+)\.json\)", text)
    assert found
    for digits, name in found:
        [(_, _, _, ratio, more_is_better)] = [claim for claim in CLAIMS if claim[0] == name]
        results = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))["results"]
        assert not is_above(digits, "x", at(results, ratio), more_is_better), f"{digits}x of {name}"


def test_a_number_above_its_median_would_be_found() -> None:
    """As README had them: the best of several runs, or rounded to the kinder side."""
    assert is_above("17.0", "x", 6.16, True)
    assert is_above("2.5", "x", 2.469, True)
    assert is_above("0.13", "x", 0.1336, False)
    assert is_above("85.7", "ms", 0.08573, False)
    assert not is_above("2.4", "x", 2.469, True)
    assert not is_above("0.14", "x", 0.1336, False)
    assert not is_above("85.8", "ms", 0.08573, False)
    assert not is_above("4.2", "x", 4.2, True)


def test_scan_is_measured_in_several_processes_and_kept_memory() -> None:
    """Results from before that rule have no range; the next ones do."""
    document = json.loads((ROOT / "benchmarks" / "results" / f"{SCAN}.json").read_text(encoding="utf-8"))
    if "processes" not in document["settings"]:
        pytest.skip("the result is from before that rule")
    assert document["settings"]["processes"] >= 5
    for part in KEPT:
        assert all(timing["processes"] >= 5 for timing in document["results"][part]["times"].values())


def test_a_wrong_number_would_be_found() -> None:
    found = [("times ours cpu_seconds", 0.48175), ("times_faster_than loop", 7.79), ("peak_bytes", 2.5 * 2**30)]
    assert is_said("482", "ms", found)
    assert is_said("481", "ms", found)
    assert is_said("7.8", "x", found)
    assert is_said("7.7", "x", found)
    assert is_said("2.5", "GiB", found)
    assert not is_said("483", "ms", found)
    assert not is_said("7.6", "x", found)
    assert not is_said("7.8", "ms", found)
    assert [match.groups() for match in NUMBER.finditer("3753 ms, loop of 2 | 7.8x | AVX2")] == [
        ("3753", "ms"),
        ("2", None),
        ("7.8", "x"),
    ]
