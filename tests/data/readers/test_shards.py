"""Shards that are missing or cut are said when they are listed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kinescan.data.listing import list_videos
from kinescan.data.readers.lists import files_there
from kinescan.data.readers.shards import shard_parts
from kinescan.data.shards.pack import PackSettings, pack_videos
from kinescan.errors import ConfigError


@pytest.fixture
def packed(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    for number in range(3):
        make_video(f"v/{'a' if number else 'b'}/{number}.mp4", seed=number)
    pack_videos({"train": list_videos(tmp_path / "v")}, tmp_path / "s", PackSettings(shard_bytes=1))
    return tmp_path / "s"


def test_a_missing_and_a_cut_shard(packed: Path) -> None:
    (packed / "000001.tar").unlink()
    os.truncate(packed / "000002.tar", 1000)
    found = list_videos(packed)
    assert found.missing == ("a/2.mp4",)
    assert len(found.items) == 3
    assert ["000001" in note or "000002" in note for note in found.notes] == [True, True]
    assert files_there([item.path for item in found.items]) == [True, False, True]


def test_shards_moved_elsewhere_are_found_by_root(packed: Path, tmp_path: Path) -> None:
    (packed / "shards.json").rename(tmp_path / "shards.json")
    found = list_videos(tmp_path / "shards.json", root=packed)
    assert not found.missing
    assert all(files_there([item.path for item in found.items]))


def test_shards_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shards"):
        list_videos(tmp_path, reader="shards")
    assert shard_parts(tmp_path) == ()
