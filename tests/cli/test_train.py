import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.mentions import mentions

import kinescan as ks
from kinescan.config import load_recipe
from kinescan.data import loader
from kinescan.errors import ConfigError


def test_train_eval_predict_stream_and_resume(
    kinescan: Any, train_arguments: list[str], videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = kinescan(*train_arguments, "--json")
    assert trained.exit_code == 0, trained.stderr
    said = json.loads(trained.stdout)
    assert (said["output"], said["num_videos"], said["steps"]) == ("runs/tiny", 2, 6)
    assert "12 videos, 2 (20 %" in trained.stderr
    run = tmp_path / "runs" / "tiny"
    written = {path.name for path in run.iterdir()}
    assert written >= {"recipe.toml", "log.jsonl", "checkpoints", "report.json", "report.md", "confusion.png"}
    assert "unreadable.json" not in written
    assert load_recipe(run / "recipe.toml").model.options["width"] == 16

    evaluated = kinescan("eval", "--json")
    assert evaluated.exit_code == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["top1"] == said["top1"]
    assert "model: runs/tiny" in evaluated.stderr
    other = kinescan("eval", "runs/tiny", "--data", videos, "--views", "4x2x3", "--output", tmp_path / "report")
    assert other.exit_code == 0, other.stderr
    assert "| videos scored | 12 |" in other.stdout
    assert (tmp_path / "report" / "report.md").is_file()

    broken = tmp_path / "text.mp4"
    broken.write_text("no video")
    predicted = kinescan("predict", videos / "dark" / "0.mp4", videos / "bright", broken, "--json", "--explain", "maps")
    assert predicted.exit_code == 0, predicted.stderr
    predictions = json.loads(predicted.stdout)
    assert len(predictions) == 8
    assert sorted(predictions[0]["labels"]) == ["bright", "dark"]
    assert predictions[-1]["error"]
    assert Path(predictions[0]["explanation"]).is_file()
    table = kinescan("predict", videos / "dark" / "0.mp4", "--model", "runs/tiny/checkpoints/last", "--top", "1")
    assert len(table.stdout.splitlines()) == 2
    assert kinescan("predict", broken).exit_code == 1

    streamed = kinescan("stream", videos / "dark" / "0.mp4", "--every", "2", "--json")
    assert streamed.exit_code == 0, streamed.stderr
    assert [json.loads(line)["frame_index"] for line in streamed.stdout.splitlines()] == [0, 2, 4, 6]

    resumed = kinescan(*train_arguments, "--resume", "--json")
    assert resumed.exit_code == 0, resumed.stderr
    assert json.loads(resumed.stdout)["top1"] == said["top1"]
    again = kinescan(*train_arguments, "--json")
    assert json.loads(again.stdout)["output"] == "runs/tiny-2"
    assert json.loads(again.stdout)["top1"] == said["top1"]


def test_train_refuses_to_write_over_a_run(kinescan: Any, train_arguments: list[str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert kinescan(*train_arguments, "--output", output, "--set", "optim.epochs=1").exit_code == 0
    again = kinescan(*train_arguments, "--output", output)
    assert again.exit_code == 2
    assert "--resume" in again.stderr
    changed = kinescan(*train_arguments, "--output", output, "--resume", "--set", "optim.lr=0.5")
    assert changed.exit_code == 2
    assert "optim.lr was 0.0007, is 0.5" in changed.stderr
    assert tomllib.loads((output / "recipe.toml").read_text())["optim"]["epochs"] == 1


def test_a_folder_that_another_run_writes_into_is_left_alone(
    kinescan: Any, train_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    code = "import sys, time, pathlib; from kinescan.runtime.folder_lock import locked\n"
    code += "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(300)"
    command = [sys.executable, "-c", code, "runs/tiny"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            # It has no checkpoint yet, and is not free all the same.
            free = kinescan(*train_arguments, "--set", "optim.epochs=1", "--json")
            assert json.loads(free.stdout)["output"] == "runs/tiny-2"
            for refused in (
                kinescan(*train_arguments, "--output", "runs/tiny"),
                kinescan("eval", "runs/tiny-2", "--device", "cpu", "--output", "runs/tiny"),
            ):
                assert refused.exit_code == 2
                assert mentions(refused.stderr, "ConfigError: runs/tiny", f"{holder.pid} on")
        finally:
            holder.kill()
    assert not (tmp_path / "runs" / "tiny" / "recipe.toml").exists()
    assert not (tmp_path / "runs" / "tiny" / "report.json").exists()
    assert kinescan(*train_arguments, "--set", "optim.epochs=1", "--output", "runs/tiny").exit_code == 0


def test_train_leaves_a_checkpoint_on_ctrl_c_and_goes_on_from_it(
    kinescan: Any, train_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    whole = tmp_path / "whole"
    assert kinescan(*train_arguments, "--output", whole).exit_code == 0

    from kinescan.training.dataset_clips import DatasetClips

    original = DatasetClips.batches

    def interrupted(self: DatasetClips, epoch: int, first_batch: int) -> Any:
        for index, batch in enumerate(original(self, epoch, first_batch)):
            if (epoch, index) == (1, 1):
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    monkeypatch.setattr(DatasetClips, "batches", interrupted)
    stopped = kinescan(*train_arguments, "--output", output)
    assert stopped.exit_code == 1
    last = stopped.stderr.splitlines()[-1]
    assert last.startswith("TrainingInterrupted: stopped by SIGINT in epoch 2 of 2, after 5 steps. The checkpoint is")
    monkeypatch.undo()
    assert kinescan(*train_arguments, "--output", output, "--resume").exit_code == 0
    weights = [ks.from_pretrained(run / "checkpoints" / "last").state_dict() for run in (whole, output)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_train_lists_unreadable_videos_and_goes_on(
    kinescan: Any, train_arguments: list[str], videos: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(videos, copy)
    for label in ("dark", "bright"):
        for index in range(2):
            (copy / label / f"broken{index}.mp4").write_text("no video")
    output = tmp_path / "run"
    settings = ["--set", f"data.train={copy}", "--set", "data.kept_frames=8"]
    result = kinescan(*train_arguments, *settings, "--output", output, "--json")
    assert result.exit_code == 0, result.stderr
    assert mentions(result.stderr, "videos", "8")
    said = json.loads(result.stdout)
    listed = {**said["unreadable_training"], **said["unreadable_test"]}
    assert len(listed) == 4
    rows = json.loads((output / "unreadable.json").read_text())
    assert {row["path"] for row in rows} == set(said["unreadable_training"])
    assert all(row["reason"] for row in rows)
    assert str(len(rows)) in result.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.lrr=1", "ConfigError: unknown key 'optim.lrr'. Did you mean 'optim.lr'?"),
        ("model=pks4_vit_b61", "ConfigError: unknown model 'pks4_vit_b61'. Did you mean 'pks4_vit_b16'?"),
        ("model.options.widht=3", "ConfigError: pks4_vit_ti16 has no option 'widht'. Did you mean 'width'?"),
        ("data.train=nowhere", "ConfigError: nowhere does not exist in "),
        ("output=/dev/null/run", "ConfigError: output '/dev/null/run' cannot be written"),
        ('data.train=""', "ConfigError: data.train is not set."),
    ],
)
def test_train_says_in_one_line_what_is_wrong(
    kinescan: Any, train_arguments: list[str], setting: str, message: str, tmp_path: Path
) -> None:
    result = kinescan(*train_arguments, "--set", setting)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(message)
    assert not (tmp_path / "runs").exists()


def test_train_refuses_weights_of_other_classes_unless_asked(
    kinescan: Any, train_arguments: list[str], tmp_path: Path
) -> None:
    recipe, output = load_recipe(train_arguments[1], train_arguments[3::2]), tmp_path / "run"
    other = ks.create_model(
        recipe.model.name, labels=["dark", "light", "red"], preprocessing=recipe.preprocessing, **recipe.model.options
    )
    other.save_pretrained(tmp_path / "other")
    arguments = [*train_arguments, "--output", output, "--set", "optim.epochs=1"]
    arguments += ["--set", f"model.weights={tmp_path / 'other'}"]
    refused = kinescan(*arguments)
    assert refused.exit_code == 1
    said = (
        "was trained on other classes: it has 3, the data 2; only it has 'light', 'red'; only the data have 'bright'. "
        "To keep its backbone and start with a new head, ask for it: model.new_head = true."
    )
    assert said in refused.stderr
    assert not (output / "recipe.toml").exists()
    asked = kinescan(*arguments, "--set", "model.new_head=true")
    assert asked.exit_code == 0, asked.stderr
    assert ks.from_pretrained(output / "checkpoints" / "last").labels == ("bright", "dark")


def test_train_resume_refuses_other_videos_but_not_another_place(
    kinescan: Any, train_arguments: list[str], videos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    assert kinescan(*train_arguments, "--output", output, "--set", "optim.epochs=1").exit_code == 0
    moved = tmp_path / "moved"
    shutil.copytree(videos, moved)
    arguments = [*train_arguments, "--output", output, "--set", "optim.epochs=1", "--set", f"data.train={moved}"]
    resumed = kinescan(*arguments, "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert "data.train" in resumed.stderr
    shutil.copy(moved / "dark" / "0.mp4", moved / "dark" / "new.mp4")
    refused = kinescan(*arguments, "--resume")
    assert refused.exit_code == 2
    assert "training_videos was '10 videos, SHA-256 " in refused.stderr
    assert "is '11 videos, SHA-256 " in refused.stderr


def test_train_dry_run_shows_recipe_groups_memory_and_time_and_writes_nothing(
    kinescan: Any, train_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    settings = ["--set", "train.frozen=['vit.conv1.*']", "--set", "optim.lr_scales={'head.*'=10.0}"]
    shown = kinescan(*train_arguments, *settings, "--dry-run")
    assert shown.exit_code == 0, shown.stderr
    recipe, found, rest = shown.stdout.partition("pks4_vit_ti16: ")
    assert found
    assert tomllib.loads(recipe)["train"]["frozen"] == ["vit.conv1.*"]
    assert "head.weight" in rest
    assert mentions(rest, "6 steps: 2", "3, 4")
    assert mentions(rest, "GiB", "0.00, gradients 0.00, optimizer 0.00, activations 0.0")
    assert "PFLOPs of training" in rest
    assert "steps" in rest
    planned = json.loads(kinescan(*train_arguments, *settings, "--dry-run", "--json").stdout)
    groups = planned["plan"]["groups"]
    assert groups[0]["names"] == ["head.weight"]
    assert groups[0]["lr"] == pytest.approx(10 * 7e-4 * 4 / 256)
    assert sum(group["num_parameters"] for group in groups) == planned["plan"]["num_trained"]
    assert planned["plan"]["num_parameters"] - planned["plan"]["num_trained"] == 16 * 3 * 16 * 16
    assert planned["recipe"]["optim"]["lr_scales"] == {"head.*": 10.0}
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("dry_run", [True, False])
def test_an_evaluation_without_room_for_its_batches_is_found_before_the_first_step(
    dry_run: bool, kinescan: Any, train_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The final report's views may take more than a batch of training, which fits here."""
    asked = []

    def small(batch_bytes: int, num_batches: int, *, lowered: tuple[str, ...]) -> None:
        asked.append(batch_bytes)
        if batch_bytes > 5 * asked[0]:
            raise ConfigError(lowered[0])

    monkeypatch.setattr(loader, "check_shared_memory", small)
    views = ["loader.batch_size=2", "loader.num_workers=1", "evaluation.views=4x20x1"]
    output = [] if dry_run else ["--output", str(tmp_path / "run")]
    done = kinescan(
        *train_arguments, *output, *[word for each in views for word in ("--set", each)], *["--dry-run"] * dry_run
    )
    assert done.exit_code == 2, asked
    assert "evaluation.views" in done.stderr
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_train_refuses_a_single_class(kinescan: Any, train_arguments: list[str], videos: Path, tmp_path: Path) -> None:
    shutil.copytree(videos / "dark", tmp_path / "one" / "dark")
    result = kinescan(*train_arguments, "--set", f"data.train={tmp_path / 'one'}", "--output", tmp_path / "run")
    assert result.exit_code == 2
    assert "holds 1 class (dark); at least 2 are needed" in result.stderr


def test_few_videos_are_taken_several_times_an_epoch(kinescan: Any, train_arguments: list[str], tmp_path: Path) -> None:
    words = [*train_arguments, "--set", "augment.mixup_alpha=0", "--set", "augment.cutmix_alpha=0"]
    words += ["--set", "loader.batch_size=5"]  # of the ten videos
    weights = []
    for name, changes in (("two_epochs", ()), ("two_passes", ("optim.epochs=1", "data.clips_per_epoch=11"))):
        result = kinescan(*words, *(word for one in changes for word in ("--set", one)), "--output", tmp_path / name)
        assert result.exit_code == 0, result.stderr
        weights.append((tmp_path / name / "checkpoints/last/model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    planned = kinescan(*words, "--set", "data.clips_per_epoch=11", "--dry-run", "--json", "--output", tmp_path / "plan")
    assert json.loads(planned.stdout)["plan"]["steps_per_epoch"] == 4


def test_train_and_evaluate_are_functions(train_arguments: list[str], videos: Path, tmp_path: Path) -> None:
    overrides = [word for word in train_arguments[2:] if word != "--set"]
    result = ks.train(train_arguments[1], overrides=overrides, output=tmp_path / "run")
    report = ks.evaluate(tmp_path / "run", data=videos)
    assert report.evaluation.metrics.num_videos == 12
    assert result.report.evaluation.metrics.num_videos == 2


def test_evaluate_refuses_unknown_labels_and_missing_data(
    train_arguments: list[str], videos: Path, tmp_path: Path
) -> None:
    model = ks.create_model("vit_ti16", labels=["left", "right"], depth=1, width=12, image_size=32)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="'bright'"):
        ks.evaluate(tmp_path / "model", data=videos)
    with pytest.raises(ConfigError, match="evaluate"):
        ks.evaluate(tmp_path / "model")


def test_without_a_run_predict_takes_the_packaged_model_and_eval_says_what_to_name(
    kinescan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = kinescan("predict", "a.mp4")
    assert result.exit_code == 1
    assert "model: motion" in result.stderr
    assert "a.mp4" in result.stdout
    scored = kinescan("eval")
    assert (scored.exit_code, "RUN" in scored.stderr) == (2, True)


def test_folders_that_look_like_placeholders_are_labels_like_any_other(
    kinescan: Any, train_arguments: list[str], videos: Path, tmp_path: Path
) -> None:
    for index, label in enumerate(("dark", "bright")):
        shutil.copytree(videos / label, tmp_path / "data" / f"class_{index}")
    done = kinescan(*train_arguments, "--set", f"data.train={tmp_path / 'data'}", "--output", tmp_path / "run")
    assert done.exit_code == 0, done.stderr
    assert ks.from_pretrained(tmp_path / "run" / "checkpoints" / "best").labels == ("class_0", "class_1")
