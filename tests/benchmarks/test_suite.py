from pathlib import Path

from kinescan.runs.bench import read_suite

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


def test_suite_names_scripts_that_exist() -> None:
    suite = read_suite(ROOT)
    assert sum(entry.quick is not None for entry in suite.values()) >= 3
    absent = [entry.script for entry in suite.values() if not (BENCHMARKS / entry.script).is_file()]
    assert absent == []


def test_every_script_that_writes_a_result_is_in_the_suite() -> None:
    writing = {
        path.relative_to(BENCHMARKS).as_posix()
        for path in BENCHMARKS.rglob("*.py")
        if "write_result(" in path.read_text(encoding="utf-8") and path.name != "measure.py"
    }
    assert writing <= {entry.script for entry in read_suite(ROOT).values()}
