import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kinescan.data import list_videos, read_items
from kinescan.data.readers.files import FolderWalk, find_videos, index_videos
from kinescan.errors import ConfigError


def ids(folder: Path) -> dict[str, str]:
    found = list_videos(folder)
    return {item.video_id: found.classes[item.label] for item in found.items}


@pytest.fixture
def classes(touch: Callable[..., Path]) -> Path:
    """Two classes with two videos each."""
    return touch("set/run/1.mp4", "set/run/deep/2.mp4", "set/walk/1.mp4", "set/walk/deep/2.mp4") / "set"


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("run/loop", "."),
        ("run/loop", ".."),
        ("run/deep/loop", "../.."),
        ("run/up", "../.."),
        ("run/other", "../walk"),
        ("run/part", "../walk/deep"),
        ("walk/part", "../run/deep"),
        ("loop", "."),
        ("alias", "run"),
        ("run/root", "/"),
    ],
)
def test_a_link_adds_no_video_of_the_data_set_and_none_from_above(classes: Path, link: str, target: str) -> None:
    expected = ids(classes)
    assert len(expected) == 4
    (classes / link).symlink_to(target)
    found = list_videos(classes)
    assert ids(classes) == expected
    assert any(str(classes / link) in note for note in found.notes)
    assert len(find_videos(classes)) == 4
    assert len(index_videos(classes, num_parts=3)) == 4


def test_links_that_lead_out_of_the_data_set_are_followed_once(classes: Path, touch: Callable[..., Path]) -> None:
    elsewhere = touch("pool/a.mp4", "pool/deep/b.mp4") / "pool"
    (elsewhere / "deep/loop").symlink_to("..")
    (elsewhere / "back").symlink_to(classes)
    (classes / "run/pool").symlink_to(elsewhere)
    (classes / "walk/pool").symlink_to(elsewhere)
    (classes / "walk/deep/part").symlink_to(elsewhere / "deep")
    assert len(ids(classes)) == 6
    assert {name for name, label in ids(classes).items() if label == "walk"} == {"walk/1.mp4", "walk/deep/2.mp4"}


def test_a_data_set_made_of_links_is_read(classes: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    for name in ("run", "walk"):
        (made / name).symlink_to(classes / name)
    (tmp_path / "alias").symlink_to(made)
    assert ids(made) == ids(tmp_path / "alias") == ids(classes)
    flat = tmp_path / "flat/run"
    flat.mkdir(parents=True)
    for number in (1, 2):
        (flat / f"{number}.mp4").symlink_to(classes / "run/1.mp4")
    (flat / "self.mp4").symlink_to("self.mp4")
    assert len(ids(flat.parent)) == 3


def test_two_ways_to_the_same_folder_inside_a_link(classes: Path, touch: Callable[..., Path]) -> None:
    pool = touch("pool/x/a.mp4", "pool/b.mp4") / "pool"
    (classes / "run/1").symlink_to(pool / "x")
    (classes / "run/2").symlink_to(pool)
    walk = FolderWalk(classes)
    assert [path.name for path in walk.videos(classes / "run")] == ["a.mp4", "1.mp4", "b.mp4", "2.mp4"]
    assert walk.left_alone == [classes / "run/2/x"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_an_error(classes: Path) -> None:
    (classes / "run/deep").chmod(0)
    try:
        with pytest.raises(ConfigError, match="run/deep"):
            read_items(classes)
    finally:
        (classes / "run/deep").chmod(0o755)


def test_a_folder_that_cannot_be_listed_is_an_error(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def refuse(folder: Path) -> object:
        if str(folder).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ConfigError, match=r"Permission denied\)"):
        read_items(classes)
