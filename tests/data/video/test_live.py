import http.server
import io
import itertools
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
import wave
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
import torch

from kinescan.data.video import LiveVideo, VideoReader, is_live, shown_every, write_video
from kinescan.data.video import live as live_module
from kinescan.data.video.live import Damage, Lag
from kinescan.errors import ConfigError, VideoError

TS_PACKET_BYTES = 188


def frames_of(path: Path) -> list[tuple[torch.Tensor, float]]:
    with VideoReader(path) as reader:
        return list(reader)


def noise(num_frames: int) -> torch.Tensor:
    return torch.randint(0, 256, (num_frames, 3, 48, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def transport_stream(tmp_path: Path) -> Path:
    """40 frames at 10 fps, a key frame every 8."""
    path = tmp_path / "a.ts"
    write_video(path, noise(40), fps=10, keyframe_interval=8)
    return path


@contextmanager
def written_to_a_pipe(tmp_path: Path, *parts: bytes, pause_seconds: float = 0.0) -> Iterator[Path]:
    """A named pipe that another thread writes these parts into, with a pause behind each."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        try:
            with pipe.open("wb") as file:
                for part in parts:
                    file.write(part)
                    file.flush()
                    time.sleep(pause_seconds)
        except BrokenPipeError:
            pass

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield pipe
    finally:
        thread.join()


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.webm"])
def test_live_frames_of_a_pipe_are_those_of_the_file(tmp_path, make_video, name):
    path = make_video(name, num_frames=25, **({"codec": "libvpx-vp9"} if name == "a.webm" else {}))
    with written_to_a_pipe(tmp_path, path.read_bytes()) as pipe, LiveVideo(pipe) as video:
        live = list(video)
    expected = frames_of(path)
    assert len(live) == len(expected) == 25
    assert (video.num_frames, video.num_left_out) == (25, 0)
    for (pixels, seconds), (expected_pixels, expected_seconds) in zip(live, expected, strict=True):
        assert torch.equal(pixels, expected_pixels)
        assert seconds == pytest.approx(expected_seconds)


def test_live_frames_come_upright(tmp_path, make_video):
    path = make_video("a.mkv", num_frames=3, rotation_degrees=90)
    with LiveVideo(f"file://{path}") as video:
        live = [pixels for pixels, _ in video]
    assert all(torch.equal(one, other) for one, (other, _) in zip(live, frames_of(path), strict=True))
    assert live[0].shape == (3, 32, 24)


def test_live_frames_come_before_the_source_ends(tmp_path, transport_stream):
    data = transport_stream.read_bytes()
    most = 7 * len(data) // 8
    with written_to_a_pipe(tmp_path, data[:most], data[most:], pause_seconds=1.0) as pipe:
        started = time.monotonic()
        with LiveVideo(pipe) as video:
            arrived = [time.monotonic() - started for _ in video]
    # the rest was sent a second later
    assert min(arrived) < 1.0 < max(arrived)


def test_live_frames_of_standard_input(transport_stream, make_video):
    script = (
        "from kinescan.data.video import LiveVideo\nwith LiveVideo('-') as video:\n    print(sum(1 for _ in video))"
    )
    command = [sys.executable, "-c", script]
    piped = subprocess.run(command, input=transport_stream.read_bytes(), capture_output=True, check=True)
    assert piped.stdout.split() == [b"40"], piped.stderr
    # a file there can be gone back in, as the index at the end of an mp4 needs
    with make_video("a.mp4", num_frames=12).open("rb") as file:
        redirected = subprocess.run(command, stdin=file, capture_output=True, check=True)
    assert redirected.stdout.split() == [b"12"], redirected.stderr


def test_live_frames_of_joined_recordings_are_all_there(tmp_path, transport_stream):
    data = transport_stream.read_bytes()
    with written_to_a_pipe(tmp_path, data, data, data) as pipe, LiveVideo(pipe) as video:
        live = list(video)
    expected = [pixels for pixels, _ in frames_of(transport_stream)]
    assert len(live) == 120
    assert video.num_left_out == 0
    assert all(torch.equal(pixels, expected[index % 40]) for index, (pixels, _) in enumerate(live))
    assert all(later > earlier for (_, earlier), (_, later) in itertools.pairwise(live))


def test_live_frames_of_a_server(tmp_path, transport_stream):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        with LiveVideo(f"{address}/a.ts") as video:
            live = list(video)
        with pytest.raises(VideoError, match=r"nothing\.ts.*404"):
            LiveVideo(f"{address}/nothing.ts")
        server.shutdown()
    expected = frames_of(transport_stream)
    assert all(torch.equal(one, other) for (one, _), (other, _) in zip(live, expected, strict=True))


@pytest.mark.parametrize("over_tcp", [True, False])
def test_live_frames_of_a_camera(camera, transport_stream, over_tcp):
    source = camera(transport_stream, over_tcp=over_tcp)
    live: list[torch.Tensor] = []
    ended = ""
    with LiveVideo(source.address, timeout_seconds=3) as video:
        try:
            for pixels, _ in video:
                live.append(pixels)
        except VideoError as error:
            ended = str(error)
    # TCP is asked for first
    assert source.transports == (["RTP/AVP/TCP"] if over_tcp else ["RTP/AVP/TCP", "RTP/AVP/UDP"])
    recorded = [pixels for pixels, _ in frames_of(transport_stream)]
    # the decoder still holds the last ones back when the camera goes
    assert 36 <= len(live) <= 40, ended
    assert all(torch.equal(one, other) for one, other in zip(live, recorded, strict=False))


@pytest.mark.parametrize("num_lost", [1, 3, 12, 40])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_lost_data_leaves_out_frames_up_to_the_next_key_frame(tmp_path, transport_stream, caplog, ratio, num_lost):
    data = transport_stream.read_bytes()
    packets = [data[at : at + TS_PACKET_BYTES] for at in range(0, len(data), TS_PACKET_BYTES)]
    pids = [int.from_bytes(packet[1:3], "big") & 0x1FFF for packet in packets]
    # tables of the stream are sent again and again: losing one costs nothing
    first = pids.index(max(pids, key=pids.count), int(ratio * len(packets)))
    broken = tmp_path / "broken.ts"
    broken.write_bytes(b"".join(packets[:first] + packets[first + num_lost :]))
    whole = {round(seconds, 4): pixels for pixels, seconds in frames_of(transport_stream)}
    with caplog.at_level(logging.WARNING), LiveVideo(f"file://{broken}") as video:
        live = list(video)
    # a key frame every 8: of the 40 frames at most three groups are touched
    assert 16 <= len(live) < 40
    assert all(torch.equal(pixels, whole[round(seconds, 4)]) for pixels, seconds in live)
    assert video.num_left_out > 0
    assert f"{video.num_left_out} of {video.num_left_out + len(live)}" in caplog.text


def test_damage_counts_in_the_order_of_packets():
    """Frames come out some packets later than they went in: packet 5 is damaged, then 14."""
    damage = Damage()

    def spares(ordinal: int, *, key: bool = False, corrupt: bool = False) -> bool:
        return damage.spares(SimpleNamespace(pts=ordinal, key_frame=key, is_corrupt=corrupt))

    assert not spares(1)  # joined on its way
    assert spares(2, key=True)
    damage.add(5)
    assert [spares(ordinal) for ordinal in (4, 3)] == [True, True]
    assert not spares(5, key=True)
    assert not spares(6)
    damage.add(14)
    assert not spares(9)  # shown before the key frame that it follows in the file
    assert spares(8, key=True)
    assert spares(10)
    assert not spares(11, corrupt=True)
    assert not spares(12)
    assert spares(13, key=True)
    assert not spares(15)


def test_a_clock_that_jumps_back_goes_on(tmp_path, transport_stream):
    again = tmp_path / "again.ts"
    again.write_bytes(2 * transport_stream.read_bytes())
    with LiveVideo(f"file://{again}") as video:
        times = torch.tensor([seconds for _, seconds in video], dtype=torch.float64)
    steps = times.diff()
    assert len(times) > 70
    assert steps.min() > 0.09
    # where the second one was joined, frames are missing
    assert steps.max() < 1.0
    assert times[-1] - times[0] == pytest.approx(0.1 * (len(times) - 1), abs=1.0)


def raw_packets(codec: str, form: str, num_frames: int) -> list[bytes]:
    """Packets of a stream without a container, a frame each."""
    container = av.open(io.BytesIO(), "w", format=form)
    stream = container.add_stream(codec, rate=25, options={"tune": "zerolatency"} if codec == "libx264" else {})
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
    packets = []
    for index, pixels in enumerate(noise(num_frames)):
        frame = av.VideoFrame.from_ndarray(pixels.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
        frame.pts = index
        packets += [bytes(packet) for packet in stream.encode(frame)]
    return packets + [bytes(packet) for packet in stream.encode() if packet.size]


@pytest.mark.parametrize(("codec", "form"), [("libx264", "h264"), ("mjpeg", "mjpeg")])
def test_a_pipe_without_times_is_timed_as_it_comes(tmp_path, caplog, codec, form):
    packets = raw_packets(codec, form, 12)
    with (
        caplog.at_level(logging.WARNING),
        written_to_a_pipe(tmp_path, *packets, pause_seconds=0.15) as pipe,
        LiveVideo(pipe) as video,
    ):
        times = torch.tensor([seconds for _, seconds in video], dtype=torch.float64)
    assert len(times) == 12
    # FFmpeg would say 0.04, and has read all of it before it gave the first one
    assert times.diff().median() == pytest.approx(0.15, abs=0.08)
    assert times[-1] - times[0] == pytest.approx(11 * 0.15, abs=0.8)
    assert caplog.text.count("carries no times, so frames are timed as they come") == 1


def test_a_file_without_times_is_counted(tmp_path, caplog):
    path = tmp_path / "a.h264"
    path.write_bytes(b"".join(raw_packets("libx264", "h264", 12)))
    with caplog.at_level(logging.WARNING), LiveVideo(f"file://{path}") as video:
        times = torch.tensor([seconds for _, seconds in video], dtype=torch.float64)
    assert times.tolist() == pytest.approx([index / 25 for index in range(12)])
    assert "25" in caplog.text


def test_pictures_of_a_server_are_timed_as_they_come(caplog):
    pictures = raw_packets("mjpeg", "mjpeg", 14)

    class Camera(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            for picture in pictures:
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                self.wfile.write(head.encode() + picture + b"\r\n")
                time.sleep(0.15)

    times = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with LiveVideo(f"http://127.0.0.1:{server.server_address[1]}/video") as video, suppress(VideoError):
            for _, seconds in video:
                times.append(seconds)
        server.shutdown()
    assert len(times) >= 12
    # what was read while the source was opened came at once
    assert times[-1] - times[4] == pytest.approx((len(times) - 5) * 0.15, abs=0.5)
    assert "carries" in caplog.text


def test_joined_on_its_way_a_source_starts_at_a_key_frame(tmp_path, transport_stream):
    data = transport_stream.read_bytes()
    packets = [data[at : at + TS_PACKET_BYTES] for at in range(0, len(data), TS_PACKET_BYTES)]
    whole = {round(seconds, 4): pixels for pixels, seconds in frames_of(transport_stream)}
    # tables first, as every joined stream repeats them
    with (
        written_to_a_pipe(tmp_path, b"".join(packets[:3] + packets[len(packets) // 3 :])) as pipe,
        LiveVideo(pipe) as video,
    ):
        live = list(video)
    assert 16 <= len(live) < 40
    assert all(torch.equal(pixels, whole[round(seconds, 4)]) for pixels, seconds in live)


def test_silence_is_an_error_that_says_how_long(tmp_path, transport_stream):
    data = transport_stream.read_bytes()
    with (
        written_to_a_pipe(tmp_path, data, pause_seconds=1.5) as pipe,
        LiveVideo(pipe, timeout_seconds=0.5) as video,
        pytest.raises(VideoError, match=r"pipe.*\d+.*0.5 s"),
    ):
        list(video)


def test_data_without_a_key_frame_is_an_error(tmp_path):
    path = tmp_path / "a.ts"
    write_video(path, noise(40), fps=10, keyframe_interval=100)
    data = path.read_bytes()
    packets = [data[at : at + TS_PACKET_BYTES] for at in range(0, len(data), TS_PACKET_BYTES)]
    # the tables and the key frame's beginning; its end is lost
    broken = packets[:12] + packets[16:]
    parts = [b"".join(broken[len(broken) * i // 10 : len(broken) * (i + 1) // 10]) for i in range(10)]
    with (
        written_to_a_pipe(tmp_path, *parts, pause_seconds=0.1) as pipe,
        LiveVideo(pipe, timeout_seconds=0.2) as video,
        pytest.raises(VideoError, match=r"data.*0\.\d.*\d+"),
    ):
        list(video)


def test_a_source_that_never_sends_is_an_error(tmp_path):
    with (
        written_to_a_pipe(tmp_path, b"", pause_seconds=1.0) as pipe,
        pytest.raises(VideoError, match=r"0\.3 s"),
    ):
        LiveVideo(pipe, timeout_seconds=0.3)


def test_an_mp4_with_its_index_at_the_end_says_what_to_do(tmp_path):
    write_video(tmp_path / "a.mp4", noise(60), fps=10)
    data = (tmp_path / "a.mp4").read_bytes()
    with (
        written_to_a_pipe(tmp_path, data) as pipe,
        pytest.raises(VideoError, match="index"),
        LiveVideo(pipe) as video,
    ):
        list(video)


def test_something_else_is_an_error(tmp_path):
    with (
        written_to_a_pipe(tmp_path, b"no video at all") as pipe,
        pytest.raises(VideoError, match="pipe"),
    ):
        LiveVideo(pipe)
    with pytest.raises(VideoError, match=r"tcp://127\.0\.0\.1:9"):
        LiveVideo("tcp://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"timeout_seconds.*0"):
        LiveVideo("-", timeout_seconds=0)


@pytest.mark.parametrize(
    "source",
    [
        "rtsp://me:hunter2@127.0.0.1:9/1",
        "rtsp://me:p@hunter2/x@127.0.0.1:9/1",
        "http://127.0.0.1:9/1?access_token=hunter2",
        "tcp://127.0.0.1:9?x=hunter2",
    ],
)
def test_messages_keep_secrets_to_themselves(source):
    with pytest.raises(VideoError, match="opened") as refused:
        LiveVideo(source)
    error = refused.value
    assert "127.0.0.1:9" in str(error)
    assert "hunter2" not in str(error) + error.path + repr(error)
    assert error.__cause__ is None
    assert "hunter2" not in "".join(traceback.format_exception(error, chain=True))


def test_a_source_without_video_is_closed(tmp_path):
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    with (
        written_to_a_pipe(tmp_path, path.read_bytes()) as pipe,
        pytest.raises(VideoError, match=r"pipe.*streams: audio\)"),
    ):
        LiveVideo(pipe)
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == before


def test_frames_are_shown_until_the_next_one():
    frames = [torch.full((3, 2, 2), value, dtype=torch.uint8) for value in range(4)]
    shown = list(shown_every(zip(frames, [5.0, 6.2, 6.3, 7.5], strict=True), 0.5))
    assert [seconds for _, seconds in shown] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert [int(pixels[0, 0, 0]) for pixels, _ in shown] == [0, 0, 0, 2, 2, 3]
    assert list(shown_every([], 0.5)) == []


def test_a_long_outage_does_not_grow():
    damage = Damage()
    assert damage.spares(SimpleNamespace(pts=0, key_frame=True, is_corrupt=False))
    for ordinal in range(1, 2000):
        damage.add(ordinal)
        assert not damage.spares(SimpleNamespace(pts=ordinal, key_frame=False, is_corrupt=False))
    assert len(damage._latest) <= 256
    assert damage.spares(SimpleNamespace(pts=2000, key_frame=True, is_corrupt=False))


def test_a_terminal_is_an_error(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ConfigError, match="standard"):
        LiveVideo("-")


def test_slow_use_is_said_once(tmp_path, monkeypatch, caplog):
    path = tmp_path / "a.ts"
    write_video(path, noise(20), fps=1000)
    monkeypatch.setattr("kinescan.data.video.live._BEHIND_SECONDS", 0.05)
    with LiveVideo(f"file://{path}") as video, caplog.at_level(logging.WARNING):
        for _ in video:
            time.sleep(0.02)
    assert caplog.text.count("used more slowly than they come") == 1


@pytest.mark.parametrize(
    ("source", "live"),
    [
        ("-", True),
        ("rtsp://camera/1", True),
        ("http://host/a.ts", True),
        ("a.mp4", False),
        ("missing/a.mp4", False),
        ("a\0.mp4", False),
    ],
)
def test_is_live(source, live):
    assert is_live(source) == live


def test_a_pipe_is_live_and_a_file_is_not(tmp_path, make_video):
    os.mkfifo(tmp_path / "pipe")
    assert is_live(tmp_path / "pipe")
    assert not is_live(make_video())


@pytest.mark.parametrize(("waited", "said"), [(0.0, 1), (20.0, 0)])
def test_who_waits_for_a_frame_is_not_behind(monkeypatch, caplog, waited, said):
    """After a stall of 20 s in which the source's clock stood still."""
    now = iter([0.0, 0.1, 20.1, 20.2])
    monkeypatch.setattr(live_module, "time", SimpleNamespace(monotonic=lambda: next(now)))
    lag = Lag("door")
    for index, seconds in enumerate([0.0, 0.1, 0.2, 0.3]):
        lag.look(seconds, waited if index == 2 else 0.0)
    assert len(caplog.records) == said
