"""What the table of the paper's rows says of runs that are there."""

import json
from pathlib import Path
from typing import Any

import pytest

SCORES = {"Baseline": {0: 0.3, 1: 0.4}, "TSM": {0: 0.5, 1: 0.7}, "TokenShift": {0: 0.2}}


def test_differences_are_paired_by_seed(script: Any) -> None:
    tables = script("pks4_tables")
    found = tables.summary("TSM", "Baseline", SCORES, [1.0, 3.0])
    assert (found["seeds"], found["top1"], found["to_base"], found["minutes_of_one_core"]) == (2, 0.6, 0.25, 2.0)
    assert found["to_base_low"] < 0.25 < found["to_base_high"]
    one = tables.summary("TokenShift", "Baseline", SCORES, [1.0])
    assert one["to_base"] == pytest.approx(-0.1)
    assert "standard_deviation" not in one
    assert "to_base_low" not in one


def test_order_compares_seeds_that_both_rows_have(script: Any) -> None:
    tables = script("pks4_tables")
    theirs = {"Baseline": 1.0, "TSM": 2.0, "TokenShift": 3.0}
    assert tables.order(SCORES, theirs) == {"pairs": 3, "in_the_order_of_the_paper": 1}
    assert tables.order(SCORES, dict.fromkeys(SCORES, 1.0)) == {"pairs": 0, "in_the_order_of_the_paper": 0}


def test_the_first_seed_of_every_table_comes_before_any_second(script: Any) -> None:
    calls = list(script("pks4_tables").calls("videos", [0, 1], [5, 9]))
    assert calls[:4] == [(5, None, (0,)), (5, "videos", (0,)), (9, None, (0,)), (9, "videos", (0,))]
    assert calls[4] == (5, None, (0, 1))


def test_runs_are_read_from_the_folders_of_studies(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = script("pks4_tables")
    monkeypatch.setattr(tables, "WORK", tmp_path)
    folder = tmp_path / "pks4-table5-demo-real"
    folder.mkdir()
    runs = [{"row": "+ KS4", "seed": 0, "scores": {"top1": 0.5}}, {"row": "Baseline", "seed": 1, "scores": {}}]
    (folder / "study.json").write_text(json.dumps({"runs": runs}))
    assert tables.scores_of(tables.runs_of(5, "real pixels")) == {"+ KS4": {0: 0.5}}
    assert tables.runs_of(5, "motion") == []


RUN = {
    "folder": "runs/a",
    "code": "abc",
    "cpu_seconds": 60.0,
    "num_training": 8,
    "steps": 2,
    "epochs": 1,
    "best_epoch": None,
    "environment": {"cpu": "some", "cores": 2},
    "seconds": 70.0,
}


def test_seeds_of_other_folders_are_added_and_a_table_with_more_of_them_stays(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = script("pks4_tables")
    rows = [row.name for row in tables.table_study("table7", "demo").rows]

    def study(folder: str, seeds: list[int], top1: float) -> None:
        monkeypatch.setattr(tables, "WORK", tmp_path / folder)
        file = tmp_path / folder / "pks4-table7-demo" / "study.json"
        file.parent.mkdir(parents=True)
        runs = [
            RUN | {"row": row, "seed": seed, "scores": {"top1": top1, "loss": 1.0}} for row in rows for seed in seeds
        ]
        file.write_text(json.dumps({"runs": runs}))

    for name in ("RESULTS", "PUBLISHED"):
        monkeypatch.setattr(tables.measure, name, tmp_path / "results")
    monkeypatch.setattr(tables.measure.write_result, "__kwdefaults__", {"folder": tmp_path / "results", "packages": ()})
    study("first", [0, 1], 0.5)
    tables.publish()
    study("second", [1, 2], 0.8)
    tables.publish()
    document = json.loads((tmp_path / "results" / "pks4_tables.json").read_text())
    found = document["results"]["table 7, motion"]
    assert [(found[row]["seeds"], found[row]["top1"]) for row in rows] == [(3, 0.7)] * 2
    assert document["n"] == 3
    # Runs of a table that was published without them, and with more seeds.
    (tmp_path / "results" / "raw" / "pks4_tables.json").unlink()
    study("third", [3], 0.9)
    tables.publish()
    document = json.loads((tmp_path / "results" / "pks4_tables.json").read_text())
    assert document["results"]["table 7, motion"] == found
    assert document["settings"]["tables as they were published before"]["names"] == ["table 7, motion"]
