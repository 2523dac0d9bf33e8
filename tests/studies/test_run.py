import json
from pathlib import Path
from typing import Any

import pytest

from kinescan.errors import ConfigError, NonFiniteError, VideoError
from kinescan.runs.train import train
from kinescan.studies import DataEntry, Row, plan_study, read_study, run_study

CODE = "0123456789ab"


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
    with pytest.raises(KeyboardInterrupt):
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


def test_a_full_disk_ends_the_study_which_continues(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(config: Any, **options: Any) -> Any:
        raise ConfigError("cannot be written") from OSError(28, "No space left on device")

    def gone(config: Any, **options: Any) -> Any:
        raise VideoError("a.mp4", "it is gone")

    monkeypatch.setattr("kinescan.studies.job.train", full)
    with pytest.raises(ConfigError):
        run_study(small(), output=tmp_path, code=CODE)
    monkeypatch.setattr("kinescan.studies.job.train", gone)
    with pytest.raises(Exception, match=r"a\.mp4"):
        run_study(small(), output=tmp_path, code=CODE)
    assert "a.mp4" in (tmp_path / "study.md").read_text()
    monkeypatch.setattr("kinescan.studies.job.train", train)
    assert run_study(small(), output=tmp_path, code=CODE).is_finished
