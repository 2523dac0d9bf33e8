from collections.abc import Callable
from pathlib import Path

import pytest

from kinescan.data.listing import read_items
from kinescan.data.readers.breakfast import ACTIVITIES, TEST_PERSONS
from kinescan.errors import ConfigError


def published(touch: Callable[..., Path]) -> Path:
    names = (
        "P03/cam01/P03_cereals.avi",
        "P03/cam01/P03_cereals.avi.labels",
        "P03/stereo/P03_tea_ch0.avi",
        "P03/stereo/P03_tea_ch1.avi",
        "P28/webcam02/P28_salat.avi",
        "P42/cam01/P42_milk.avi",
        "P54/cam01/P54_coffee.avi",
    )
    return touch(*(f"BreakfastII_15fps_qvga_sync/{name}" for name in names))


def test_published_layout_is_read(touch: Callable[..., Path]) -> None:
    root = published(touch)
    items, classes = read_items(root, reader="breakfast", part="test")
    assert classes == ACTIVITIES
    assert [(item.video_id, classes[item.label]) for item in items] == [
        ("P03/cam01/P03_cereals", "cereals"),
        ("P03/stereo/P03_tea_ch0", "tea"),
    ]
    items, _ = read_items(root, reader="breakfast")
    assert [item.path.name for item in items] == ["P28_salat.avi", "P42_milk.avi", "P54_coffee.avi"]
    items, _ = read_items(root.parent, root=root, reader="breakfast", part="test", split=5)
    assert [item.path.name for item in items] == ["P54_coffee.avi"]


def test_splits_are_by_person(touch: Callable[..., Path]) -> None:
    own = [person for split in range(1, 5) for person in TEST_PERSONS[split]]
    assert sorted(own) == list(range(3, 55))
    assert list(TEST_PERSONS[5]) == list(range(47, 55))
    root = published(touch)
    for split in TEST_PERSONS:
        parts = [
            {item.video_id[:3] for item in read_items(root, reader="breakfast", part=part, split=split)[0]}
            for part in ("train", "test")
            if split != 3 or part == "train"
        ]  # nobody of split 3 is here
        assert set.union(*parts) == {"P03", "P28", "P42", "P54"}
        assert len(parts) == 1 or not parts[0] & parts[1]


def test_wrong_folders_are_refused(touch: Callable[..., Path]) -> None:
    root = published(touch)
    with pytest.raises(ConfigError, match=r"3.*called.*0.*names\)"):
        read_items(root, reader="breakfast", part="test", split=3)
    with pytest.raises(ConfigError, match=r"data\.root"):
        read_items(root, root=root / "nowhere", reader="breakfast")
    touch("P05/cam01/P05_omelette.avi")
    with pytest.raises(ConfigError, match=r"'omelette'.*10 dishes"):
        read_items(root, reader="breakfast")
