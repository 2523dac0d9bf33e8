"""The table of newest versions in docs/versions.md shows what `make newest` kept, and counts what the reports say."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
REPORT = """<testsuites><testsuite>
<testcase classname="tests.a.test_b" name="test_good" />
<testcase classname="tests.a.test_b" name="test_bad"><failure message="x">y</failure></testcase>
<testcase classname="tests.a.test_b" name="test_broken"><error message="x">y</error></testcase>
<testcase classname="tests.a.test_b" name="test_left"><skipped message="x" /></testcase>
</testsuite></testsuites>"""


@pytest.fixture(scope="module")
def newest() -> ModuleType:
    specification = importlib.util.spec_from_file_location("newest", ROOT / ".ci" / "newest.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _entry(torch: str, date: str, **parts: dict[str, object]) -> dict[str, object]:
    versions = {"torch": torch, "transformers": "5.24.0", "numpy": "2.4.6", "rich": "15.0.0"}
    other = {"differs": {"numpy": "2.4.6", "torch": torch}, "kept_out": {"pillow": "13.0.0"}}
    return {"date": date, "python": "3.11.7", "versions": versions, "parts": parts, **other}


def test_counts_of_a_report(newest: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(REPORT)
    failures = ["a.test_b.test_bad", "a.test_b.test_broken"]
    assert newest.counts(tmp_path / "a.xml") == {"passed": 1, "failed": 2, "skipped": 1, "failures": failures}


def test_table_sums_the_parts_and_names_what_differs(newest: ModuleType) -> None:
    good = {"passed": 1200, "failed": 0, "skipped": 3, "failures": [], "commit": "abc"}
    bad = {"passed": 5, "failed": 1, "skipped": 0, "failures": ["data.test_x.test_y"], "commit": "abf"}
    runs = [_entry("2.13.0", "2026-01-01", ops=good), _entry("2.14.1", "2026-02-01", ops=good, data=bad)]
    lines = newest.rendered(runs).splitlines()
    assert lines[2] == "| 2026-02-01 | 3.11.7 | 2.14.1 | 5.24.0 | numpy 2.4.6 | 1,205 | 1 | 3 |"
    assert lines[3] == "| 2026-01-01 | 3.11.7 | 2.13.0 | 5.24.0 | numpy 2.4.6 | 1,200 | 0 | 3 |"
    assert "- `data.test_x.test_y`" in lines
    assert sum("pillow 13.0.0" in line for line in lines) == 2


def test_every_file_of_tests_is_in_one_part(newest: ModuleType) -> None:
    paths = [ROOT / path for part in newest.parts() for path in newest.paths_of(part)]
    found = [file for path in paths for file in ([path] if path.is_file() else path.rglob("test_*.py"))]
    assert sorted(found) == sorted((ROOT / "tests").rglob("test_*.py"))


def test_page_shows_what_is_kept(newest: ModuleType) -> None:
    runs = json.loads(newest.KEPT.read_text(encoding="utf-8"))
    text = newest.PAGE.read_text(encoding="utf-8")
    assert text == newest.page_with(text, newest.rendered(runs))
