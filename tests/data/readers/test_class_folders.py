from collections.abc import Callable
from pathlib import Path

import pytest

from kinescan.data import read_items
from kinescan.data.listing import choose_layout
from kinescan.errors import ConfigError


def ids(folder: Path, part: str) -> list[str]:
    return [item.video_id for item in read_items(folder, part=part)[0]]  # type: ignore[arg-type]


@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize("test", ["test", "val", "valid", "validation", "Eval"])
def test_a_folder_of_parts_is_read_as_what_it_is(touch: Callable[..., Path], train: str, test: str) -> None:
    folder = touch(f"{train}/run/a.mp4", f"{train}/jump/b.mp4", f"{test}/run/c.mp4", "notes/readme.txt")
    layout = choose_layout(folder)
    assert (layout.has_parts, layout.test_name) == (True, test)
    assert read_items(folder)[1] == ("jump", "run")
    assert ids(folder, "train") == [f"{train}/jump/b.mp4", f"{train}/run/a.mp4"]
    assert ids(folder, "test") == [f"{test}/run/c.mp4"]


def test_validation_is_held_out_before_test_and_what_is_not_used_is_said(
    touch: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = touch("train/run/a.mp4", "test/run/b.mp4", "val/run/c.mp4", "more/run/d.mp4")
    assert ids(folder, "test") == ["val/run/c.mp4"]
    assert ids(folder, "train") == ["train/run/a.mp4"]
    assert "train" in caplog.text


def test_parts_inside_of_classes_and_lists_of_parts(touch: Callable[..., Path]) -> None:
    inside = touch("a/run/train/a.mp4", "a/run/test/b.mp4", "a/jump/train/c.mp4") / "a"
    assert ids(inside, "train") == ["jump/train/c.mp4", "run/train/a.mp4"]
    assert ids(inside, "test") == ["run/test/b.mp4"]
    lists = touch("b/videos/a.mp4", "b/videos/b.mp4") / "b"
    (lists / "train.csv").write_text("videos/a.mp4,run\n")
    (lists / "test.csv").write_text("videos/b.mp4,run\n")
    assert ids(lists, "train") == ["videos/a.mp4"]
    assert ids(lists, "test") == ["videos/b.mp4"]


def test_one_part_alone(touch: Callable[..., Path]) -> None:
    folder = touch("a/train/run/a.mp4", "b/test/run/b.mp4")
    assert ids(folder / "a", "train") == ids(folder / "a", "test") == ["train/run/a.mp4"]
    assert not choose_layout(folder / "a").has_parts
    assert ids(folder / "b", "test") == ["test/run/b.mp4"]
    with pytest.raises(ConfigError, match="/train"):
        read_items(folder / "b")


def test_classes_called_train_are_classes(touch: Callable[..., Path]) -> None:
    folder = touch("train/a.mp4", "car/b.mp4")
    assert read_items(folder)[1] == ("car", "train")
    assert not choose_layout(folder).has_parts


def test_two_names_of_one_part_are_refused(touch: Callable[..., Path]) -> None:
    folder = touch("train/run/a.mp4", "training/run/b.mp4", "test/run/c.mp4")
    with pytest.raises(ConfigError, match="train"):
        read_items(folder)


@pytest.mark.parametrize(
    ("train", "test"),
    [("train_set", "test_set"), ("trainset", "testset"), ("train_256", "val_256"), ("Train Videos", "Evaluation")],
)
def test_names_of_parts_may_have_more_words(touch: Callable[..., Path], train: str, test: str) -> None:
    folder = touch(f"{train}/run/a.mp4", f"{test}/run/b.mp4")
    assert ids(folder, "train") == [f"{train}/run/a.mp4"]
    assert ids(folder, "test") == [f"{test}/run/b.mp4"]


def test_parts_by_names_of_their_own_are_said(touch: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = touch("tr/run/a.mp4", "tr/jump/b.mp4", "te/run/c.mp4", "te/jump/d.mp4")
    assert read_items(folder)[1] == ("te", "tr")
    assert "folders" in caplog.text


def test_classes_that_are_divided_in_part_are_refused(touch: Callable[..., Path]) -> None:
    folder = touch("run/train/a.mp4", "run/test/b.mp4", "jump/c.mp4")
    with pytest.raises(ConfigError, match="run"):
        read_items(folder)
    # folders beside the parts belong to none of them
    (folder / "jump/c.mp4").unlink()
    touch("run/raw/d.mp4", "jump/train/e.mp4")
    assert ids(folder, "train") == ["jump/train/e.mp4", "run/train/a.mp4"]


def test_parts_without_classes_are_no_classes(touch: Callable[..., Path]) -> None:
    folder = touch("train/a.mp4", "train/b.mp4", "test/c.mp4")
    with pytest.raises(ConfigError, match="test"):
        read_items(folder)


def test_lists_of_parts_may_be_of_any_kind(touch: Callable[..., Path]) -> None:
    folder = touch("a.mp4", "b.mp4")
    touch("train_list.txt", text="a.mp4 run\n")
    with pytest.raises(ConfigError, match=r"2.*folder.*train_list\.txt"):
        read_items(folder)
    touch("val.tsv", text="b.mp4\trun\n")
    assert (ids(folder, "train"), ids(folder, "test")) == (["a.mp4"], ["b.mp4"])


def test_a_video_is_no_list(touch: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"a\.mp4"):
        read_items(touch("a.mp4") / "a.mp4")
