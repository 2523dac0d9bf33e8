import json
import os
from pathlib import Path

import pytest

from kinescan.data import VideoItem
from kinescan.data.provenance import fingerprint, read_run_videos, record_videos
from kinescan.data.storage import is_gone


def test_a_fingerprint_tells_contents_and_sizes_apart(tmp_path: Path) -> None:
    contents = [b"", b"a", b"a" * 10_000, b"a" * 10_001, b"b" + b"a" * 9_999, b"a" * 9_999 + b"b"]
    for index, content in enumerate(contents):
        (tmp_path / str(index)).write_bytes(content)
    found = [fingerprint(tmp_path / str(index)) for index in range(len(contents))]
    assert len(set(found)) == len(contents)
    (tmp_path / "copy").write_bytes(contents[2])
    assert fingerprint(tmp_path / "copy") == found[2]
    assert fingerprint(tmp_path / "nowhere") is fingerprint(tmp_path) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_nobody_waits_for_a_named_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert fingerprint(tmp_path / "pipe.mp4") is None
    assert not is_gone(tmp_path / "pipe.mp4")


def test_names_that_are_no_utf8_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    path.write_bytes(b"frames")
    missing = VideoItem(tmp_path / "lost.mp4", 1, "lost.mp4")
    recorded = record_videos([VideoItem(path, 0, path.name)], [missing], ["a", "b"], origin="20% held out of x")
    recorded.save(tmp_path)
    json.loads((tmp_path / "videos.json").read_text(encoding="utf-8"))
    assert read_run_videos(tmp_path) == recorded
    assert recorded.held_out[0].fingerprint == ""
    assert recorded.train[0].item() == VideoItem(path, 0, path.name)
    assert read_run_videos(tmp_path / "nowhere") is None


def test_an_address_is_kept_as_it_was_typed(tmp_path: Path) -> None:
    """And read from what earlier versions wrote, which left out a slash."""
    videos = [VideoItem(Path("http://127.0.0.1:9/a.mp4"), 0, "a"), VideoItem(tmp_path / "b.mp4", 0, "b")]
    run = record_videos(videos, [], ["jump"], origin="test")
    run.save(tmp_path)
    file = tmp_path / "videos.json"
    paths = [video["path"] for video in json.loads(file.read_text())["train"]]
    assert paths == ["http://127.0.0.1:9/a.mp4", str(tmp_path / "b.mp4")]
    assert read_run_videos(tmp_path) == run
    assert run.train[0].item().path == videos[0].path
    file.write_text(file.read_text().replace("http://", "http:/"))
    assert read_run_videos(tmp_path) == run
