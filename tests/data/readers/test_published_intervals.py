"""Labels with a start and an end as data sets publish them: tiny copies of their layouts."""

import json
from pathlib import Path

import pytest
import torch

from kinescan.data.interval_layouts import find_interval_layout, interval_held_out_name
from kinescan.data.interval_listing import read_intervals
from kinescan.data.intervals import IntervalTable
from kinescan.data.readers.video_names import VideoNames
from kinescan.data.video import write_video
from kinescan.errors import ConfigError

VIDEOS = (
    "v_one.mp4",
    "deep/two.mp4",
    "P03/cam01/P03_tea.mp4",
    "P20/stereo/P20_tea_ch0.mp4",
    "P20/stereo/P20_tea_ch1.mp4",
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 3 s (30 frames)."""
    root = tmp_path_factory.mktemp("videos")
    for name in VIDEOS:
        write_video(root / name, torch.zeros(30, 3, 16, 16, dtype=torch.uint8), fps=10)
    return root


def rows(table: IntervalTable) -> list[tuple[str, str, float, float]]:
    return [
        (video.video_id, item.label, round(item.start_seconds, 6), round(item.end_seconds, 6))
        for video in table.videos
        for item in video.intervals
    ]


def write_activitynet(folder: Path, **entries: object) -> Path:
    file = folder / "labels.json"
    file.write_text(json.dumps({"version": "1", "database": entries}))
    return file


def entry(subset: str, *annotations: object) -> dict[str, object]:
    return {"subset": subset, "duration": 3.0, "annotations": list(annotations)}


def span(start: object, end: object, label: object = "fall") -> dict[str, object]:
    return {"segment": [start, end], "label": label}


def test_activitynet_is_read(videos: Path, tmp_path: Path) -> None:
    file = write_activitynet(
        tmp_path,
        one=entry("training", span(0.5, 1.25), span(2, 9, "run")),
        v_two=entry("Validation", span(0, 1)),
        gone=entry("training", span(0, 1)),
        other=entry("testing"),
    )
    assert find_interval_layout(file) == "activitynet"
    assert interval_held_out_name(file) == "validation"
    table = read_intervals(file, root=videos)
    assert rows(table) == [("one", "fall", 0.5, 1.25), ("one", "run", 2.0, 3.0)]
    assert (table.missing, table.problems) == (("gone",), ())
    assert "1 intervals" in table.notes[0]
    assert rows(read_intervals(file, root=videos, part="test")) == [("v_two", "fall", 0.0, 1.0)]


def test_activitynet_lists_what_is_wrong(videos: Path, tmp_path: Path) -> None:
    bad = [span(2, 1), span(-1, 1), span(1, None), span(1, float("nan")), span(1, 2, None), {"segment": [1]}, "x"]
    file = write_activitynet(tmp_path, one=entry("", span(0.5, 1.25), *bad))
    table = read_intervals(file, root=videos)
    assert rows(table) == [("one", "fall", 0.5, 1.25)]
    assert len(table.problems) == 7
    assert all(f"one, annotation {number}:" in " ".join(map(str, table.problems)) for number in range(2, 9))
    with pytest.raises(ConfigError, match=r"1 videos .*the.*lost.*data.root"):
        read_intervals(write_activitynet(tmp_path, lost=entry("", span(0, 1))), root=videos)
    for content in ({"database": {}}, {"database": []}, [1]):
        file.write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=r"labels.json"):
            read_intervals(file, root=videos, reader="activitynet")


@pytest.fixture
def mstcn(tmp_path: Path) -> Path:
    (tmp_path / "groundTruth").mkdir()
    (tmp_path / "splits").mkdir()
    labels = ["background"] * 5 + ["pour"] * 10 + ["stir"] * 15
    (tmp_path / "groundTruth/one.txt").write_text("\n".join(labels) + "\n")
    (tmp_path / "groundTruth/two.txt").write_text("\n".join(labels[::-1]))
    (tmp_path / "mapping.txt").write_text("0 background\n1 stir\n2 pour\n3 take\n")
    (tmp_path / "splits/train.split1.bundle").write_text("one.txt\nlost.txt\n")
    (tmp_path / "splits/test.split1.bundle").write_text("#groundTruth/two.txt\n")
    return tmp_path


def test_mstcn_folders_are_read_by_the_clock_of_the_video(videos: Path, mstcn: Path) -> None:
    assert find_interval_layout(mstcn) == "mstcn"
    assert interval_held_out_name(mstcn) == "test"
    table = read_intervals(mstcn, root=videos)
    assert rows(table) == [("one", "pour", 0.5, 1.5), ("one", "stir", 1.5, 3.0)]
    assert (table.classes, table.missing, table.problems) == (("stir", "pour", "take"), ("lost",), ())
    test = read_intervals(mstcn, root=videos, part="test")
    assert rows(test) == [("two", "stir", 0.0, 1.5), ("two", "pour", 1.5, 2.5)]
    with pytest.raises(ConfigError, match=r"no train.split2.bundle for data.split = 2. There are: test.split1"):
        read_intervals(mstcn, root=videos, split=2)


def test_mstcn_folders_with_something_wrong_are_refused(videos: Path, mstcn: Path) -> None:
    file = mstcn / "groundTruth/one.txt"
    file.write_text("pour\n" * 60)
    [problem] = read_intervals(mstcn, root=videos).problems
    assert "30 frames and 60 labels" in problem.reason
    assert "20" in problem.reason
    file.write_text("pour\n\npour\n")
    [problem] = read_intervals(mstcn, root=videos).problems
    assert (problem.line, "label" in problem.reason) == (2, True)
    file.write_text("pour\n" * 10 + "shake\n" * 10 + "peel\n" * 10)
    problems = read_intervals(mstcn, root=videos).problems
    assert [problem.line for problem in problems] == [11, 21]
    assert ["'shake'" in problems[0].reason, "'peel'" in problems[1].reason] == [True, True]
    file.unlink()
    assert "one.txt" in read_intervals(mstcn, root=videos).problems[0].reason
    (mstcn / "mapping.txt").write_text("background 0\n")
    with pytest.raises(ConfigError, match=r"mapping.txt, line 1: .*0 background"):
        read_intervals(mstcn, root=videos, part="test")
    with pytest.raises(ConfigError, match="groundTruth"):
        read_intervals(videos, reader="mstcn")


def test_thumos_is_read(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "Diving_val.txt").write_text("v_one  0.5   1.2 \nv_one 2.0 2.5\nlost 1.0 2.0\n\n")
    (tmp_path / "Jump_val.txt").write_text("two 0.0 9.0\n")
    (tmp_path / "Diving_test.txt").write_text("two 0.5 1.0\n")
    (tmp_path / "Ambiguous_val.txt").write_text("v_one 1.5 1.8\n")
    assert find_interval_layout(tmp_path) == "thumos14"
    assert interval_held_out_name(tmp_path) == "test"
    table = read_intervals(tmp_path, root=videos)
    assert rows(table) == [("two", "Jump", 0.0, 3.0), ("v_one", "Diving", 0.5, 1.2), ("v_one", "Diving", 2.0, 2.5)]
    assert (table.classes, table.missing) == (("Diving", "Jump"), ("lost",))
    assert "Ambiguous_val.txt is not used" in table.notes
    assert rows(read_intervals(tmp_path, root=videos, part="test")) == [("two", "Diving", 0.5, 1.0)]
    (tmp_path / "Jump_val.txt").write_text("two 2.0 1.0\ntwo 1 2 3\n")
    assert [problem.line for problem in read_intervals(tmp_path, root=videos).problems] == [1, 2]


def test_the_segmentation_of_breakfast_is_read(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "tea").mkdir()
    (tmp_path / "tea/P03_cam01_P03_tea.txt").write_text("1-5 SIL\n6-20 take_cup\n21-30 SIL\n")
    (tmp_path / "tea/P20_stereo_P20_tea.txt").write_text("1-29 pour_water \n")
    assert find_interval_layout(tmp_path) == "breakfast_segmentation"
    table = read_intervals(tmp_path, root=videos, part="test")
    expected = [("SIL", 0.0, 0.5), ("take_cup", 0.5, 2.0), ("SIL", 2.0, 3.0)]
    assert rows(table) == [("P03_cam01_P03_tea", *span) for span in expected]
    train = read_intervals(tmp_path, root=videos)
    assert rows(train) == [("P20_stereo_P20_tea", "pour_water", 0.0, 2.9)]
    assert train.videos[0].path.name == "P20_tea_ch0.mp4"
    (tmp_path / "tea/P20_stereo_P20_tea.txt").write_text("1-29 pour_water\n30 SIL\n5-2 SIL\n")
    assert [problem.line for problem in read_intervals(tmp_path, root=videos).problems] == [2, 3]
    with pytest.raises(ConfigError, match=r"data.split.*\[1, 5\]"):
        read_intervals(tmp_path, root=videos, split=6)


def test_names_find_the_video_that_shares_most_folders(tmp_path: Path) -> None:
    for name in ("a/x.mp4", "b/x.mp4", "y.mkv", "c/z.mp4", "c/z.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = VideoNames(tmp_path)
    found = {
        name: names.find(name) for name in ("x", "b/x.mp4", "C:\\clips\\b\\x.mp4", "b_x", "y.mp4", "z", "z.avi", "")
    }
    relative = {name: path and path.relative_to(tmp_path).as_posix() for name, path in found.items()}
    assert relative == {
        "x": None,
        "b/x.mp4": "b/x.mp4",
        "C:\\clips\\b\\x.mp4": "b/x.mp4",
        "b_x": "b/x.mp4",
        "y.mp4": "y.mkv",
        "z": None,
        "z.avi": "c/z.avi",
        "": None,
    }
    assert len(names.all_of("x")) == 2
    with pytest.raises(ConfigError, match="folder"):
        VideoNames(tmp_path / "lost")
