import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from kinescan.config import build_run, dump_recipe
from kinescan.data.loader import usual_workers
from kinescan.errors import CheckpointError, ConfigError
from kinescan.evaluation.predictions import read_predictions
from kinescan.inference.export import export
from kinescan.inference.predictor import predict
from kinescan.models.zoo import create_model, from_pretrained
from kinescan.preprocessing import Preprocessing
from kinescan.runs.compare import compare_reports
from kinescan.runs.evaluate import evaluate

SIZES = {"patch_size": 16, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 16, "embed_dim": 16, "image_size": 32}
SETTINGS = ["preprocessing.size=32", "preprocessing.num_frames=4", "loader.num_workers=0", "evaluation.views=4x1x1"]
CHOSEN = "was chosen as the best of its run on these same videos"


@pytest.fixture
def make_run(videos: Path, tmp_path: Path) -> Any:
    """A run's folder as `train` leaves it: a recipe and a checkpoint that was best."""

    def make(name: str, *, data: Path = videos, checkpoint: str = "best", seed: int = 0) -> Path:
        run = tmp_path / name
        torch.manual_seed(seed)
        preprocessing = Preprocessing(size=32, num_frames=4)
        model = create_model("vit_ti16", labels=("bright", "dark"), preprocessing=preprocessing, **SIZES)
        torch.nn.init.normal_(model.get_submodule("head").weight)
        model.save_pretrained(run / "checkpoints" / checkpoint)
        recipe = build_run({"model": "vit_ti16"}, [*SETTINGS, f"data.train={data}"])
        (run / "recipe.toml").write_text(dump_recipe(recipe), encoding="utf-8")
        return run

    return make


def test_eval_says_that_the_held_out_videos_chose_the_checkpoint(make_run: Any) -> None:
    run = make_run("run")
    report = evaluate(run)
    assert report.evaluation.metrics.num_videos == 2
    assert [CHOSEN in note for note in report.notes] == [True]
    assert f"**Note.** The checkpoint {CHOSEN}" in (run / "evaluation" / "report.md").read_text(encoding="utf-8")
    assert evaluate(make_run("unchosen", checkpoint="last")).notes == ()


def test_every_verb_and_function_takes_a_run_or_an_export(make_run: Any, videos: Path, tmp_path: Path) -> None:
    run, exported = make_run("run"), tmp_path / "exported"
    export(run, exported, to="torch")
    of_run, of_export = (
        evaluate(source, data=videos, views="4x1x1", allow_code=True).evaluation for source in (run, exported)
    )
    assert torch.allclose(of_run.scores, of_export.scores, atol=1e-5)
    [one] = predict(run, videos / "dark" / "0.mp4")
    [other] = predict(exported, videos / "dark" / "0.mp4", allow_code=True)
    assert one.labels == other.labels
    assert not from_pretrained(run).training
    assert torch.equal(create_model("vit_ti16", weights=run).head.weight, from_pretrained(run).head.weight)
    with pytest.raises(ConfigError, match="features"):
        evaluate(exported, data=videos, features=tmp_path / "f.safetensors", allow_code=True)


def test_eval_finds_the_runs_own_videos_in_other_data(make_run: Any, videos: Path, tmp_path: Path) -> None:
    run = make_run("run")
    assert [note.split(":")[0] for note in evaluate(run, data=videos).notes] == [
        "10 of the 12 videos are training videos of this run",
        "2 of the 12 videos chose this checkpoint as the best of its run.",
    ]
    others = tmp_path / "others"
    shutil.copytree(videos, others)
    assert evaluate(run, data=others).notes == ()
    lost = make_run("lost", data=others)
    shutil.rmtree(others)
    assert ["whether" in note for note in evaluate(lost, data=videos).notes] == [True]


