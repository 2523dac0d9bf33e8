from collections.abc import Callable
from pathlib import Path

import pytest

from kinescan.data.listing import list_videos, read_items
from kinescan.errors import ConfigError


def published(touch: Callable[..., Path], lists: str = "ucfTrainTestlist", videos: str = "UCF-101") -> Path:
    touch(f"{lists}/classInd.txt", text="1 ApplyEyeMakeup\r\n2 Archery\r\n3 YoYo\r\n")
    touch(f"{lists}/trainlist01.txt", text="YoYo/v_YoYo_g08_c01.avi 3\nArchery/v_Archery_g08_c01.avi 2\n")
    touch(f"{lists}/testlist01.txt", text="ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\r\n\r\n")
    touch(f"{lists}/trainlist03.txt", text="ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi 1\n")
    return touch(
        f"{videos}/YoYo/v_YoYo_g08_c01.avi",
        f"{videos}/Archery/v_Archery_g08_c01.mp4",
        f"{videos}/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
    )


@pytest.mark.parametrize(("lists", "videos"), [("ucfTrainTestlist", "UCF-101"), (".", "."), ("splits", "a/b")])
def test_published_layout_is_read(touch: Callable[..., Path], lists: str, videos: str) -> None:
    root = published(touch, lists, videos)
    items, classes = read_items(root, reader="ucf101")
    assert classes == ("ApplyEyeMakeup", "Archery", "YoYo")
    assert [(item.video_id, item.label) for item in items] == [
        ("YoYo/v_YoYo_g08_c01", 2),
        ("Archery/v_Archery_g08_c01", 1),
    ]
    assert items[1].path == root / videos / "Archery/v_Archery_g08_c01.mp4"
    [test], _ = read_items(root, reader="ucf101", part="test", classes=classes)
    assert (test.video_id, test.label) == ("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01", 0)
    [third], _ = read_items(root, reader="ucf101", split=3)
    assert third.video_id == test.video_id


def test_classes_are_in_the_order_of_their_numbers(touch: Callable[..., Path]) -> None:
    root = published(touch)
    touch("ucfTrainTestlist/classInd.txt", text="10 ApplyEyeMakeup\n3 YoYo\n2 Archery\n")
    assert read_items(root, reader="ucf101")[1] == ("Archery", "YoYo", "ApplyEyeMakeup")


def test_absent_videos_are_counted_and_kept(touch: Callable[..., Path]) -> None:
    root = published(touch)
    (root / "UCF-101/YoYo/v_YoYo_g08_c01.avi").unlink()
    found = list_videos(root, reader="ucf101")
    assert found.missing == ("YoYo/v_YoYo_g08_c01",)
    assert [item.path.is_file() for item in found.items] == [False, True]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "classInd.txt",
            "ApplyEyeMakeup 1\n",
            r"classInd\.txt, line 1.*'ApplyEyeMakeup 1'",
        ),
        ("classInd.txt", "1 YoYo\n1 Archery\n", r"classInd\.txt, line 2"),
        ("classInd.txt", "1 YoYo\n" + "9" * 5000 + " Archery\n", r"classInd\.txt, line 2"),
        ("trainlist01.txt", "YoYo/v_YoYo_g08_c01.avi 2\n", "line 1: 'YoYo/.* 2'"),
        ("trainlist01.txt", "\nYo/v_YoYo_g08_c01.avi 3\n", "line 2: 'Yo/"),
        ("trainlist01.txt", "", "lists"),
    ],
)
def test_wrong_lists_are_refused(touch: Callable[..., Path], name: str, text: str, message: str) -> None:
    root = published(touch)
    touch(f"ucfTrainTestlist/{name}", text=text)
    with pytest.raises(ConfigError, match=message):
        read_items(root, reader="ucf101")


def test_split_that_was_not_fetched_is_refused(touch: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"trainlist02\.txt"):
        read_items(published(touch), reader="ucf101", split=2)
