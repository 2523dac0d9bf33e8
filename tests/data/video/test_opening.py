import http.server
import os
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch

from kinescan.data.video import Limits, LiveVideo, VideoReader, inspect_video, write_video
from kinescan.errors import ConfigError, VideoError

from .boxes import with_edit_list, with_many_samples

NAMES = (
    *("2026-11-29T10:30:00.mp4", "concat:b.mp4", "subfile,,start,0,end,0,,:c.mp4", "data:x;base64,AA.mp4", "pipe:0"),
    *("-n.mp4", "--help.mp4", "%03d.mp4", "line\nbreak.mp4", "tab\t.mp4", "\x1b[31mred.mp4", "bytes\udcff.mp4"),
    *("#1.mp4", "q?x=1.mp4", "file:d.mp4", " .mp4", "'\".mp4", "*.mp4", "a|b.mp4", "lavfi", "x" * 251 + ".mp4"),
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("relative", [True, False])
def test_a_name_is_only_a_name(
    make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str, relative: bool
) -> None:
    path = make_video("b.mp4", 3)
    try:
        path = path.rename(path.with_name(name))
    except OSError:
        pytest.skip("this file system does not take the name")
    monkeypatch.chdir(path.parent)
    with VideoReader(name if relative else path) as video:
        assert video.num_frames == 3


def test_a_name_that_is_a_protocol_to_ffmpeg_names_no_other_file(
    make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_video("in.mp4").parent)
    for name in ("concat:in.mp4", "subfile,,start,0,end,0,,:in.mp4", "file:in.mp4", "async:in.mp4", "crypto:in.mp4"):
        with pytest.raises(VideoError, match="file"):
            VideoReader(name)
        assert inspect_video(name).problem == "missing"


def test_a_pattern_of_names_stands_for_one_picture(tmp_path: Path) -> None:
    for name, level in (("%03d.png", 10), ("001.png", 200), ("*.png", 99)):
        (tmp_path / name).write_bytes(png(16, 16, level))
    for name, level in (("%03d.png", 10), ("*.png", 99)):
        with VideoReader(tmp_path / name) as video:
            assert video.read([0]).pixels.unique().tolist() == [level]


def test_files_with_a_colon_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").mkdir()
    write_video("a:b/10:30.mp4", torch.zeros(2, 3, 16, 16, dtype=torch.uint8), fps=5)
    with VideoReader("a:b/10:30.mp4") as video:
        assert video.num_frames == 2


@pytest.fixture
def lists(make_video: Callable[..., Path]) -> dict[str, str]:
    """Texts by which FFmpeg would open the file in.ts beside them, or a port."""
    there = make_video("in.ts", 4).resolve()
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
    return {
        "ffconcat": "ffconcat version 1.0\nfile 'in.ts'\n",
        "ffconcat_long": "ffconcat version 1.0\n" + "file 'in.ts'\n" * 20_000,
        "ffconcat_absolute": f"ffconcat version 1.0\nfile '{there}'\n",
        "hls": playlist.format("in.ts"),
        "hls_absolute": playlist.format(f"file://{there}"),
        "hls_concat": playlist.format(f"concat:{there}"),
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "svg": "<svg xmlns='http://www.w3.org/2000/svg'><image href='in.ts'/></svg>",
        "text": "a line\n" * 200,
    }


def test_a_list_of_other_files_is_no_video(lists: dict[str, str], tmp_path: Path) -> None:
    for kind, text in lists.items():
        for suffix in (".mp4", f".{kind}", ".m3u8", ".sdp", ".ffconcat"):
            path = tmp_path / f"{kind}{suffix}"
            path.write_text(text)
            with pytest.raises(VideoError, match="opened"):
                VideoReader(path)


def test_a_list_of_other_files_is_no_video_in_a_pipe(lists: dict[str, str], tmp_path: Path) -> None:
    for kind, text in lists.items():
        pipe = tmp_path / f"{kind}.pipe"
        os.mkfifo(pipe)
        writer = threading.Thread(target=write_quietly, args=(pipe, text.encode()))
        writer.start()
        with pytest.raises(VideoError, match="opened"):
            LiveVideo(pipe, timeout_seconds=5)
        writer.join()


def test_a_url_opens_no_file(lists: dict[str, str], served: str, tmp_path: Path) -> None:
    for kind, text in lists.items():
        (tmp_path / f"{kind}.m3u8").write_text(text)
        if kind != "hls":
            with pytest.raises(VideoError, match="opened"):
                LiveVideo(f"{served}/{kind}.m3u8", timeout_seconds=5)
    # a playlist of addresses on a server is a usual camera
    for address in (f"{served}/hls.m3u8", f"{served}/in.ts".replace("http:", "HTTP:"), f"file://{tmp_path}/in.ts"):
        with LiveVideo(address, timeout_seconds=5) as video:
            assert len(list(video)) == 4
    with pytest.raises(VideoError, match="opened"):
        LiveVideo(f"file://{tmp_path}/hls.m3u8")


@pytest.mark.parametrize("scheme", ["concat", "crypto+file", "data", "ftp", "gopher", "unix", "subfile"])
def test_other_protocols_are_refused_by_name(scheme: str) -> None:
    with pytest.raises(ConfigError, match=r"rtsp://.*a file's path"):
        LiveVideo(f"{scheme}://127.0.0.1/a.ts")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.mp4"))
        (tmp_path / "zero.mp4").symlink_to("/dev/zero")
        for name, kind in (("pipe", "a named pipe"), ("s", "a socket"), ("zero", "a device")):
            with pytest.raises(VideoError, match=kind):
                VideoReader(tmp_path / f"{name}.mp4")
            assert inspect_video(tmp_path / f"{name}.mp4").problem == "unreadable"
    with pytest.raises(VideoError, match="a folder"):
        VideoReader(tmp_path)
    with pytest.raises(VideoError):
        VideoReader(tmp_path / "nul\0.mp4")


def test_a_looping_or_dangling_link_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").symlink_to("a.mp4")
    (tmp_path / "b.mp4").symlink_to("lost.mp4")
    for name in ("a.mp4", "b.mp4"):
        with pytest.raises(VideoError):
            VideoReader(tmp_path / name)
        assert inspect_video(tmp_path / name).problem in ("missing", "unreadable")


def test_edit_lists_and_tables_are_bounded(make_video: Callable[..., Path]) -> None:
    path = make_video(num_frames=20)
    whole = path.read_bytes()
    for num_edits in (300_000, 1_000_000):
        path.write_bytes(with_edit_list(whole, num_edits, ticks=2000))
        with pytest.raises(VideoError, match=f"{num_edits:,} entries"):
            VideoReader(path)
    for num_samples in (1_000_000, 2**32 - 1):
        path.write_bytes(with_many_samples(whole, num_samples))
        with pytest.raises(VideoError, match=f"{num_samples:,} frames in"):
            VideoReader(path)


def test_a_short_edit_list_plays(make_video: Callable[..., Path]) -> None:
    path = make_video(num_frames=20, keyframe_interval=1)
    path.write_bytes(with_edit_list(path.read_bytes(), 3, ticks=2000))
    with VideoReader(path) as video:
        assert video.num_frames >= 20


@pytest.mark.parametrize("size", [(16_000, 16_000), (65_535, 65_535), (9000, 8000)])
def test_pixels_are_bounded_before_they_are_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    files = {"a.gif": gif(*size), "b.mp4": gif(*size), "a.png": png(*size), "b.mkv": png(*size)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(VideoError, match=rf"{size[0]} x {size[1]} = .*data.max_pixels"):
            VideoReader(tmp_path / name)


def test_max_pixels_is_a_setting(make_video: Callable[..., Path]) -> None:
    path = make_video(num_frames=3, height=24, width=32)
    for limit in (24 * 32, 24 * 32 - 1):
        if limit == 24 * 32:
            with VideoReader(path, limits=Limits(max_pixels=limit)) as video:
                assert len(video.read([0, 2]).pixels) == 2
            with LiveVideo(f"file://{path}", limits=Limits(max_pixels=limit)) as live:
                assert len(list(live)) == 3
        else:
            with pytest.raises(VideoError, match=r"32 x 24 = 768.*767"):
                VideoReader(path, limits=Limits(max_pixels=limit))
            with pytest.raises(VideoError, match="at most 767"):
                LiveVideo(f"file://{path}", limits=Limits(max_pixels=limit))


def test_a_size_above_the_limit_inside_of_a_video_is_not_decoded(tmp_path: Path) -> None:
    parts = []
    for size in (16, 64):
        path = tmp_path / f"{size}.ts"
        write_video(path, torch.zeros(3, 3, size, size, dtype=torch.uint8), fps=5, codec="mpeg2video")
        parts.append(path.read_bytes())
    (tmp_path / "a.ts").write_bytes(b"".join(parts))
    limits = Limits(max_pixels=32 * 32)
    with VideoReader(tmp_path / "a.ts", limits=limits) as video, pytest.raises(VideoError, match=r"data\.max_pixels"):
        list(video)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a server that gives what lies in the test's folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *values: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def write_quietly(pipe: Path, data: bytes) -> None:
    with suppress(BrokenPipeError):
        pipe.write_bytes(data)


def png(width: int, height: int, level: int = 0) -> bytes:
    """A grey picture; of large ones only the header and a few rows."""
    rows = b"".join(b"\0" + bytes([level]) * width for _ in range(min(height, 16)))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def gif(width: int, height: int) -> bytes:
    """One black pixel in the corner of a canvas."""
    head = b"GIF89a" + struct.pack("<HH", width, height) + bytes([0x80, 0, 0]) + bytes(6)
    return head + b"\x2c" + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0\x02\x02\x44\x01\0\x3b"
