from pathlib import Path

import pytest
from tests.mentions import mentions

from kinescan.data.datasets import split_items
from kinescan.data.listing import VideoItem, list_videos, read_items
from kinescan.errors import ConfigError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def labelled(items: list[VideoItem], classes: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(item.video_id, classes[item.label]) for item in items]


def test_folder_names_are_classes(tmp_path: Path) -> None:
    touch(tmp_path, "run/b.mp4", "run/a.WEBM", "jump/deep/er/c.avi", "jump/notes.txt", "jump/.hidden.mp4")
    touch(tmp_path, ".git/d.mp4", "__MACOSX/e.mp4", "docs/readme.md", "loose.mp4")
    items, classes = read_items(tmp_path)
    assert classes == ("jump", "run")
    assert labelled(items, classes) == [("jump/deep/er/c.avi", "jump"), ("run/a.WEBM", "run"), ("run/b.mp4", "run")]
    assert items[0].path == tmp_path / "jump/deep/er/c.avi"


def test_given_classes_keep_their_numbers(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4")
    items, classes = read_items(tmp_path, classes=["walk", "run"])
    assert classes == ("walk", "run")
    assert items[0].label == 1


def test_class_that_is_not_given_is_named_with_the_closest(tmp_path: Path) -> None:
    touch(tmp_path, "runing/a.mp4", "walk/b.mp4")
    with pytest.raises(ConfigError, match=r"label 'runing'.*2.*'running'\?"):
        read_items(tmp_path, classes=["running", "walk"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "folder"),
        (["a.mp4", "b.mp4"], "2.*videos"),
        (["run/a.txt"], "folder"),
        (["test/run/b.mp4"], "train"),
    ],
)
def test_folder_without_classes_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(ConfigError, match=message):
        read_items(tmp_path)


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder"):
        read_items(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text",
    [
        "a.mp4,jump\nsub dir/b.mp4,run\n",
        "path,label\na.mp4,jump\nsub dir/b.mp4,run\n",
        "id,label,split,path\n0,jump,x,a.mp4\n1,run,y,sub dir/b.mp4\n",
        '"a.mp4","jump"\n"sub dir/b.mp4" , run\n\n',
        "a.mp4\tjump\r\nsub dir/b.mp4\trun\r\n",
        "a.mp4;jump\nsub dir/b.mp4;run\n",
        "a.mp4 jump\nsub dir/b.mp4 run",
        "\ufeffvideo,class\na.mp4,jump\nsub dir/b.mp4,run\n",
    ],
)
def test_lists_of_many_forms_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.csv").write_text(text, encoding="utf-8", newline="")
    items, classes = read_items(tmp_path / "list.csv")
    assert classes == ("jump", "run")
    assert labelled(items, classes) == [("a.mp4", "jump"), ("sub dir/b.mp4", "run")]
    assert items[1].path == tmp_path / "sub dir/b.mp4"
    items, _ = read_items(tmp_path / "list.csv", root="/data")
    assert items[0].path == Path("/data/a.mp4")


def test_texts_may_hold_commas_in_quotes(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('a.mp4,"Moving [something] up, then down"\n')
    assert read_items(tmp_path / "list.csv")[1] == ("Moving [something] up, then down",)


def test_numbers_are_class_numbers(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.mp4 2\nb.mp4 10\n")
    items, classes = read_items(tmp_path / "list.txt")
    assert len(classes) == 11
    assert [item.label for item in items] == [2, 10]
    items, classes = read_items(tmp_path / "list.txt", classes=[f"class {number}" for number in range(20)])
    assert classes[items[1].label] == "class 10"
    with pytest.raises(ConfigError, match=r"label '10'.*4.*0.*3"):
        read_items(tmp_path / "list.txt", classes=["a", "b", "c", "d"])


def test_names_that_are_numbers_win_over_places(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.mp4 7\nb.mp4 3\n")
    items, _ = read_items(tmp_path / "list.txt", classes=["7", "3"])
    assert [item.label for item in items] == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists"),
        ("path,label\n", "lists"),
        ("a.mp4,run\nb.mp4\n", "line 2.*'b.mp4'"),
        ("a.mp4,run\n\nb.mp4,\n", "line 3.*expected"),
        ("a.mp4,run\na.mp4,jump\n", "a.mp4.*'run'.*'jump'"),
    ],
)
def test_wrong_lists_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_items(tmp_path / "list.csv")


def test_repeated_lines_are_taken_once_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "list.csv").write_text("a.mp4,run\nb.mp4,run\na.mp4,run\na.mp4,run\n")
    items, _ = read_items(tmp_path / "list.csv")
    assert [item.video_id for item in items] == ["a.mp4", "b.mp4"]
    assert mentions(caplog.text, "lists 1", "a.mp4")
    found = list_videos(tmp_path / "list.csv")
    assert found.repeated == ("a.mp4",)
    assert repr(found) == "VideoList(2 videos, 1 classes, 2 missing)"


def test_wrong_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes("a.mp4,müde\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"UTF-8 text.*UTF-8"):
        read_items(tmp_path / "list.csv")


def test_list_that_cannot_be_opened_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.csv").write_text("a.mp4,run\n")

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ConfigError, match=r"Permission denied\)"):
        read_items(tmp_path / "list.csv")


def test_reader_split_and_kind_of_source_are_checked(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4", "list.csv")
    with pytest.raises(ConfigError, match=r"'ucf_101'.*'ucf101'\?"):
        read_items(tmp_path, reader="ucf_101")
    with pytest.raises(ConfigError, match=r"data\.split.*\[1, 3\].*4"):
        read_items(tmp_path, reader="ucf101", split=4)
    with pytest.raises(ConfigError, match=r"data\.split.*\[1, 1\].*2"):
        read_items(tmp_path, split=2)
    with pytest.raises(ConfigError, match=r"list\.csv.*'ssv2'"):
        read_items(tmp_path / "list.csv", reader="ssv2")
    with pytest.raises(ConfigError, match="exist"):
        read_items(tmp_path, reader="list")
    assert read_items(tmp_path, reader="folder")[1] == ("run",)


def test_class_given_twice_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4")
    with pytest.raises(ConfigError, match="class 'run'"):
        read_items(tmp_path, classes=["run", "run"])


def videos(counts: list[int]) -> list[VideoItem]:
    return [
        VideoItem(Path(f"{label}/{index}.mp4"), label, f"{label}/{index}.mp4")
        for label, count in enumerate(counts)
        for index in range(count)
    ]


def test_split_keeps_shares_and_both_sides() -> None:
    items = videos([1, 2, 3, 10, 100])
    training, held_out = split_items(items, 0.2, seed=0)
    assert [sum(item.label == label for item in held_out) for label in range(5)] == [0, 1, 1, 2, 20]
    assert sorted(training + held_out, key=items.index) == items
    assert training == [item for item in items if item in training]


def test_split_depends_on_seed_and_ids_only() -> None:
    items = videos([50, 50])
    first = split_items(items, 0.2, seed=0)[1]
    assert {item.video_id for item in split_items(items[::-1], 0.2, seed=0)[1]} == {item.video_id for item in first}
    assert split_items(items, 0.2, seed=1)[1] != first
    more = {item.video_id for item in split_items(items + videos([0, 0, 30]), 0.2, seed=0)[1] if item.label < 2}
    assert more == {item.video_id for item in first}


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1])
def test_split_refuses_ratios_out_of_range(ratio: float) -> None:
    with pytest.raises(ConfigError, match=r"held_out_ratio.*0.*1"):
        split_items(videos([4]), ratio, seed=0)