def test_eval_writes_features(kinescan: Any, make_run: Any, tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    result = kinescan("eval", make_run("run"), "--features", path, "--views", "8x2x3")
    assert result.exit_code == 0, result.stderr
    with safe_open(path, "pt") as file:
        assert list(file.get_tensor("features").shape) == [2, 16]
        assert file.metadata()["views"] == "8x2x3"
    assert "| 8x2x3 |" in result.stdout


def test_eval_by_two_processes_is_that_of_one(make_run: Any, videos: Path, tmp_path: Path) -> None:
    """Eleven readable videos, one that is not; the first process writes and prints, once."""
    mixed = tmp_path / "mixed"
    shutil.copytree(videos, mixed)
    (mixed / "dark" / "3.mp4").write_text("no video")
    run = make_run("run")
    alone = evaluate(run, data=mixed, output=tmp_path / "alone")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "kinescan"]
    arguments = [
        "eval",
        str(run),
        "--data",
        str(mixed),
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "both"),
        "--json",
    ]
    done = subprocess.run([*torchrun, *arguments], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["num_videos"], said["num_unreadable"]) == (11, 1)
    expected = alone.to_json()
    exact = (
        "num_videos",
        "top1",
        "top5",
        "mean_class_accuracy",
        "classes",
        "confusions",
        "unreadable",
        "notes",
        "views",
    )
    assert {key: said[key] for key in exact} == json.loads(json.dumps({key: expected[key] for key in exact}))
    assert said["calibration_error"] == pytest.approx(expected["calibration_error"], abs=1e-5)
    one, two = (read_predictions(tmp_path / name / "predictions.jsonl") for name in ("alone", "both"))
    assert one == two


