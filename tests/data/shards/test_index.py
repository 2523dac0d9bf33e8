"""An index of shards that is wrong is an error, never wrong frames."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kinescan.data.listing import list_videos
from kinescan.data.shards.index import INDEX_FILE, find_index, read_index
from kinescan.data.shards.pack import PackSettings, pack_videos
from kinescan.errors import ConfigError


@pytest.fixture
def packed(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    for number in range(3):
        make_video(f"v/{'a' if number else 'b'}/{number}.mp4", seed=number)
    pack_videos({"train": list_videos(tmp_path / "v")}, tmp_path / "s", PackSettings(shard_bytes=1))
    return tmp_path / "s"


def _listed_twice(content: dict[str, Any]) -> None:
    content["shards"][1] = content["shards"][0]


def _video_twice(content: dict[str, Any]) -> None:
    content["videos"]["id"][1] = content["videos"]["id"][0]


def _place_twice(content: dict[str, Any]) -> None:
    for name in ("shard", "offset"):
        content["videos"][name][1] = content["videos"][name][0]


def _beyond(content: dict[str, Any]) -> None:
    content["videos"]["offset"][0] = 10**9


def _before(content: dict[str, Any]) -> None:
    content["videos"]["offset"][0] = 0


def _no_shard(content: dict[str, Any]) -> None:
    content["videos"]["shard"][0] = 17


def _negative(content: dict[str, Any]) -> None:
    content["videos"]["size"][0] = -5


def _no_label(content: dict[str, Any]) -> None:
    content["videos"]["label"][0] = 9


def _elsewhere(content: dict[str, Any]) -> None:
    content["shards"][0]["name"] = "../../etc/passwd.tar"


def _other_version(content: dict[str, Any]) -> None:
    content["format"] = 99


def _short_column(content: dict[str, Any]) -> None:
    content["videos"]["size"].pop()


def _text(content: dict[str, Any]) -> None:
    content["videos"]["size"][0] = "12"


def _lost_column(content: dict[str, Any]) -> None:
    del content["videos"]["offset"]


@pytest.mark.parametrize(
    "change",
    [
        *(_listed_twice, _video_twice, _place_twice, _beyond, _before, _no_shard, _negative, _no_label, _elsewhere),
        *(_other_version, _short_column, _text, _lost_column),
    ],
)
def test_what_cannot_be_is_refused(change: Callable[[dict[str, Any]], None], packed: Path) -> None:
    file = packed / INDEX_FILE
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=INDEX_FILE):
        list_videos(packed)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 1}', "null", "\0"])
def test_what_is_no_index_is_refused(text: str, packed: Path) -> None:
    (packed / INDEX_FILE).write_text(text)
    with pytest.raises(ConfigError, match=INDEX_FILE):
        read_index(packed / INDEX_FILE)


def test_an_index_that_is_written_anew_is_read_anew(packed: Path) -> None:
    file = packed / INDEX_FILE
    before = read_index(file)
    content = json.loads(file.read_text())
    content["classes"] = ["c", "d"]
    file.write_text(json.dumps(content))
    os.utime(file, ns=(1, 1))
    assert before.classes == ("a", "b")
    assert read_index(file).classes == ("c", "d")


def test_where_an_index_is_found(packed: Path, tmp_path: Path) -> None:
    assert find_index(packed) == find_index(packed / INDEX_FILE) == packed / INDEX_FILE
    assert find_index(tmp_path) is None
    assert find_index(tmp_path / "a.csv") is None
