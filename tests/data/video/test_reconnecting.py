import http.server
import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

import pytest
import torch
from tests.data.video.rtsp_camera import RtspCamera

from kinescan.data.resampling import resample
from kinescan.data.video import LiveVideo, Outage, Reconnect, ReconnectingVideo, write_video
from kinescan.errors import ConfigError, VideoError


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


QUICK = Reconnect(limit_seconds=1.0, first_wait_seconds=0.1, longest_wait_seconds=0.4, silence_seconds=1.0)


class Server:
    """Sends one answer to each client; before it are pauses in which nobody listens.

    Args:
        answers: each a pause in seconds, what is sent, and whether the connection stays open and silent.
    """

    def __init__(self, answers: Sequence[tuple[float, bytes, bool]]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as found:
            self._port = found.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self._port}"
        self._answers = answers
        self._is_over = threading.Event()
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self._is_ready.wait(10)

    def close(self) -> None:
        self._is_over.set()
        self._thread.join(20)

    def _serve(self) -> None:
        for pause, data, stays in self._answers:
            if self._is_over.wait(pause):
                return
            with socket.create_server(("127.0.0.1", self._port)) as listener:
                self._is_ready.set()
                listener.settimeout(5)
                connection, _ = listener.accept()
            with connection:
                connection.sendall(data)
                if stays:
                    self._is_over.wait(20)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*answers: tuple[float, bytes, bool]) -> Server:
        servers.append(Server(answers))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """2 s at 10 fps, a key frame every 5."""
    path = tmp_path_factory.mktemp("video") / "a.ts"
    frames = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    write_video(path, frames, fps=10, keyframe_interval=5)
    return path.read_bytes()


def test_a_source_that_comes_back_continues_by_the_walls_clock(serve, recording, caplog):
    """Its own clock begins at the same time again."""
    server = serve((0.0, recording, False), (0.5, recording, False))
    with caplog.at_level(logging.WARNING):
        video = ReconnectingVideo(server.address, reconnect=QUICK)
        times = [seconds for _, seconds in video]
    assert video.num_reconnects == 1
    assert len(times) == 40
    assert all(later > earlier for earlier, later in itertools.pairwise(times))
    # a pause of half a second, and up to 0.4 s until the next try; the first connection was faster than its clock
    assert 0.3 < times[20] - times[19] < 3.0
    assert "Tried again in 0.1 s (try 1)" in caplog.text
    assert "Tried again in 0.2 s (try 2)" in caplog.text
    assert "is back after" in caplog.text


@pytest.mark.parametrize("goes_silent", [False, True])
def test_an_rtsp_camera_that_breaks_off_or_falls_silent_is_opened_again(recording, tmp_path, caplog, goes_silent):
    (tmp_path / "a.ts").write_bytes(recording)
    camera = RtspCamera(tmp_path / "a.ts", 20, [(0.0, 12), (0.3, 12)], goes_silent=goes_silent)
    with caplog.at_level(logging.WARNING):
        video = ReconnectingVideo(camera.address, reconnect=QUICK)
        times = [seconds for _, seconds in itertools.islice(video, 20)]
    camera.close()
    assert video.num_reconnects == 1
    assert camera.requests.count("PLAY") == 2
    assert all(later > earlier for earlier, later in itertools.pairwise(times))
    # what a decoder still holds is lost with a silent camera
    pauses = [at for at in range(1, 20) if times[at] - times[at - 1] > 0.3]
    assert pauses in ([[12]] if not goes_silent else [[10], [11], [12]])
    assert "is back after" in caplog.text


def test_the_time_in_which_frames_came_is_not_time_away(recording, tmp_path):
    (tmp_path / "a.ts").write_bytes(recording)
    camera = RtspCamera(tmp_path / "a.ts", 10, [(0.0, 5), (0.1, 20)])
    seen: list[tuple[float, int]] = []
    came: list[float] = []

    def gives_up(outage: Outage) -> bool:
        seen.append((outage.seconds, len(came)))
        return len(came) > 20

    for _ in ReconnectingVideo(camera.address, reconnect=QUICK, gives_up=gives_up):
        came.append(time.monotonic())
    camera.close()
    away = came[5] - came[4]
    assert came[-1] - came[5] > 0.5
    assert [count for _, count in seen][-1] == 25
    assert seen[-1][0] < away + (came[-1] - came[5]) / 2


def test_a_gap_longer_than_the_rule_begins_anew(serve, recording):
    server = serve((0.0, recording, False), (0.5, recording, False))
    video = ReconnectingVideo(server.address, reconnect=QUICK)
    gaps = [frame.gap_seconds for frame in resample(video, 0.1, longest_gap_seconds=0.3)]
    assert sum(gap > 0 for gap in gaps) == 1
    assert max(gaps) > 0.3


def test_silence_is_a_break(serve, recording, caplog):
    server = serve((0.0, recording, True))
    started = time.monotonic()
    with caplog.at_level(logging.WARNING), pytest.raises(VideoError, match=r"127\.0\.0\.1.*tries"):
        list(ReconnectingVideo(server.address, reconnect=QUICK))
    assert time.monotonic() - started < 10
    assert "Tried again" in caplog.text


