"""A web server on this machine that gives ranges of files, counts, and can be made to fail."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Behaviour:
    """What the server does."""

    status: int = 0
    """Answered to each request for a path below; 0: nothing special."""
    failing: str = ""
    """End of the paths that fail; empty: all."""
    times: int = 10**9
    """How often they fail."""
    short_by: int = 0
    """Bytes fewer than promised."""
    seconds: float = 0.0
    """Before each answer."""
    trickle: float = 0.0
    """Between two halves of a body."""
    ranges: bool = True
    redirect: str = ""
    num_requests: int = 0
    num_bytes: int = 0
    headers: list[dict[str, str]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour: Behaviour
    root: Path

    def do_GET(self) -> None:
        told = self.behaviour
        told.num_requests += 1
        told.headers.append(dict(self.headers))
        time.sleep(told.seconds)
        fails = self.path.endswith(told.failing) and told.times > 0
        if fails and (told.status or told.short_by or told.trickle or told.redirect):
            told.times -= 1
        else:
            fails = False
        if fails and told.redirect:
            self._answer(302, b"", {"Location": told.redirect})
            return
        if fails and told.status:
            self._answer(told.status, b"no")
            return
        file = self.root / unquote(self.path).lstrip("/")
        if not file.is_file():
            self._answer(404, b"no such file")
            return
        data, headers, status = file.read_bytes(), {"ETag": f'"{file.stat().st_mtime_ns}"'}, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and told.ranges:
            start, end = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            status = 206
            if start >= len(data):
                self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            data = data[start:end]
        self._answer(status, data, headers, fails=fails)

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None, *, fails: bool = False) -> None:
        told = self.behaviour
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            if fails and told.short_by:
                self.wfile.write(data[: max(0, len(data) - told.short_by)])
                self.close_connection = True
                return
            if fails and told.trickle:
                self.wfile.write(data[: len(data) // 2])
                time.sleep(told.trickle)
                data = data[len(data) // 2 :]
            told.num_bytes += len(data)  # before it is sent: the client may look at once
            self.wfile.write(data)
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(root: Path) -> Iterator[tuple[str, Behaviour]]:
    """The address of a server over a folder, and what it does."""
    behaviour = Behaviour()
    handler = type("Handler", (_Handler,), {"behaviour": behaviour, "root": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", behaviour
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
