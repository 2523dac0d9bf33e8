from collections.abc import Callable
from pathlib import Path

import pytest

from kinescan.data.video.structure import missing_bytes

CODECS = {"a.mp4": "libx264", "a.mov": "libx264", "a.avi": "mpeg4", "a.webm": "libvpx-vp9", "a.mkv": "libx264"}


@pytest.mark.parametrize("name", CODECS)
def test_missing_bytes_are_counted(make_video: Callable[..., Path], name: str) -> None:
    path = make_video(name, codec=CODECS[name])
    assert missing_bytes(path) == 0
    whole = path.read_bytes()
    path.write_bytes(whole + b"trailing")
    assert missing_bytes(path) == 0
    for lost in (100, len(whole) // 2):
        path.write_bytes(whole[:-lost])
        # an mp4 whose data is cut does not tell how long the index behind it was to be
        assert 0 < missing_bytes(path) <= lost
        assert path.suffix in {".mp4", ".mov"} or missing_bytes(path) == lost


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x1a\x45\xdf\xa3", b"RIFF", b"\x00\x00\x00\x18fty_", bytes(64)])
def test_formats_without_a_promise_miss_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    assert missing_bytes(tmp_path / "a") == 0


def test_unknown_lengths_promise_nothing(tmp_path: Path) -> None:
    live = bytes.fromhex("1A45DFA3 83 424242 18538067 01FFFFFFFFFFFFFF") + bytes(10)
    (tmp_path / "live.webm").write_bytes(live)
    (tmp_path / "open.mp4").write_bytes(b"\x00\x00\x00\x10ftyp12345678" + b"\x00\x00\x00\x00mdat" + bytes(10))
    assert missing_bytes(tmp_path / "live.webm") == missing_bytes(tmp_path / "open.mp4") == 0


def test_large_boxes_have_long_lengths(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\x00\x00\x00\x01mdat" + (1000).to_bytes(8, "big") + bytes(84))
    assert missing_bytes(tmp_path / "a.mp4") == 900