def test_a_recording_ends_and_breaks_off_once(serve, recording, tmp_path):
    path = tmp_path / "a.mkv"
    write_video(path, torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8), fps=10)
    assert len(list(ReconnectingVideo(f"file://{path}", reconnect=QUICK))) == 20
    video = ReconnectingVideo(serve((0.0, path.read_bytes(), False)).address, reconnect=QUICK)
    assert len(list(video)) == 20
    assert video.num_reconnects == 0


def test_what_was_live_and_is_a_recording_now_is_not_shown_again(recording, tmp_path):
    class Handler(QuietHandler):
        num_asked = 0

        def do_GET(self) -> None:
            Handler.num_asked += 1
            self.send_response(200)
            if Handler.num_asked > 1:
                self.send_header("Content-Length", str(len(recording)))
            self.end_headers()
            self.wfile.write(recording)

    (tmp_path / "a.ts").write_bytes(recording)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        video = ReconnectingVideo(f"http://127.0.0.1:{server.server_address[1]}/live", reconnect=QUICK)
        seconds = []
        # FFmpeg takes the end of an answer without a length for an error
        with suppress(VideoError):
            for _, shown in video:
                seconds.append(shown)
        server.shutdown()
    assert Handler.num_asked > 1
    with LiveVideo(f"file://{tmp_path / 'a.ts'}") as once:
        num_frames = len(list(once))
    assert num_frames / 2 < len(seconds) <= num_frames
    assert seconds[0] == 0


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_playlist_is_live_until_it_is_closed(recording, tmp_path, is_closed):
    (tmp_path / "a.ts").write_bytes(recording)
    ending = "#EXT-X-ENDLIST\n" if is_closed else ""
    playlist = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\na.ts\n{ending}"
    (tmp_path / "a.m3u8").write_text(playlist)
    handler = partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with LiveVideo(f"http://127.0.0.1:{server.server_address[1]}/a.m3u8", timeout_seconds=5) as video:
            assert video.ends_by_itself == is_closed
        server.shutdown()


def test_a_live_playlist_that_does_not_grow_is_not_shown_again(tmp_path):
    """Its camera is gone, and the server still gives what came last."""

    class Handler(QuietHandler):
        num_segments = 1
        num_asked = 0

        def do_GET(self) -> None:
            if not self.path.endswith("m3u8"):
                return super().do_GET()
            Handler.num_asked += 1
            listed = "".join(f"#EXTINF:1.0,\n{number}.ts\n" for number in range(self.num_segments))
            text = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n{listed}".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    for number in range(2):
        frames = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)
        write_video(tmp_path / f"{number}.ts", frames, fps=10, keyframe_interval=5)
    patient = Reconnect(limit_seconds=3.0, first_wait_seconds=0.1, longest_wait_seconds=0.2, silence_seconds=0.8)
    handler = partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        threading.Timer(2.5, setattr, (Handler, "num_segments", 2)).start()
        video = ReconnectingVideo(f"http://127.0.0.1:{server.server_address[1]}/a.m3u8", reconnect=patient)
        seen = []
        with suppress(VideoError):
            for pixels, _ in video:
                seen.append(pixels.numpy().tobytes())
        server.shutdown()
    assert Handler.num_asked > 2
    # the camera came back with the second segment
    assert video.num_reconnects == 1
    assert 10 < len(seen) == len(set(seen))


@pytest.mark.parametrize("limit_seconds", [0.0, 5.0])
def test_a_source_that_was_never_there_is_an_error_at_once(limit_seconds):
    video = ReconnectingVideo("tcp://127.0.0.1:9", reconnect=Reconnect(limit_seconds=limit_seconds))
    with pytest.raises(VideoError, match="cannot be opened"):
        next(iter(video))


def test_who_asks_decides_when_it_is_given_up(serve, recording):
    seen: list[Outage] = []

    def gives_up(outage: Outage) -> bool:
        seen.append(outage)
        return len(seen) > 1

    server = serve((0.0, recording, False))
    list(ReconnectingVideo(server.address, reconnect=QUICK, gives_up=gives_up))
    assert [outage.was_there for outage in seen] == [True, True]
    assert seen[0].seconds < seen[1].seconds


def test_a_wait_ends_when_it_is_stopped(serve, recording):
    stop = threading.Event()
    server = serve((0.0, recording, False))
    slow = Reconnect(limit_seconds=60, first_wait_seconds=30)
    threading.Timer(1.0, stop.set).start()
    started = time.monotonic()
    assert len(list(ReconnectingVideo(server.address, reconnect=slow, stop=stop))) == 20
    assert time.monotonic() - started < 10


def test_secrets_of_addresses_are_not_said(caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(VideoError) as caught:
        list(
            ReconnectingVideo(
                "http://me:geheim@127.0.0.1:9/live?key=geheim", gives_up=lambda outage: outage.seconds > 0.1
            )
        )
    assert "geheim" not in caplog.text + str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"limit_seconds": -1.0}, {"first_wait_seconds": 0.0}, {"silence_seconds": float("inf")}]
)
def test_settings_of_reconnecting_are_checked(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Reconnect(**settings)
