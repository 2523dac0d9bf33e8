import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kinescan.cli import compare as cli_compare
from kinescan.errors import ConfigError
from kinescan.studies import RunRecord, compare_runs, run_study

CODE = "0123456789ab"


@pytest.fixture
def runs(small: Any, tmp_path: Path) -> list[RunRecord]:
    return list(run_study(small(seeds=(0, 1)), output=tmp_path / "study", code=CODE).runs)


def test_runs_are_grouped_by_all_but_their_seed(kinescan: Any, runs: list[RunRecord], tmp_path: Path) -> None:
    folders = [run.folder for run in runs]
    result = kinescan("compare", *folders, "--output", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [(cell["row"].split("=")[0], cell["spread"]["n"]) for cell in found["table"]] == [("lr", 2), ("lr", 2)]
    assert found["table"][1]["row"] == "lr=0.01"
    assert found["table"][1]["difference"]["n"] == 2
    assert sorted(run["scores"]["top1"] for run in found["runs"]) == sorted(run.scores["top1"] for run in runs)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"study.json", "study.md", "study.csv", "runs.csv", "study.tex", "curves.png"}
    # one row alone has no difference
    alone = compare_runs([run.folder for run in runs if run.row == "one"])
    assert [(cell.row, cell.difference) for cell in alone.cells()] == [("pks4_vit_ti16", None)]
    assert all(line.startswith("kinescan compare ") for line in cli_compare.EXAMPLES)


@pytest.mark.bad_input
def test_what_cannot_be_compared_is_refused(runs: list[RunRecord], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        compare_runs([])
    with pytest.raises(ConfigError, match="nothing"):
        compare_runs([tmp_path / "nothing"])
    copy = tmp_path / "copy"
    shutil.copytree(runs[0].folder, copy)
    with pytest.raises(ConfigError, match="copy"):
        compare_runs([runs[0].folder, copy])
    (copy / "report.json").unlink()
    with pytest.raises(ConfigError, match=r"report\.json"):
        compare_runs([copy])
