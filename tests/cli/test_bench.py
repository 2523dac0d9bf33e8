import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.mentions import mentions

from kinescan.errors import ConfigError
from kinescan.runs import bench as module
from kinescan.runs.bench import bench, find_checkout, read_suite

ROOT = Path(__file__).resolve().parents[2]
SUITE = """
[first]
script = "first.py"
says = "something"
minutes = 1
arguments = ["full"]
quick = ["quick"]

[broken]
script = "broken.py"
says = "something that fails"
minutes = 1
quick = []

[silent]
script = "silent.py"
says = "something that writes nothing"
minutes = 1

[elsewhere]
script = "first.py"
says = "something for a machine that this is not"
minutes = 1
needs = ["no_such_package"]

[long]
script = "first.py"
says = "something long"
minutes = 600
by_name = true
"""
SCRIPT = """
import json, os, sys
from pathlib import Path
folder = Path(os.environ["KINESCAN_BENCHMARK_RESULTS"])
document = json.loads(Path("benchmarks/template.json").read_text())
document |= {"name": "first", "command": " ".join(sys.argv), "results": {"parity": 0.5, "argument": sys.argv[1:]}}
(folder / "first.json").write_text(json.dumps(document))
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a suite of its own and the real page maker."""
    root = tmp_path / "checkout"
    (root / "benchmarks" / "results").mkdir(parents=True)
    (root / "benchmarks" / "suite.toml").write_text(SUITE)
    (root / "benchmarks" / "first.py").write_text(SCRIPT)
    (root / "benchmarks" / "broken.py").write_text("raise SystemExit(3)")
    (root / "benchmarks" / "silent.py").write_text("print('nothing')")
    for name in ("render.py", "findings.py", "curves.py", "headlines.py"):
        shutil.copy(ROOT / "benchmarks" / name, root / "benchmarks" / name)
    shutil.copy(ROOT / "benchmarks/results/pks4_over_vit_cpu.json", root / "benchmarks" / "template.json")
    monkeypatch.setattr(module, "find_checkout", lambda _: root)
    monkeypatch.chdir(tmp_path)
    return root


def test_bench_runs_what_can_run_and_writes_the_page(checkout: Path) -> None:
    runs, page = bench()
    problems = {run.name: run.problem for run in runs}
    assert problems == {
        "first": None,
        "broken": "failed with exit code 3; what it printed says why",
        "silent": "wrote no result",
        "elsewhere": "left out: needs no_such_package",
    }
    assert [run.failed for run in runs] == [False, True, True, False]
    assert page == checkout / "docs" / "benchmarks.md"
    written = json.loads((checkout / "benchmarks" / "results" / "first.json").read_text())
    assert written["command"] == "benchmarks/first.py full"
    assert "(benchmarks/first.md)" in page.read_text(encoding="utf-8")
    text = (page.parent / "benchmarks" / "first.md").read_text(encoding="utf-8")
    assert mentions(text, "`benchmarks/first.py full`", "0.5")
    assert "quick run" not in text


def test_bench_quick_goes_to_a_folder_of_its_own(kinescan: Any, checkout: Path, tmp_path: Path) -> None:
    result = kinescan("bench", "first", "--quick", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["page"] == str(tmp_path / "runs" / "bench_quick" / "benchmarks.md")
    assert [Path(path).name for path in said["benchmarks"][0]["results"]] == ["first.json"]
    assert mentions(Path(said["page"]).read_text(encoding="utf-8"), "**A", "quick")
    assert list((checkout / "benchmarks" / "results").iterdir()) == []
    failed = kinescan("bench", "--quick", "--output", tmp_path / "mine")
    assert failed.exit_code == 1
    assert mentions(failed.stdout, "failed", "3")
    assert f"page: {tmp_path / 'mine' / 'benchmarks.md'}" in failed.stdout


@pytest.mark.parametrize(
    ("names", "quick", "output", "message"),
    [
        (["fist"], False, None, "'fist'.*'first'"),
        (["silent"], True, None, "--quick.*1 minutes"),
        ([], True, "checkout/benchmarks/results", "quick.*another --output"),
    ],
)
def test_bench_says_what_is_wrong(
    checkout: Path, names: list[str], quick: bool, output: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        bench(names, quick=quick, output=output)


def test_bench_without_a_checkout_says_where_the_benchmarks_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"without.*`pip install -e \.`"):
        find_checkout(tmp_path / "lib" / "site-packages" / "kinescan" / "__init__.py")


def test_read_suite_names_the_wrong_key(checkout: Path) -> None:
    path = checkout / "benchmarks" / "suite.toml"
    path.write_text('[a]\nscript = "a.py"\nsays = "x"\nminutes = 1\nquik = []\n')
    with pytest.raises(ConfigError, match=r"a\.quik.*quick"):
        read_suite(checkout)
    path.write_text("[a\n")
    with pytest.raises(ConfigError, match=r"suite\.toml.*TOML"):
        read_suite(checkout)


def test_bench_lists_the_suite(kinescan: Any) -> None:
    listed = kinescan("bench", "--list")
    assert "ops_selective_scan" in listed.stdout
    assert "by name" in listed.stdout
    plain = json.loads(kinescan("bench", "--list", "--json").stdout)
    assert plain["ops_selective_scan"]["missing"] == []
