import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from kinescan.config import load_recipe
from kinescan.errors import ConfigError, KinescanError, NonFiniteError, TrainingInterrupted, VideoError
from kinescan.evaluation.report import CHOSEN_ON_THESE
from kinescan.runs.train import train
from kinescan.runtime.escaping import escape_markdown
from kinescan.studies import DataEntry, Preparation, Row, plan_study, read_study, run_study
from kinescan.studies.run import hints

CODE = "0123456789ab"
SMALL_STILLS = {
    **{f"model.options.{key}": 16 for key in ("patch_size", "width", "mlp_dim", "embed_dim")},
    **{"model.options.depth": 2, "model.options.heads": 2, "preprocessing.size": 32, "preprocessing.num_frames": 1},
    **{"loader.batch_size": 4, "loader.num_workers": 0, "train.device": "cpu", "train.trackers": []},
}


def test_a_study_runs_resumes_and_runs_nothing_twice(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, calls = small(seeds=(0, 1)), []

    def interrupted(config: Any, **options: Any) -> Any:
        calls.append((config.optim.lr, config.seed, options["resume"]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(config, **options)

    monkeypatch.setattr("kinescan.studies.job.train", interrupted)
    with pytest.raises(TrainingInterrupted):
        run_study(study, output=tmp_path, code=CODE)
    assert len(read_study(tmp_path, code=CODE).runs) == 1
    result = run_study(tmp_path, code=CODE)
    lr = calls[0][0]
    assert calls == [(lr, 0, False), (0.01, 0, False), (0.01, 0, False), (lr, 1, False), (0.01, 1, False)]
    assert result.is_finished
    assert [run.status for run in result.runs] == ["done"] * 4
    assert run_study(study, output=tmp_path, code=CODE).runs == result.runs
    assert len(calls) == 5
    for run in result.runs:
        report = json.loads((Path(run.folder) / "report.json").read_text())
        assert run.scores["top1"] == report["top1"]
        assert run.cpu_seconds > 0
        assert run.seconds >= run.train_seconds > 0
        assert run.training_flops == 6 * report["cost"]["macs_with_attention"] * run.num_training
    saved = json.loads((tmp_path / "study.json").read_text())
    assert saved == json.loads(json.dumps(result.to_json()).replace("NaN", "null"))
    assert (tmp_path / "study.md").read_text() == result.to_markdown()


def test_a_row_that_becomes_non_finite_says_so_and_the_others_go_on(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: Any, **options: Any) -> Any:
        if config.optim.lr == 0.01:
            raise NonFiniteError("loss is nan in epoch 1, step 2")
        return train(config, **options)

    monkeypatch.setattr("kinescan.studies.job.train", broken)
    result = run_study(small(), output=tmp_path, code=CODE)
    assert [run.status for run in result.runs] == ["done", "non_finite"]
    assert "step 2" in result.to_markdown()
    assert result.is_finished
    monkeypatch.setattr("kinescan.studies.job.train", None)
    assert run_study(small(), output=tmp_path, code=CODE).runs == result.runs


@pytest.mark.bad_input
def test_rows_that_cannot_be_built_are_all_named_before_anything_runs(small: Any, tmp_path: Path) -> None:
    rows = (
        Row(name="good"),
        Row(name="typo", settings={"optim.lrr": 1}),
        Row(name="odd", settings={"model.options.heads": 3}),
        Row(name="nothing trained", settings={"train.trainable": ["abc*"]}),
        Row(name="lost", settings={"model.weights": str(tmp_path / "none.safetensors")}),
    )
    with pytest.raises(ConfigError) as caught:
        run_study(small(rows=rows), output=tmp_path / "out", code=CODE)
    assert all(f"'{row.name}'" in str(caught.value) for row in rows[1:])
    assert "'good'" not in str(caught.value)
    assert "optim.lr" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.bad_input
def test_what_is_wrong_with_data_to_be_made_is_found_before_anything_runs(small: Any, tmp_path: Path) -> None:
    study = small(data=(DataEntry(name="x", make={"kind": "motion", "levels": 1}),))
    parts = (Preparation(name="p", kind="train", recipe=study.recipe, make={"kind": "motion", "num_frames": 0}),)
    study = replace(study, preparations=parts, prepare="p")
    with pytest.raises(ConfigError) as caught:
        run_study(study, output=tmp_path / "out", code=CODE)
    assert all(text in str(caught.value) for text in ("'x'", "'level'", "'p'", "num_frames"))
    assert not (tmp_path / "out").exists()


@pytest.mark.bad_input
def test_a_reason_that_all_folds_share_is_said_once(small: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_study(small(data=(DataEntry(name="x", folds=20),)), tmp_path)
    assert str(caught.value).count("data.group") == 1
    assert "40 rows" in str(caught.value)
    assert "38 more" in str(caught.value)


@pytest.mark.bad_input
def test_rows_and_data_that_are_alike_are_refused(small: Any, videos: Path, tmp_path: Path) -> None:
    alike = (Row(name="a"), Row(name="b", settings={"train": {"log_every": 3}}))
    with pytest.raises(ConfigError, match="'a' and 'b'"):
        plan_study(small(rows=alike), tmp_path)
    data = (DataEntry(name="x"), DataEntry(name="y", settings={"data.train": f"{videos}/"}))
    with pytest.raises(ConfigError, match="'x' and 'y'"):
        plan_study(small(data=data), tmp_path)


@pytest.mark.bad_input
@pytest.mark.parametrize("setting", [{"data.group": r"(\w)\."}, {"data.folds": 20}])
def test_too_few_videos_or_groups_are_found_before_anything_runs(
    small: Any, tmp_path: Path, setting: dict[str, Any]
) -> None:
    if "data.group" in setting:
        setting = {"data.group": r"()bright|()dark"}
    with pytest.raises(ConfigError):
        run_study(small(rows=(Row(name="a", settings=setting),)), output=tmp_path / "out", code=CODE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "cause",
    [
        OSError(28, "No space left on device"),
        # as safetensors says it
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_ends_the_study_which_continues(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: Exception
) -> None:
    calls = []

    def full(config: Any, **options: Any) -> Any:
        calls.append(config)
        raise ConfigError("cannot be written") from cause

    def gone(config: Any, **options: Any) -> Any:
        raise VideoError("a.mp4", "it is gone")

    monkeypatch.setattr("kinescan.studies.job.train", full)
    with pytest.raises(KinescanError, match=r"0 of 2"):
        run_study(small(), output=tmp_path, code=CODE)
    assert len(calls) == 1
    monkeypatch.setattr("kinescan.studies.job.train", gone)
    with pytest.raises(KinescanError, match=r"a\.mp4"):
        run_study(small(), output=tmp_path, code=CODE)
    assert "a.mp4" in (tmp_path / "study.md").read_text()
    monkeypatch.setattr("kinescan.studies.job.train", train)
    assert run_study(small(), output=tmp_path, code=CODE).is_finished


def test_results_of_other_code_settings_and_videos_are_kept_apart_and_named(
    small: Any, videos: Path, tmp_path: Path
) -> None:
    data = tmp_path / "videos"
    shutil.copytree(videos, data)
    rows = (Row(name="a", settings={"data.train": str(data)}),)
    first = run_study(small(rows=rows), output=tmp_path / "out", code=CODE)
    assert not first.notes
    other = run_study(small(rows=rows), output=tmp_path / "out", code="another")
    assert (len(other.notes), CODE in other.notes[0]) == (1, True)
    assert other.runs[0].folder != first.runs[0].folder
    # with any code, what is there counts, and nothing runs
    third = run_study(small(rows=rows), output=tmp_path / "out", code="a third", any_code=True)
    assert third.runs[0] in (first.runs[0], other.runs[0])
    assert any(third.runs[0].code in note for note in third.notes)
    # a moved folder holds the same videos
    data.rename(tmp_path / "moved")
    moved = (Row(name="a", settings={"data.train": str(tmp_path / "moved")}),)
    assert run_study(small(rows=moved), output=tmp_path / "out", code=CODE).runs == first.runs
    # changed ones are others
    shutil.copy(tmp_path / "moved/bright/0.mp4", tmp_path / "moved/bright/1.mp4")
    changed = read_study(tmp_path / "out", code=CODE)
    assert (changed.runs, len(changed.notes)) == ((), 1)


def test_a_preparation_is_trained_once_for_each_seed(small: Any, tmp_path: Path) -> None:
    stills = Preparation(
        name="stills", recipe={"model": "vit_ti16"}, stills_per_epoch=4, settings={"optim.epochs": 1, **SMALL_STILLS}
    )
    rows = (Row(name="with"), Row(name="lower", settings={"optim.lr": 1e-4}), Row(name="without", prepare="none"))
    study = small(rows=rows, preparations=(stills,), prepare="stills")
    result = run_study(study, output=tmp_path, code=CODE)
    assert len(list((tmp_path / "prepared/stills").iterdir())) == 1
    weights = [load_recipe(Path(run.folder) / "recipe.toml").model.weights for run in result.runs]
    assert weights[0] == weights[1] != weights[2] == ""
    twice = (Row(name="a", settings={"model.weights": "x"}),)
    with pytest.raises(ConfigError, match=r"model\.weights"):
        plan_study(small(rows=twice, preparations=(stills,), prepare="stills"))


def test_weights_of_one_seed_are_trained_once_for_all_runs(small: Any, tmp_path: Path) -> None:
    stills = Preparation(
        name="stills",
        recipe={"model": "vit_ti16"},
        stills_per_epoch=4,
        settings={"optim.epochs": 1, **SMALL_STILLS},
        seed=7,
    )
    study = small(rows=(Row(name="one"),), seeds=(0, 1), preparations=(stills,), prepare="stills")
    plan = plan_study(study, tmp_path, code=CODE)
    [prepared] = plan.preparations
    assert prepared.seed == prepared.config.seed == 7
    assert [job.config.seed for job in plan.jobs] == [0, 1]
    with pytest.raises(ConfigError, match="seed"):
        replace(stills, seed=-2)


def test_studies_with_a_shared_folder_do_what_is_the_same_once(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(config: Any, **options: Any) -> Any:
        calls.append(config.optim.lr)
        return train(config, **options)

    monkeypatch.setattr("kinescan.studies.job.train", counted)
    made = {"kind": "motion", "pairs": ["horizontal"], "train_per_class": 2, "test_per_class": 1}
    data = DataEntry(name="moves", make={**made, "frame_size": 32, "num_frames": 4, "shake_pixels": 0.0})
    rows = (Row(name="full", settings={"optim.lr": 1e-2}), Row(name="low", settings={"optim.lr": 1e-4}))
    first = small(rows=rows, data=(data,), shared=str(tmp_path / "shared"))
    renamed = (Row(name="after block 1", settings={"optim.lr": 1e-2}),)
    second = replace(first, name="other", rows=renamed, data=(replace(data, name="moves"),))
    one = run_study(first, output=tmp_path / "one", code=CODE)
    other = run_study(second, output=tmp_path / "other", code=CODE)
    assert calls == [1e-2, 1e-4]
    assert [run.row for run in other.runs] == ["after block 1"]
    assert other.runs[0].scores == one.runs[0].scores
    assert len(list((tmp_path / "shared/data").glob("*/meta.json"))) == 1
    assert not other.notes
    assert {path.name for path in (tmp_path / "one").iterdir() if path.is_dir()} == set()
    assert read_study(tmp_path / "other", code=CODE).runs == other.runs
    later = read_study(tmp_path / "other", code="another")
    assert later.runs == ()
    assert CODE in later.notes[0]
    run_study(tmp_path / "other", code="another", any_code=True)
    assert calls == [1e-2, 1e-4]


def test_files_for_papers_and_spreadsheets(small: Any, tmp_path: Path) -> None:
    rows = (Row(name="R&D_1 | <b>", columns={"published %": 71.5}), Row(name="two", settings={"optim.lr": 1e-2}))
    result = run_study(small(rows=rows, seeds=(0, 1), metrics=("top1", "top5")), output=tmp_path, code=CODE)
    lines = list(csv.DictReader((tmp_path / "study.csv").read_text().splitlines()))
    assert [(line["row"], line["metric"], line["n"]) for line in lines] == [
        *(("R&D_1 | <b>", metric, "2") for metric in ("top1", "top5")),
        *(("two", metric, "2") for metric in ("top1", "top5")),
    ]
    cell = result.cell("two", "", "top1")
    assert cell.difference is not None
    assert float(lines[2]["difference"]) == cell.difference.mean
    runs = list(csv.DictReader((tmp_path / "runs.csv").read_text().splitlines()))
    assert [float(line["top1"]) for line in runs] == [run.scores["top1"] for run in result.runs]
    latex = (tmp_path / "study.tex").read_text()
    assert all(
        text in latex for text in (r"R\&D\_1 | \textless{}b\textgreater{}", r"published \%", r"\toprule", r"\pm")
    )
    assert latex.count(" & ") == 3 * 5
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "study.md").read_text()
    assert escape_markdown(rows[0].name) in page
    assert "71.5" in page


def test_several_processes_give_what_one_does(small: Any, tmp_path: Path) -> None:
    study = small(seeds=(0, 1))
    one = run_study(study, output=tmp_path / "one", code=CODE)
    two = run_study(study, output=tmp_path / "two", processes=2, code=CODE)
    # Each has its part of the threads, on which the last digits depend.
    for alone, beside in zip(one.runs, two.runs, strict=True):
        assert beside.scores == pytest.approx(alone.scores, rel=1e-3, abs=1e-6)
    assert {run.status for run in two.runs} == {"done"}


def test_a_preparation_starts_from_another_and_from_data_that_makes_itself(small: Any, tmp_path: Path) -> None:
    stills = Preparation(
        name="stills", recipe={"model": "vit_ti16"}, stills_per_epoch=4, settings={"optim.epochs": 1, **SMALL_STILLS}
    )
    made = {
        "kind": "motion",
        "train_per_class": 2,
        "test_per_class": 1,
        "frame_size": 32,
        "num_frames": 4,
        "workers": 1,
    }
    study = small(rows=(Row(name="one"),))
    settings = {key: value for key, value in study.settings.items() if key != "data.train"}
    motion = Preparation(
        name="motion", kind="train", recipe=study.recipe, make=made, prepare="stills", seed=0, settings=settings
    )
    study = replace(study, preparations=(stills, motion), prepare="motion")
    result = run_study(study, output=tmp_path, code=CODE)
    plan = plan_study(study, tmp_path, code=CODE)
    assert [found.name for found in plan.preparations] == ["stills", "motion"]
    prepared = load_recipe(plan.preparations[1].folder / "recipe.toml")
    assert prepared.model.weights.startswith(str(plan.preparations[0].folder))
    assert Path(prepared.data.train).is_relative_to(tmp_path / "data")
    run = load_recipe(Path(result.runs[0].folder) / "recipe.toml")
    assert run.model.weights.startswith(str(plan.preparations[1].folder))
    assert run_study(tmp_path, code=CODE).runs == result.runs
    other = replace(study, preparations=(replace(stills, stills_per_epoch=8), motion))
    changed = plan_study(other, tmp_path, code=CODE)
    assert changed.jobs[0].key != plan.jobs[0].key, "a result depends on all that its weights come from"


def test_what_waits_for_a_preparation_in_vain_is_named(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, videos: Path
) -> None:
    def broken(config: Any, **options: Any) -> Any:
        raise ConfigError("gone")

    monkeypatch.setattr("kinescan.studies.job.train", broken)
    study = small()
    parts = [
        Preparation(name=name, kind="train", recipe=study.recipe, settings=study.settings, prepare=before)
        for name, before in (("first", ""), ("second", "first"))
    ]
    study = replace(study, preparations=tuple(parts), prepare="second")
    with pytest.raises(KinescanError):
        run_study(study, output=tmp_path, code=CODE)
    failed = json.loads((tmp_path / "study.json").read_text())["failed"]
    assert sorted(failed) == ["first / seed 0", "one / seed 0", "second / seed 0", "two / seed 0"]


def test_each_fold_is_held_out_once_and_the_last_checkpoint_is_scored(small: Any, tmp_path: Path) -> None:
    study = small(rows=(Row(name="one"),), data=(DataEntry(name="own", folds=3),))
    study = replace(study, settings={**study.settings, "optim.epochs": 2, "train.eval_every": 1})
    result = run_study(study, output=tmp_path, code=CODE, overrides=["data.folds=2"])
    assert result.data == ("own, fold 1", "own, fold 2", "all data")
    held_out = [
        [video["id"] for video in json.loads((Path(run.folder) / "videos.json").read_text())["held_out"]]
        for run in result.runs
    ]
    assert len(held_out[0]) == len(held_out[1]) == 6
    assert not set(held_out[0]) & set(held_out[1])
    for run in result.runs:
        assert run.best_epoch is None
        assert not run.notes
        assert load_recipe(Path(run.folder) / "recipe.toml").evaluation.checkpoint == "last"
    asked = replace(study, settings={**study.settings, "evaluation.checkpoint": "best"})
    chosen = replace(study, settings={**study.settings, "data.validation_ratio": 0.3, "data.group": ""})
    for other in (asked, chosen):
        assert {job.config.evaluation.checkpoint for job in plan_study(other, tmp_path).jobs} == {"best"}


def test_a_run_with_one_evaluation_has_chosen_nothing_whatever_its_record_says(small: Any, tmp_path: Path) -> None:
    [run, _] = run_study(small(), output=tmp_path, code=CODE).runs
    record = Path(run.folder) / "study_run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "notes": [CHOSEN_ON_THESE, "another"]}))
    assert read_study(tmp_path, code=CODE).runs[0].notes == ("another",)


def test_rows_that_learn_from_few_clips_and_nothing_before_are_told_of(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small()
    [hint] = hints(plan_study(study, tmp_path))
    assert "2 of 2" in hint
    assert "own_motion_cpu" in hint
    with monkeypatch.context() as changed:
        changed.setattr("kinescan.studies.run.FEW_CLIPS", 2)
        assert not list(hints(plan_study(study, tmp_path)))
    stills = Preparation(
        name="stills", recipe={"model": "vit_ti16"}, stills_per_epoch=4, settings={"optim.epochs": 1, **SMALL_STILLS}
    )
    assert not list(hints(plan_study(replace(study, preparations=(stills,), prepare="stills"), tmp_path)))
