"""Published data sets through the command line: tiny copies of their layouts, trained on and evaluated."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.mentions import mentions

from kinescan.config import DataConfig, RunConfig, build_run
from kinescan.data.listing import VideoItem
from kinescan.data.video import write_video
from kinescan.errors import ConfigError
from kinescan.runs.datasets import evaluated_on, is_of_intervals, make_training_set, read_clips, read_videos

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
    division = read_videos(config)
    assert (len(division.training), len(division.held_out), division.classes) == (4, 2, tuple(LABELS))
    assert division.held_out[0].path.is_relative_to(tmp_path / "b")
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
        ({"reader": "ssv3"}, r"data.*'ssv3'.*'ssv2'\?"),
        ({"split": 0}, "data.split.*1.*0"),
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
    division = videos_of(tmp_path, *names)
    assert [item.video_id for item in division.training] == ["train/jump/b.mp4", "train/run/a.mp4"]
    assert [item.video_id for item in division.held_out] == ["val/jump/d.mp4", "val/run/c.mp4"]
    assert division.classes == ("jump", "run")
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


def write_intervals(folder: Path, num_videos: int = 8) -> Path:
    """A csv of intervals over videos of two seconds; of four persons, two videos each."""
    lines = ["path,start,end,label,person"]
    for number in range(num_videos):
        video(folder / f"{number}.mp4", 100)
        lines += [f"{number}.mp4,0.1,0.4,fall,p{number // 2}", f"{number}.mp4,0.5,0.75,run,p{number // 2}"]
    file = folder / "labels.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_videos_of_intervals_are_divided_by_person(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    file = write_intervals(tmp_path)
    data: dict[str, Any] = {"train": str(file), "group": "column person", "held_out_ratio": 0.25}
    config = build_run({"data": {**data, "validation_ratio": 0.3}})
    assert config.task == "intervals"
    division = read_videos(config)
    assert is_of_intervals(division)
    sides = [{video.group for video in side} for side in (division.training, division.validation, division.held_out)]
    assert [len(side) for side in sides] == [2, 1, 1]
    assert len(set().union(*sides)) == 4
    assert (division.classes, division.chosen_on) == (("fall", "run"), division.validation)
    assert mentions(caplog.text, "held", f"0, groups {min(sides[2])}")
    with pytest.raises(ConfigError, match="start"):
        read_clips(config)

    def held_out(**values: Any) -> list[str]:
        division = read_videos(build_run({"seed": values.pop("seed", 0), "data": data | values}))
        return [video.video_id for video in division.held_out]

    assert len({tuple(held_out(seed=seed, split_seed=3)) for seed in range(4)}) == 1
    assert len({tuple(held_out(seed=seed)) for seed in range(8)}) == 1
    assert len({tuple(held_out(seed=seed, split_seed=-1)) for seed in range(8)}) > 1
    folds = [held_out(folds=4, fold=fold) for fold in range(1, 5)]
    assert sorted(name for fold in folds for name in fold) == [f"{number}.mp4" for number in range(8)]
    assert evaluated_on(build_run({"data": data | {"folds": 4, "fold": 2}})) == f"fold 2 of 4 of {file}"
    with pytest.raises(ConfigError, match="at least 5 groups"):
        held_out(folds=5)


def test_a_group_on_both_sides_is_refused_and_a_fold_without_a_class_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_intervals(tmp_path)
    test = tmp_path / "other.csv"
    test.write_text("path,start,end,label,person\n8.mp4,0,0.5,run,p3\n")
    video(tmp_path / "8.mp4", 50)
    data = {"train": str(file), "group": "column person"}
    with pytest.raises(ConfigError, match=r"1 groups .*'p3'"):
        read_videos(build_run({"data": {**data, "test": str(test)}}))
    file.write_text(file.read_text() + "8.mp4,0,0.5,wave,p9\n")
    number = next(
        fold.fold
        for fold in [build_run({"data": {**data, "folds": 5, "fold": fold}}).data for fold in range(1, 6)]
        if any(found.group == "p9" for found in read_videos(RunConfig(data=fold)).held_out)
    )
    assert mentions(caplog.text, f"fold {number}: ", "'wave'")


def test_wrong_rows_and_unknown_classes_of_intervals_end_a_run_before_it_begins(tmp_path: Path) -> None:
    file = write_intervals(tmp_path, 4)
    test = tmp_path / "other.csv"
    test.write_text("path,start,end,label\n4.mp4,0,0.5,walk\n4.mp4,0.6,0.5,run\n")
    video(tmp_path / "4.mp4", 50)
    config = build_run({"data": {"train": str(file), "test": str(test)}})
    with pytest.raises(ConfigError, match=r"other.csv: 2 rows are wrong.*line 2: .*'walk'.*line 3: "):
        read_videos(config)
    test.write_text("path,start,end,label\n3.mp4,0,0.5,run\n")
    with pytest.raises(ConfigError, match=r"1.*1 videos.*training"):
        read_videos(config)
    file.write_text("path,start,end,label\n3.mp4,,,\n4.mp4,,,\n")
    with pytest.raises(ConfigError, match="interval"):
        read_videos(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"folds": 1}, "data.folds.*0.*2.*1"),
        ({"folds": 3, "fold": 4}, r"data.fold.*\[1, 3\].*4"),
        ({"folds": 3, "test": "x"}, "folds"),
        ({"validation_ratio": 1.0}, "data.validation_ratio.*0.*1.*1.0"),
        ({"split_seed": -2}, "data.split_seed must be 0 to 4294967295, or -1 .*got -2"),
        ({"group": "P"}, "data.group 'P' has 0 groups"),
    ],
)
def test_wrong_settings_of_splits_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_run({"data": values})


def test_clips_are_divided_by_a_pattern_over_their_paths(tmp_path: Path) -> None:
    names = [f"{label}/P{person}_{take}.mp4" for label in ("run", "jump") for person in range(5) for take in range(2)]
    division = videos_of(tmp_path, *names, group=r"P(\d)", validation_ratio=0.25)
    sides = [{video.group for video in side} for side in (division.training, division.validation, division.held_out)]
    assert [len(side) for side in sides] == [3, 1, 1]
    assert len(set().union(*sides)) == 5
    with pytest.raises(ConfigError, match="column"):
        videos_of(tmp_path, group="column person")
    (tmp_path / "list.csv").write_text(
        "path,label,who\n" + "".join(f"{name},{name[:3]},{name[5:7]}\n" for name in names)
    )
    config = RunConfig(data=DataConfig(train=str(tmp_path / "list.csv"), group="column who"))
    assert {video.group for video in read_videos(config).held_out} & {"P0", "P1", "P2", "P3", "P4", "0_", "1_"} != set()
    (tmp_path / "list.csv").write_text("run/P0_0.mp4,run\njump/P0_0.mp4,jump\n")
    with pytest.raises(ConfigError, match=r"no header.*'who'"):
        read_videos(config)
    (tmp_path / "list.csv").write_text("path,label,who\nrun/P0_0.mp4,run,a\njump/P0_0.mp4,jump\n")
    with pytest.raises(ConfigError, match="line 3: the column 'who' is empty"):
        read_videos(config)
