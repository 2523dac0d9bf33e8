"""Tables of the paper as typed: one row of each at a tiny scale, plans, resumption, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from kinescan.studies import Study, StudyResult, plan_study
from kinescan.studies.costs import row_config
from kinescan.studies.paper import TABLES, paper_table, table_study
from kinescan.studies.reproduce import plan_reproduction, reproduce

TINY = [
    *("make.train_per_class=2", "make.test_per_class=1", 'make.pairs=["horizontal"]', "make.frame_size=32"),
    *(
        "make.num_frames=4",
        "make.level=0",
        "make.shake_pixels=0.0",
        "stills.stills_per_epoch=4",
        "stills.optim.epochs=1",
    ),
    *("stills.loader.batch_size=4", "preprocessing.size=32", "preprocessing.num_frames=2", "optim.epochs=1"),
    *("loader.batch_size=4", "model.options.width=16", "model.options.heads=2", "model.options.mlp_dim=16"),
    *("model.options.embed_dim=16", "model.options.patch_size=16", "model.options.window=3", "evaluation.views=2x1x1"),
]


@pytest.mark.parametrize("table", TABLES)
def test_one_row_of_each_table_runs_at_demo_scale(table: str, tmp_path: Path) -> None:
    row = table_study(table, "demo").rows[-1].name
    found = reproduce(table, seeds=(0,), only=(row,), overrides=TINY, output=tmp_path / "study", memory=False)
    assert found.result is not None
    [run] = found.result.runs
    assert (run.row, run.seed, run.status) == (row, 0, "done")
    assert set(found.paper.rows) == {cost.row for cost in found.costs}
    saved = json.loads((tmp_path / "study" / "reproduction.json").read_text())
    assert saved["rows"][row]["paper"]["top1"] == paper_table(table).rows[row].top1
    page = (tmp_path / "study" / "reproduction.md").read_text()
    assert f"{paper_table(table).rows[row].top1:g}" in page


def test_what_is_done_is_not_run_again_and_the_order_is_counted(tmp_path: Path) -> None:
    output = tmp_path / "study"
    first = reproduce("table7", seeds=(0,), only=("Bidirectional",), overrides=TINY, output=output, memory=False)
    both = reproduce("7", seeds=(0,), overrides=TINY, output=output, memory=False)
    assert first.result is not None
    assert both.result is not None
    again = {run.row: run for run in both.result.runs}
    assert again["Bidirectional"] == first.result.runs[0]
    scores = [again[row].scores["top1"] for row in ("Unidirectional", "Bidirectional")]
    assert both.order_kept() == (int(scores[1] > scores[0]), 1)


def test_the_whole_model_is_the_same_run_in_all_tables_that_have_it(tmp_path: Path) -> None:
    rows = {"5": "+ KS4 + O_var + O_corr", "7": "Unidirectional", "8": "4 frames", "9": "TokenT1D"}
    planned = [plan_reproduction(table, only=(row,), memory=False).study for table, row in rows.items()]
    keys = {job.folder for study in planned for job in plan_study(study, tmp_path).jobs}
    assert len(keys) == 3
    tables = [plan_study(table_study(table, "demo"), tmp_path) for table in ("table1", "table2")]
    assert [job.folder for job in tables[0].jobs] == [job.folder for job in tables[1].jobs]


def test_processes_and_runs_of_other_commits_are_handed_on(
    kinescan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def run(study: Study, **options: Any) -> StudyResult:
        asked.append({"shared": study.shared, **options})
        return StudyResult(study=study, output=tmp_path, code="c", runs=(), num_planned=1, failed={})

    monkeypatch.setattr("kinescan.studies.reproduce.run_study", run)
    flags = ("--processes", "2", "--any-code", "--seeds", "0")
    assert kinescan("reproduce", "table7", *flags).exit_code == 0
    assert kinescan("reproduce", "table7", "--output", tmp_path / "own").exit_code == 0
    shared = table_study("table7", "demo").shared
    assert shared
    assert asked == [
        {"shared": shared, "output": None, "processes": 2, "any_code": True},
        {"shared": "", "output": tmp_path / "own", "processes": 1, "any_code": False},
    ]


def test_plan_shows_costs_beside_the_paper_and_needs_no_data(kinescan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = kinescan("reproduce", "table7", "--data", "ssv2", "--plan")
    assert done.exit_code == 0, done.stderr
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    for number in ("91,693,550", "95,464,430", "95.5", "2.9430", "3.0404", "+0.93 %"):
        assert number in done.stdout


def test_plan_as_json_holds_settings_and_numbers(kinescan: Any) -> None:
    done = kinescan("reproduce", "table9", "--plan", "--json", "--seeds", "3,4", "--only", "tokent1d")
    found = json.loads(done.stdout)
    assert (found["scale"], found["seeds"], found["study"]) == ("demo", [3, 4], None)
    assert found["rows"] == {"TokenT1D": {"paper": {"top1": 70.31, "top5": 92.36}, "settings": {}}}
    assert {cost["row"]: cost["num_parameters"] for cost in found["costs"]} == {
        "Baseline": 91_638_254,
        "TSM": 91_638_254,
        "TokenT1D": 91_693_550,
        "TokenShift": 91_638_254,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("table10",), "'table10'"),
        (("table5", "--only", "KS4", "--plan"), "'KS4'"),
        (("table5", "--seeds", "a"), "'a'"),
        (("table5", "--seeds", "1,1", "--plan"), "1"),
        (("table5", "--data", "k400"), "ssv2"),
        (("table4", "--data", "ssv2"), "k400"),
        (("table5", "--data", "ssv2", "--scale", "demo"), "--scale"),
        (("table5", "--data", "ssv2", "--from", "x"), "--from"),
        (("table5", "--data", "ssv2", "--set", "make.level=1"), "make.level"),
        (("table5", "--data", "ssv2", "--set", "data.train=nowhere"), "nowhere"),
        (("table5", "--set", "optim.learning=1", "--plan"), "optim.learning"),
    ],
)
def test_what_cannot_be_run_is_refused(kinescan: Any, arguments: tuple[str, ...], said: str) -> None:
    done = kinescan("reproduce", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.startswith("ConfigError")


def test_paper_scale_has_the_settings_of_the_paper() -> None:
    for table in TABLES:
        study = table_study(table, "paper")
        for row in study.rows:
            config = row_config(study, row)
            large = "L/14" in row.name
            assert config.model.name == ("pks4_vit_l14" if large else "pks4_vit_b16")
            assert config.model.weights == f"openai/clip-vit-{'large-patch14' if large else 'base-patch16'}"
            assert (config.optim.lr, config.optim.epochs) == ((1e-3, 15) if large else (7e-4, 20))
            assert config.data.reader == ("kinetics400" if table == "table4" else "ssv2")


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_rows_are_scored_with_as_many_frames_as_they_are_trained_with(table: str, scale: str) -> None:
    study = table_study(table, scale)  # type: ignore[arg-type]
    for row in study.rows:
        config = row_config(study, row)
        assert config.views().frames == config.preprocessing.num_frames, row.name
