from collections.abc import Callable
from pathlib import Path

import pytest

from kinescan.data.listing import read_items
from kinescan.errors import ConfigError

BRUSH = (
    "#1_brush_hair_u_nm_np1_ba_goo_0.avi",
    "[a]_brush_hair_u_nm_np1_ba_goo_1.avi",
    "b;c_brush_hair_f_cm_np1_le_2.avi",
)


def published(
    touch: Callable[..., Path], lists: str = "testTrainMulti_7030_splits", videos: str = "hmdb51_org"
) -> Path:
    lines = [f"{name} {mark} " for name, mark in zip(BRUSH, (1, 2, 0), strict=True)]
    touch(f"{lists}/brush_hair_test_split1.txt", text="\n".join(lines) + "\n")
    touch(f"{lists}/brush_hair_test_split2.txt", text=f"{BRUSH[2]} 1 \n")
    touch(f"{lists}/wave_test_split1.txt", text="w_wave_0.avi 2 \nw_wave_1.avi 1 \n")
    touch(f"{lists}/wave_test_split2.txt", text="w_wave_0.avi 0 \n")
    return touch(
        *(f"{videos}/brush_hair/{name}" for name in BRUSH), f"{videos}/wave/w_wave_0.avi", f"{videos}/wave/w_wave_1.avi"
    )


@pytest.mark.parametrize(("lists", "videos"), [("testTrainMulti_7030_splits", "hmdb51_org"), (".", ".")])
def test_published_layout_is_read(touch: Callable[..., Path], lists: str, videos: str) -> None:
    root = published(touch, lists, videos)
    items, classes = read_items(root, reader="hmdb51")
    assert classes == ("brush_hair", "wave")
    assert [(item.path.name, item.label) for item in items] == [(BRUSH[0], 0), ("w_wave_1.avi", 1)]
    assert all(item.path.is_file() for item in items)
    items, _ = read_items(root, reader="hmdb51", part="test", classes=classes)
    assert [(item.path.name, item.label) for item in items] == [(BRUSH[1], 0), ("w_wave_0.avi", 1)]
    [second], classes = read_items(root, reader="hmdb51", split=2)
    assert (second.path.name, classes) == (BRUSH[2], ("brush_hair", "wave"))


@pytest.mark.parametrize("line", ["a.avi 3", "a.avi", "2"])
def test_wrong_lines_are_refused(touch: Callable[..., Path], line: str) -> None:
    root = published(touch)
    touch("testTrainMulti_7030_splits/wave_test_split1.txt", text=f"\n{line}\n")
    with pytest.raises(ConfigError, match=r"wave_test_split1\.txt, line 2.*0, 1.*2"):
        read_items(root, reader="hmdb51")


def test_folder_without_splits_is_refused(touch: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"holds no \*_test_split3\.txt"):
        read_items(published(touch), reader="hmdb51", split=3)
