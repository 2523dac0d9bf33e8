import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.events.conftest import MakeTold

from kinescan.errors import ConfigError
from kinescan.events import webhook as module
from kinescan.events.webhook import Webhook, WebhookSettings, signature


class _Server:
    """Answers each POST with the next of `answers`, the last of them for ever: a status, "hang", "drip" or "close"."""

    def __init__(self, answers: list[int | str]) -> None:
        self.answers, self.requests, self.end = answers, [], threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append((self.path, dict(self.headers), body))
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                if answer == "hang":
                    outer.end.wait(20)
                elif answer == "drip":
                    self.wfile.write(b"HTTP/1.1 2")
                    while not outer.end.wait(0.02):
                        try:
                            self.wfile.write(b"X")
                            self.wfile.flush()
                        except OSError:
                            return
                elif answer == "close":
                    self.connection.shutdown(socket.SHUT_RDWR)
                else:
                    self.send_response(int(answer))
                    self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                    self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def keys(self) -> list[str]:
        return [headers["Idempotency-Key"] for _, headers, _ in self.requests]

    def close(self) -> None:
        self.end.set()
        self._server.shutdown()
        self._server.server_close()


Serve = Callable[..., _Server]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setattr(module, "_FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(module, "_IDLE_SECONDS", 0.05)
    opened = []

    def start(*answers: int | str) -> _Server:
        opened.append(_Server(list(answers)))
        return opened[-1]

    yield start
    for server in opened:
        server.close()


def _webhook(port: int, folder: Path, *, timeout: float = 5.0, secret: str | None = None) -> Webhook:
    settings = WebhookSettings(url=f"http://me:p%40ss@127.0.0.1:{port}/hook?token=abc", timeout_seconds=timeout)
    return Webhook(settings, folder / "queue", secret=secret)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_record_arrives_signed_with_its_key(serve: Serve, tmp_path: Path, make_told: MakeTold) -> None:
    server = serve(204)
    hook = _webhook(server.port, tmp_path, secret="s3cret")
    hook.deliver(make_told(1))
    hook.close(5.0)
    path, headers, body = server.requests[0]
    assert json.loads(body) == make_told(1).to_plain()
    assert path == "/hook?token=abc"
    assert headers["Idempotency-Key"] == "s-1-start"
    assert headers["X-Kinescan-Signature"] == signature("s3cret", body)
    assert headers["Authorization"] == "Basic bWU6cEBzcw=="
    assert headers["Content-Type"].startswith("application/json")
    assert len(server.requests) == 1


@pytest.mark.parametrize("failure", [500, 503, 301, 404, 429, "close"])
def test_what_did_not_arrive_is_sent_again_in_order(
    serve: Serve, tmp_path: Path, make_told: MakeTold, failure: int | str, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(failure, failure, 200)
    hook = _webhook(server.port, tmp_path)
    for number in (1, 2, 3):
        hook.deliver(make_told(number))
    hook.close(5.0)
    assert server.keys() == ["s-1-start"] * 3 + ["s-2-start", "s-3-start"]
    assert "abc" not in caplog.text
    assert "p%40ss" not in caplog.text
    assert "after 2 failures" in caplog.text


@pytest.mark.parametrize("answer", ["hang", "drip"])
def test_a_server_that_hangs_is_given_up_in_time(
    serve: Serve, tmp_path: Path, make_told: MakeTold, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(answer, 200)
    hook = _webhook(server.port, tmp_path, timeout=0.3)
    begun = time.monotonic()
    hook.deliver(make_told(1))
    assert time.monotonic() - begun < 0.3
    _until(lambda: len(server.requests) == 2)
    hook.close(5.0)
    assert "within 0.3 s" in caplog.text
    assert len(hook.queue) == 0


def test_an_outage_loses_nothing_and_the_next_process_sends_it(
    serve: Serve, tmp_path: Path, make_told: MakeTold, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hook = _webhook(port, tmp_path)
    for number in range(1, 6):
        hook.deliver(make_told(number))
    begun = time.monotonic()
    hook.close(0.2)
    assert time.monotonic() - begun < 3
    assert "5 messages wait" in caplog.text
    server = serve(200)
    again = _webhook(server.port, tmp_path)
    assert again.position("s") == 5
    _until(lambda: len(server.requests) == 5)
    again.close(1.0)
    assert server.keys() == [f"s-{number}-start" for number in range(1, 6)]


def test_one_that_is_refused_for_good_holds_nobody(
    serve: Serve, tmp_path: Path, make_told: MakeTold, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(422, 422, 422, 200)
    hook = _webhook(server.port, tmp_path)
    hook.deliver(make_told(1))
    hook.deliver(make_told(2))
    hook.close(5.0)
    assert server.keys() == ["s-1-start"] * 3 + ["s-2-start"]
    assert len(list((tmp_path / "queue" / "refused").iterdir())) == 1
    assert "1 messages were refused" in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://host/x", "http://", "http:///x", "https://host:99999/x", "http://host:0/x", "host/x", "http://[::1/x"),
        *("http://host/a b", "http://host/é", ""),
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        WebhookSettings(url=url)


@pytest.mark.parametrize("values", [{"timeout_seconds": 0.0}, {"timeout_seconds": float("nan")}, {"capacity": 0}])
def test_numbers_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        WebhookSettings(url="http://host/x", **values)
