import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from kinescan.data.video.structure import missing_bytes, next_file

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


@pytest.mark.parametrize("data", [b"", b"\x1a\x45\xdf\xa3", b"RIFF", b"\x00\x00\x00\x18fty_", bytes(64)])
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


def gif(num_frames: int = 3, *, ended: bool = True) -> bytes:
    """2x2 pixels, a palette of two colours of its own for each frame."""
    head = b"GIF89a" + struct.pack("<HHBBB", 2, 2, 0x80, 0, 0) + bytes(3) + b"\xff\xff\xff"
    control = b"!\xf9\x04\x00\x0a\x00\x00\x00"
    picture = b"," + struct.pack("<HHHHB", 0, 0, 2, 2, 0x80) + bytes(3) + b"\xff\x00\x00" + b"\x02\x02\x8c\x53\x00"
    return head + num_frames * (control + picture) + (b";" if ended else b"")


def test_a_gif_without_its_end_is_cut(tmp_path: Path) -> None:
    for name, data in (("whole", gif()), ("open", gif(ended=False)), ("cut", gif()[:-12]), ("head", gif()[:15])):
        (tmp_path / name).write_bytes(data)
    assert missing_bytes(tmp_path / "whole") == 0
    assert missing_bytes(tmp_path / "open") == 1
    assert missing_bytes(tmp_path / "cut") > 1
    assert missing_bytes(tmp_path / "head") >= 1


def test_another_file_behind_the_end_is_found(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    files = [make_video("a.mp4"), make_video("a.mkv"), make_video("a.webm", codec="libvpx-vp9")]
    files.append(make_video("a.avi", codec="mpeg4"))
    (tmp_path / "a.gif").write_bytes(gif())
    for path in (*files, tmp_path / "a.gif"):
        data = path.read_bytes()
        assert next_file(path) is None
        path.write_bytes(data + data)
        assert next_file(path) == len(data)
        # rubbish behind the end is no file
        path.write_bytes(data + bytes(100))
        assert next_file(path) is None
