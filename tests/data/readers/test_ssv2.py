import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.mentions import mentions

from kinescan.data.listing import list_videos, read_items
from kinescan.errors import ConfigError

LABELS = {
    "Approaching something with your camera": "0",
    "Pushing something from left to right": "2",
    "Holding something": "1",
}
TRAIN = [
    {"id": "41775", "label": "holding a pen", "template": "Holding [something]", "placeholders": ["a pen"]},
    {"id": "7", "label": "approaching cup", "template": "Approaching [something] with your camera"},
    {"id": "93", "label": "pushing pen", "template": "Pushing [something] from left to right"},
]
VALIDATION = [{"id": "74225", "label": "holding tea", "template": "Holding [something]", "placeholders": ["tea"]}]


def published(touch: Callable[..., Path], prefix: str = "", labels: str = "labels", videos: str = "videos") -> Path:
    for name, content in (("labels", LABELS), ("train", TRAIN), ("validation", VALIDATION)):
        root = touch(f"{labels}/{prefix}{name}.json", text=json.dumps(content))
    return touch(*(f"{videos}/{entry['id']}.webm" for entry in TRAIN + VALIDATION), f"{videos}/8.webm", text="") or root


@pytest.mark.parametrize(
    ("prefix", "labels", "videos"),
    [
        ("", "labels", "20bn-something-something-v2"),
        ("something-something-v2-", ".", "."),
        ("something-something-v2-", "annotations", "videos/0"),
    ],
)
def test_published_layout_is_read(touch: Callable[..., Path], prefix: str, labels: str, videos: str) -> None:
    root = published(touch, prefix, labels, videos)
    items, classes = read_items(root, reader="ssv2")
    assert classes == (
        "Approaching something with your camera",
        "Holding something",
        "Pushing something from left to right",
    )
    assert [(item.video_id, item.label) for item in items] == [("41775", 1), ("7", 0), ("93", 2)]
    assert items[0].path == root / videos / "41775.webm"
    items, same = read_items(root, reader="ssv2", part="test", classes=classes)
    assert same == classes
    assert [(item.video_id, item.label) for item in items] == [("74225", 1)]


def test_videos_may_lie_elsewhere(touch: Callable[..., Path]) -> None:
    root = published(touch, labels="texts/labels", videos="store")
    items, _ = read_items(root / "texts", root=root / "store", reader="ssv2")
    assert items[1].path == root / "store/7.webm"
    with pytest.raises(ConfigError, match=r"data\.root '.*nowhere'"):
        read_items(root / "texts", root=root / "nowhere", reader="ssv2")


def test_missing_videos_stay_and_are_counted(touch: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    root = published(touch)
    (root / "videos/93.webm").unlink()
    items, _ = read_items(root, reader="ssv2")
    assert items[2].path == root / "93.webm"
    assert mentions(caplog.text, "1", "93")
    assert list_videos(root, reader="ssv2").missing == ("93",)
    for entry in TRAIN[:2]:
        (root / f"videos/{entry['id']}.webm").unlink()
    with pytest.raises(ConfigError, match=r"3.*train\.json lists.*41775\.webm"):
        read_items(root, reader="ssv2")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.json", '{"Holding something": "1"}', 'numbers.*"0"'),
        ("labels.json", "[]", "label"),
        ("train.json", "[{]", r"train\.json.*JSON \(line 1"),
        ("train.json", "{}", "videos"),
        ("train.json", "[]", "lists"),
        ("train.json", '[{"id": "1"}]', "entry 0.*template"),
        (
            "train.json",
            '[{"id": "7", "template": "Holdin [something]"}]',
            r"video 7.*'Holdin something'.*'Holding something'\?",
        ),
        (
            "train.json",
            json.dumps([*TRAIN, {**TRAIN[0], "template": TRAIN[1]["template"]}]),
            "41775.*'Holding something'.*'Approaching.*camera'",
        ),
    ],
)
def test_wrong_files_are_refused(touch: Callable[..., Path], name: str, text: str, message: str) -> None:
    root = published(touch)
    touch(f"labels/{name}", text=text)
    with pytest.raises(ConfigError, match=message):
        read_items(root, reader="ssv2")


def test_wrong_encoding_and_missing_files_are_refused(touch: Callable[..., Path]) -> None:
    root = published(touch)
    (root / "labels/train.json").write_bytes(json.dumps(TRAIN).encode("utf-16"))
    with pytest.raises(ConfigError, match=r"train\.json.*UTF-8 text.*UTF-8"):
        read_items(root, reader="ssv2")
    (root / "labels/train.json").unlink()
    with pytest.raises(ConfigError, match=r"holds no train\.json \(or something-something-v2-train\.json\), neither"):
        read_items(root, reader="ssv2")


def test_repeated_ids_are_taken_once(touch: Callable[..., Path]) -> None:
    root = published(touch)
    touch("labels/train.json", text=json.dumps([*TRAIN, TRAIN[1]]))
    found = list_videos(root, reader="ssv2")
    assert len(found.items) == 3
    assert found.repeated == ("7",)
