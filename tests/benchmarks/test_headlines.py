import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def headlines(script: Any) -> Any:
    return script("headlines")


def results(median: float, *, spread: bool) -> dict[str, Any]:
    times = {"ours": {"cpu_seconds": 0.08573}, "compiled_loop": {"cpu_seconds": 0.44369}}
    found: dict[str, Any] = {"times": times, "times_faster_than": {"compiled_loop": median}}
    if spread:
        found |= {
            "times_faster_than_lowest": {"compiled_loop": 2.69},
            "times_faster_than_highest": {"compiled_loop": 9.19},
        }
    return {"forward_in_kept_memory": found}


def test_rows_are_rounded_to_the_less_kind_side_with_their_range(headlines: Any) -> None:
    [headline] = [row for row in headlines.HEADLINES if row.ours[0] == "forward_in_kept_memory"]
    row = headlines.row(headline, results(6.19, spread=True))
    assert row.endswith("| 85.8 ms | 443 ms, compiled step loop | 6.1x (2.6x to 9.1x) |")
    assert headlines.row(headline, results(6.2, spread=False)).endswith("| 6.2x |")


def test_ratios_of_which_less_is_better_are_rounded_up(headlines: Any) -> None:
    assert headlines.times(0.1336, up=True) == "0.14x"
    assert headlines.times(1.08, up=True) == "1.08x"
    assert [headlines.seconds(x, up=True) for x in (3.345, 0.0019301, 0.7121)] == ["3.35 s", "1.94 ms", "713 ms"]
    assert [headlines.seconds(x, up=False) for x in (25.03, 0.00272)] == ["25.0 s", "2.72 ms"]


def test_the_table_of_readme_is_the_one_of_the_results(headlines: Any, tmp_path: Path) -> None:
    folder = ROOT / "benchmarks" / "results"
    documents = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}
    assert not headlines.update(documents, check=True)
    copy = tmp_path / "README.md"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    copy.write_text(text.replace("compiled step loop |", "compiled step loop | 17", 1), encoding="utf-8")
    assert headlines.update(documents, copy, check=True)
    assert headlines.update(documents, copy, check=False)
    assert copy.read_text(encoding="utf-8") == text
