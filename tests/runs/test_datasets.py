"""Published data sets through the command line: tiny copies of their layouts, trained on and evaluated."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.mentions import mentions

from kinescan.config import DataConfig, RunConfig, build_run
from kinescan.data.datasets import VideoItem
from kinescan.data.video import write_video
from kinescan.errors import ConfigError
from kinescan.runs.datasets import evaluated_on, make_training_set, read_videos

LABELS = {"Pushing something from left to right": "0", "Holding something": "1"}


def video(path: Path, level: int, **options: Any) -> None:
    write_video(path, torch.full((8, 3, 32, 32), level, dtype=torch.uint8), fps=8, **options)


def write_ssv2(root: Path) -> None:
    templates = ("Pushing [something] from left to right", "Holding [something]")
    for name, ids in (("train", range(4)), ("validation", range(4, 6))):
        entries = [{"id": str(number), "label": "", "template": templates[number % 2]} for number in ids]
        (root / f"{name}.json").write_text(json.dumps(entries))
        for number in ids:
            video(root / f"videos/{number}.webm", 200 * (number % 2), codec="libvpx-vp9")
    (root / "labels.json").write_text(json.dumps(LABELS))


def write_ucf101(root: Path) -> None:
    (root / "classInd.txt").write_text("1 YoYo\n2 Archery\n")
    names = {
        (label, group): f"{label}/v_{label}_g{group:02d}_c01.avi" for label in ("YoYo", "Archery") for group in (1, 2)
    }
    (root / "trainlist02.txt").write_text(f"{names['YoYo', 2]} 1\n{names['Archery', 2]} 2\n")
    (root / "testlist02.txt").write_text(f"{names['YoYo', 1]}\n{names['Archery', 1]}\nArchery/v_Archery_g07_c01.avi\n")
    for (label, _), name in names.items():
        video(root / "UCF-101" / name, 200 * (label == "YoYo"), codec="mpeg4")


@pytest.mark.parametrize(
    ("reader", "classes", "num_test", "num_unreadable"),
    [("ssv2", list(LABELS), 2, 0), ("ucf101", ["YoYo", "Archery"], 2, 1)],
)
def test_train_and_eval_on_a_published_layout(
    kinescan: Any,
    train_arguments: list[str],
    tmp_path: Path,
    reader: str,
    classes: list[str],
    num_test: int,
    num_unreadable: int,
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    {"ssv2": write_ssv2, "ucf101": write_ucf101}[reader](root)
    settings = [f"data.train={root}", f"data.reader={reader}", f"data.split={2 if reader == 'ucf101' else 1}"]
    words = [word for setting in [*settings, "optim.epochs=1"] for word in ("--set", setting)]
    trained = kinescan(*train_arguments, *words, "--output", tmp_path / "run", "--json")
    assert trained.exit_code == 0, trained.stderr
    said = json.loads(trained.stdout)
    assert (said["num_videos"], len(said["unreadable_test"])) == (num_test, num_unreadable)
    config = json.loads((tmp_path / "run/checkpoints/best/config.json").read_text())
    assert config["labels"] == classes
    evaluated = kinescan("eval", tmp_path / "run", "--json")
    assert evaluated.exit_code == 0, evaluated.stderr
    report = json.loads(evaluated.stdout)
    assert report["top1"] == said["top1"]
    assert report["data"].startswith(f"the test part of {root} ({reader}, split ")


def test_own_test_data_wins_over_the_published_part(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_ssv2(tmp_path / name)
    config = build_run({"data": {"reader": "ssv2", "train": str(tmp_path / "a"), "test": str(tmp_path / "b")}})
    training, held_out, classes = read_videos(config)
    assert (len(training), len(held_out), classes) == (4, 2, tuple(LABELS))
    assert held_out[0].path.is_relative_to(tmp_path / "b")
    assert evaluated_on(config) == str(tmp_path / "b")


def test_what_is_mirrored_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    config = build_run({"augment": {"flip_rate": 0.5}})
    items = [VideoItem(tmp_path / "a.mp4", 0, "a")]
    make_training_set(config, items, ["left", "right", "still", "turn left"])
    assert mentions(caplog.text, "2", "direction")
    assert mentions(caplog.text, "1", "['turn left']")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reader": "ssv3"}, r"data: unknown reader 'ssv3'\. Did you mean 'ssv2'\?"),
        ({"split": 0}, "data.split must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_run({"data": values})


def videos_of(tmp_path: Path, *names: str, **data: Any) -> Any:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return read_videos(RunConfig(data=DataConfig(train=str(tmp_path), **data)))


def test_a_folder_of_parts_is_trained_on_one_and_scored_on_the_other(tmp_path: Path) -> None:
    names = ("train/run/a.mp4", "train/jump/b.mp4", "val/run/c.mp4", "val/jump/d.mp4")
    training, held_out, classes = videos_of(tmp_path, *names)
    assert [item.video_id for item in training] == ["train/jump/b.mp4", "train/run/a.mp4"]
    assert [item.video_id for item in held_out] == ["val/jump/d.mp4", "val/run/c.mp4"]
    assert classes == ("jump", "run")
    config = RunConfig(data=DataConfig(train=str(tmp_path)))
    assert evaluated_on(config) == f"the val part of {tmp_path}"


def test_one_video_in_each_class_leaves_nothing_to_hold_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"2.*out.*data\.test"):
        videos_of(tmp_path, "run/a.mp4", "jump/b.mp4")
    videos_of(tmp_path, "run/c.mp4")
    assert mentions(caplog.text, "1", "2", "classes")


def test_a_list_of_files_that_are_elsewhere_is_refused_before_a_model_is_made(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("a.mp4,x\nb.mp4,x\nc.mp4,y\nd.mp4,y\n")
    with pytest.raises(ConfigError, match=f"4 videos.*{tmp_path / 'a.mp4'}.*data.root"):
        read_videos(RunConfig(data=DataConfig(train=str(tmp_path / "list.csv"))))


def test_a_folder_above_the_classes_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"holds 1 class \(all\).*data.train={tmp_path / 'all'}"):
        videos_of(tmp_path, "all/x/1.mp4", "all/x/2.mp4", "all/y/1.mp4", "all/y/2.mp4")


def test_videos_on_both_sides_are_refused(tmp_path: Path) -> None:
    names = ("a/run/a.mp4", "a/run/b.mp4", "a/jump/c.mp4", "b/run/d.mp4")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b/run/e.mp4").symlink_to(tmp_path / "a/run/a.mp4")
    config = RunConfig(data=DataConfig(train=str(tmp_path / "a"), test=str(tmp_path / "b")))
    with pytest.raises(ConfigError, match=r"1 of the 2 videos of .*b/run/e.mp4"):
        read_videos(config)


def test_no_data_is_not_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run/a.mp4", "run/b.mp4", "jump/c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"data\.train"):
        read_videos(RunConfig())
