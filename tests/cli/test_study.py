import json
from pathlib import Path
from typing import Any

from kinescan.cli import study as cli_study
from kinescan.studies import Row
from kinescan.studies.study import dump_study

from ..studies.conftest import small

__all__ = ["small"]


def test_lines_to_copy_start_with_the_verb() -> None:
    assert all(line.startswith("kinescan study ") for line in cli_study.EXAMPLES)


def test_the_command_line_runs_a_file_and_continues_its_folder(kinescan: Any, small: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(dump_study(small(rows=(Row(name="a"),))), encoding="utf-8")
    planned = json.loads(kinescan("study", file, "--dry-run", "--json", "--output", tmp_path / "out").stdout)
    assert [(run["row"], run["seed"]) for run in planned] == [("a", 0)]
    result = kinescan("study", file, "--output", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["finished"]
    assert Path(found["runs"][0]["folder"]) == Path(planned[0]["folder"])
    assert json.loads(kinescan("study", tmp_path / "out", "--json").stdout) == found