def test_eval_compare_is_for_one_process(kinescan: Any, make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = kinescan("eval", "--compare", make_run("run"), "runs/other")
    assert refused.exit_code == 2
    assert "--compare" in refused.stderr


def test_eval_compares_two_runs_on_videos_given(kinescan: Any, make_run: Any, videos: Path, tmp_path: Path) -> None:
    first, second = make_run("first"), make_run("second", seed=3)
    output = tmp_path / "comparison"
    result = kinescan("eval", "--compare", first, second, "--data", videos, "--output", output, "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    tops = [json.loads((run / "evaluation" / "report.json").read_text())["top1"] for run in (first, second)]
    assert said["difference"] == pytest.approx(tops[0] - tops[1])
    assert (said["num_videos"], said["num_only_a"], said["seed"]) == (12, 0, 0)
    assert any(note.startswith("A: 10 of the 12 videos are training videos") for note in said["notes"])
    assert json.loads((output / "comparison.json").read_text(encoding="utf-8")) == said
    text = kinescan("eval", "--compare", first, second)
    assert text.stdout == (output / "comparison.md").read_text(encoding="utf-8") + "\n"
    assert said["verdict"] in text.stdout
    assert "| videos | 12 |" in text.stdout


def test_eval_compares_the_newest_reports_and_says_where_they_differ(make_run: Any, videos: Path) -> None:
    first, second = make_run("first"), make_run("second")
    evaluate(first, data=videos, output=first)
    evaluate(first)
    evaluate(second, data=videos, views="4x2x1")
    found = compare_reports(first, second)
    assert (found.num_videos, found.num_only_b) == (2, 10)
    assert found.notes[0] == "The views differ (4x1x1 for A, 4x2x1 for B), and part of the gap may come from them."
    assert CHOSEN in found.notes[1]


def test_eval_compare_says_what_is_missing_or_too_much(
    kinescan: Any, make_run: Any, videos: Path, tmp_path: Path
) -> None:
    run = make_run("run")
    with pytest.raises(ConfigError, match=r"run.*report\.json.*predictions\.jsonl"):
        compare_reports(run, run)
    evaluate(run)
    with pytest.raises(ConfigError, match="Choose another --output"):
        compare_reports(run, run, output=run / "recipe.toml" / "deep")
    (run / "evaluation" / "report.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"report\.json.*JSON"):
        compare_reports(run, run)
    for arguments, message in (
        ([run], "--compare takes two runs and neither a model nor --features"),
        (["--features", tmp_path / "f"], "--compare takes two runs and neither a model nor --features"),
    ):
        refused = kinescan("eval", "--compare", run, run, *arguments)
        assert refused.exit_code == 2
        assert message in refused.stderr
    shutil.copytree(run / "checkpoints" / "best", tmp_path / "model")
    refused = kinescan("eval", "--compare", run, tmp_path / "model", "--data", videos)
    assert refused.exit_code == 2
    assert "folder" in refused.stderr


def test_eval_on_a_folder_of_parts_scores_the_one_that_is_held_out(make_run: Any, videos: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    shutil.copytree(videos, parts / "train")
    for label in ("dark", "bright"):
        (parts / "test" / label).mkdir(parents=True)
        (parts / "train" / label / "0.mp4").rename(parts / "test" / label / "0.mp4")
    report = evaluate(make_run("run"), data=parts)
    assert sorted(item.video_id for item in report.evaluation.items) == ["test/bright/0.mp4", "test/dark/0.mp4"]
    assert report.data == f"the test part of {parts}"


@pytest.mark.parametrize("content", ["", "[]", '{"format": 2}', '{"format": 1, "classes": [], "train": [1]}'])
def test_a_damaged_list_of_videos_is_an_error(make_run: Any, content: str) -> None:
    run = make_run("run")
    (run / "videos.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"videos\.json"):
        evaluate(run)


def test_report_and_eval_compute_in_the_precision_of_the_training(
    kinescan: Any, train_arguments: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = kinescan(*train_arguments, "--set", "train.mixed_precision=bf16", "--output", run)
    assert done.exit_code == 0, done.output
    final = json.loads((run / "report.json").read_text())
    assert final["precision"] == json.loads((run / "checkpoints/best/config.json").read_text())["trained_in"] == "bf16"
    assert "computed in bf16" in (run / "report.md").read_text()
    again, wide = evaluate(run), evaluate(run, precision="float32", output=tmp_path / "wide")
    assert (again.precision, wide.precision) == ("bf16", "float32")
    assert again.evaluation.metrics.loss == final["loss"] != wide.evaluation.metrics.loss
    assert wide.evaluation.metrics.loss == pytest.approx(final["loss"], rel=0.05)
    # of a checkpoint of an earlier version, the run's recipe says it
    config = run / "checkpoints/best/config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "trained_in"}))
    assert evaluate(run).evaluation.metrics.loss == final["loss"]
    compared = kinescan("eval", "--compare", run, tmp_path / "wide", "--json")
    assert {"bf16", "float32"} <= set(re.findall(r"\w+", json.loads(compared.stdout)["notes"][0]))


@pytest.mark.bad_input
@pytest.mark.parametrize("precision", ["fp16", "bf17"])
def test_a_precision_that_is_not_there_is_refused(make_run: Any, kinescan: Any, precision: str) -> None:
    refused = kinescan("eval", make_run("run"), "--device", "cpu", "--precision", precision)
    assert isinstance(refused.exception, SystemExit)
    assert refused.exit_code == 2
    assert precision in refused.stderr


def test_an_export_has_no_precision_to_choose(make_run: Any, videos: Path, tmp_path: Path) -> None:
    export(make_run("run"), tmp_path / "exported", to="torch")
    assert evaluate(tmp_path / "exported", data=videos, allow_code=True).to_json()["precision"] is None
    with pytest.raises(ConfigError, match="precision"):
        evaluate(tmp_path / "exported", data=videos, allow_code=True, precision="bf16")


def test_eval_reads_large_sets_with_workers(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("kinescan.data.loader.os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert [usual_workers(number) for number in (10, 100, 10_000)] == [0, 3, 8]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert usual_workers(10_000) == 4
    monkeypatch.setattr("kinescan.runs.evaluate.usual_workers", lambda number: seen.append(number) or 0)
    evaluate(make_run("run"))
    evaluate(make_run("other"), num_workers=0)
    assert seen == [2]
