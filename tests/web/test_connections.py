import socket
import time
from contextlib import ExitStack

import httpx

from .conftest import LIMITS, Served


def test_clients_that_stop_in_their_body_keep_no_connection_from_others(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc"
    with ExitStack() as stack:
        stalled = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(LIMITS.connections)]
        for one in stalled:
            one.sendall(head)
        time.sleep(LIMITS.stall_seconds / 5)
        before = time.monotonic()
        with httpx.Client(base_url=served.url, timeout=60) as client:
            assert client.get("/health").status_code == 200
            assert time.monotonic() - before < LIMITS.stall_seconds / 2
            # those that made room are told why, and their requests have ended
            stalled[0].settimeout(10)
            assert stalled[0].recv(100).startswith(b"HTTP/1.1 503")
            video = (served.folder / "secret.mp4").read_bytes()
            assert client.post("/v1/predict", content=video).status_code == 200
