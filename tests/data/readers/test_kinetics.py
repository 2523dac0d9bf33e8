from collections.abc import Callable
from pathlib import Path

import pytest
from tests.mentions import mentions

from kinescan.data.listing import list_videos, read_items
from kinescan.errors import ConfigError

HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"
TRAIN = HEADER + (
    "testifying,---QUuC4vJs,84,94,train,0\n"
    "eating spaghetti,--3ouPhoy2A,20,30,train,0\n"
    '"dribbling basketball",-0_MzcYJ4Dk,0,10,train,0\n'
    "testifying,gone0000000,1200,1210,train,0\n"
)
VALIDATION = HEADER + "eating spaghetti,zzzzzzzzzzz,5,15,val,0\n"
NAMES = ("---QUuC4vJs_000084_000094", "--3ouPhoy2A_000020_000030", "-0_MzcYJ4Dk_000000_000010")


def published(touch: Callable[..., Path], *, flat: bool, train: str = "train.csv", val: str = "val.csv") -> Path:
    touch(train, text=TRAIN)
    touch(val, text=VALIDATION)
    folders = ("testifying", "eating spaghetti", "dribbling_basketball")
    videos = [
        f"train/{name}.mp4" if flat else f"train/{split}/{name}.mkv" for split, name in zip(folders, NAMES, strict=True)
    ]
    return touch(*videos, "val/zzzzzzzzzzz_000005_000015.mp4")


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("reader", ["kinetics400", "kinetics600", "kinetics700"])
def test_published_layout_is_read(
    touch: Callable[..., Path], flat: bool, reader: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = published(touch, flat=flat)
    items, classes = read_items(root, reader=reader)
    assert classes == ("dribbling basketball", "eating spaghetti", "testifying")
    assert [(item.video_id, item.label) for item in items] == list(zip(NAMES, (2, 1, 0), strict=True))
    assert all(item.path.is_file() for item in items)
    assert mentions(caplog.text, "1", "gone0000000_001200_001210; 3")
    assert list_videos(root, reader=reader).missing == ("gone0000000_001200_001210",)


@pytest.mark.parametrize(
    ("train", "val"),
    [("annotations/train.csv", "annotations/validate.csv"), ("kinetics_400_train.csv", "kinetics_400_val.csv")],
)
def test_validation_part_has_the_classes_of_the_training_part(touch: Callable[..., Path], train: str, val: str) -> None:
    root = published(touch, flat=True, train=train, val=val)
    items, classes = read_items(root, reader="kinetics400", part="test")
    assert classes == ("dribbling basketball", "eating spaghetti", "testifying")
    assert [(item.video_id, classes[item.label]) for item in items] == [
        ("zzzzzzzzzzz_000005_000015", "eating spaghetti")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label\n1,run\n", "youtube_id, time_start, time_end.*youtube_id"),
        ("", "column"),
        ("label,youtube_id,time_start,time_end\nrun,a,0,inf\n", "line 2: expected label, youtube_id"),
        ("label,youtube_id,time_start,time_end\n ,a,0,10\n", "line 2: expected label, youtube_id"),
        ("label,youtube_id,time_start,time_end\n" + "x" * 140_000 + ",a,0,10\n", "line 2: .*131072"),
        (HEADER, "lists"),
        (HEADER + "run,abc,one,10,train,0\n", r"line 2: expected label, .* got \['run', 'abc', 'one'"),
        (HEADER + "run\n", "line 2: expected label"),
        (HEADER + "run,abc,1,11,train,0\n", r"1 videos.*abc_000001_000011\.mp4"),
    ],
)
def test_wrong_lists_are_refused(touch: Callable[..., Path], text: str, message: str) -> None:
    root = published(touch, flat=True)
    touch("train.csv", text=text)
    with pytest.raises(ConfigError, match=message):
        read_items(root, reader="kinetics400")


def test_folder_without_annotations_is_refused(touch: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"holds no train\.csv \(or .*kinetics_600_train\.csv"):
        read_items(touch("videos/a.mp4"), reader="kinetics600")
