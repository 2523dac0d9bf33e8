import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from tests.loopback_store import serve

from kinescan.data.video.fetching import fetched
from kinescan.errors import VideoError
from kinescan.runtime import remote

# of the server's sockets whose client has gone
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("dropped_sockets"),
]


class _Handler(BaseHTTPRequestHandler):
    content: ClassVar[bytes] = b"0123456789" * 100

    def do_GET(self) -> None:
        self.close_connection = True
        if self.path.startswith("/to"):
            self.send_response(302)
            self.send_header("Location", self.path.partition("=")[2])
            self.end_headers()
            return
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content) * (2 if self.path == "/short" else 1)))
        self.end_headers()
        for start in range(0, len(self.content), 100):
            self.wfile.write(self.content[start : start + 100])
            if self.path == "/slow":
                time.sleep(0.1)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        # closing the server waits for those whose client has gone
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_fetched_gives_the_file_and_deletes_it(server: str) -> None:
    for address in ("/a.mp4", f"/to={server}/a.mp4"):
        with fetched(server + address) as path:
            assert path.read_bytes() == _Handler.content
        assert not path.exists()


def test_too_long_too_slow_missing_and_other_schemes_are_errors(server: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    cases = [
        (server + "/a.mp4", {"max_bytes": 999}),
        (server + "/missing", {}),
        (server + f"/to=file://{tmp_path}/secret", {}),
        (f"file://{tmp_path}/secret", {}),
        ("ftp://127.0.0.1/a", {}),
        ("http://127.0.0.1:1/a", {}),
    ]
    for url, settings in cases:
        with pytest.raises(VideoError), fetched(url, **settings):
            pass
    begun = time.monotonic()
    with pytest.raises(VideoError), fetched(server + "/slow", timeout_seconds=0.3):
        pass
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 503}, {"short_by": 10}])
def test_what_may_pass_is_tried_again(fault: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_WAIT_SECONDS", 0.001)
    (tmp_path / "a.mp4").write_bytes(_Handler.content)
    with serve(tmp_path) as (url, served):
        vars(served).update(fault, times=3)
        with fetched(f"{url}/a.mp4") as path:
            assert path.read_bytes() == _Handler.content
        assert served.num_requests == 4
        vars(served).update(times=9, num_requests=0)
        with pytest.raises(VideoError), fetched(f"{url}/a.mp4"):
            pass
        assert served.num_requests == 4


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_is_told_at_once(status: int, tmp_path: Path) -> None:
    with serve(tmp_path) as (url, served):
        served.status = status
        with pytest.raises(VideoError) as refused, fetched(f"{url}/a.mp4"):
            pass
    assert str(status) in refused.value.reason
    assert served.num_requests == 1


def test_each_address_is_asked_for_only_if_allowed(server: str) -> None:
    asked: list[str] = []

    def allow(url: str) -> None:
        asked.append(url)
        if "/to=" not in url:
            raise VideoError(url, "is not on the list.")

    with pytest.raises(VideoError) as found, fetched(f"{server}/to={server}/b.mp4", allow=allow):
        pass
    assert found.value.reason == "is not on the list."
    assert asked == [f"{server}/to={server}/b.mp4", f"{server}/b.mp4"]


def test_secrets_of_an_address_are_not_shown(server: str) -> None:
    address = server.replace("http://", "http://me:hunter2@") + "/missing?token=hunter3"
    with pytest.raises(VideoError) as found, fetched(address):
        pass
    assert "hunter" not in str(found.value)
