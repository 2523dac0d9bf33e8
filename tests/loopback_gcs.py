"""Google Cloud Storage's JSON API on this machine, as far as gcsfs uses it, over a folder; can be made to fail."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/(?P<bucket>[^/]+)/o/(?P<key>.+)")
_LISTING = re.compile(r"/storage/v1/b/(?P<bucket>[^/]+)/o/?")
_UPLOAD = re.compile(r"/upload/storage/v1/b/(?P<bucket>[^/]+)/o")
_MULTIPART = re.compile(rb"--==0==\n.*?\n\n(?P<facts>.*?)\n--==0==\n.*?\n\n(?P<data>.*)\n--==0==--", re.DOTALL)


@dataclass
class Gcs:
    """What the server does.

    Attributes:
        url: of the server, for STORAGE_EMULATOR_HOST.
        folder: whose folders are buckets.
        status: answered instead, to requests whose address holds `failing`.
        failing: see `status`.
        times: how often it fails.
        seconds: waited before each answer to such requests.
        short: half of such a body arrives.
        requests: method and address of each.
    """

    url: str
    folder: Path
    status: int = 0
    failing: str = ""
    times: int = 10**9
    seconds: float = 0.0
    short: bool = False
    requests: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    told: Gcs
    begun: dict[str, tuple[Path, bytes]]

    def _path(self, bucket: str, key: str = "") -> Path:
        return self.told.folder / unquote(bucket) / unquote(key)

    def _fails(self) -> bool:
        told = self.told
        told.requests.append(f"{self.command} {self.path}")
        if not (told.status or told.seconds) or told.failing not in unquote(self.path) or told.times <= 0:
            return False
        told.times -= 1
        time.sleep(told.seconds)
        if told.status:
            self._answer(told.status, {"error": {"code": told.status, "message": "no"}})
        return bool(told.status)

    def do_GET(self) -> None:
        if self._fails():
            return
        url = urlsplit(self.path)
        asked = parse_qs(url.query)
        if found := _OBJECT.fullmatch(url.path):
            file = self._path(found["bucket"], found["key"])
            if not file.is_file():
                self._answer(404, {"error": {"code": 404, "message": "No such object"}})
            elif asked.get("alt") == ["media"]:
                self._media(file.read_bytes())
            else:
                self._answer(200, self._facts(file))
        elif found := _LISTING.fullmatch(url.path):
            self._list(self._path(found["bucket"]), asked)
        else:
            self._answer(404, {"error": {"code": 404, "message": "no such method"}})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self._fails():
            return
        url = urlsplit(self.path)
        asked = parse_qs(url.query)
        if asked.get("upload_id"):
            file, before = self.begun[asked["upload_id"][0]]
            body = before + body
            self.begun[asked["upload_id"][0]] = file, body
            total = int(self.headers["Content-Range"].rpartition("/")[2])
            if len(body) < total:
                self._answer(308, None, {"Range": f"bytes=0-{len(body) - 1}"})
                return
        else:
            found = _UPLOAD.fullmatch(url.path)
            assert found is not None
            if not self._path(found["bucket"]).is_dir():
                self._answer(404, {"error": {"code": 404, "message": "The specified bucket does not exist."}})
                return
            if asked["uploadType"] == ["resumable"]:
                name = str(len(self.begun))
                self.begun[name] = self._path(found["bucket"], json.loads(body)["name"]), b""
                self._answer(200, None, {"Location": f"{self.told.url}{url.path}?upload_id={name}"})
                return
            parts = _MULTIPART.fullmatch(body)
            assert parts is not None
            file, body = self._path(found["bucket"], json.loads(parts["facts"])["name"]), parts["data"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(body)
        self._answer(200, self._facts(file))

    def do_DELETE(self) -> None:
        if self._fails():
            return
        if found := _OBJECT.fullmatch(urlsplit(self.path).path):
            self._path(found["bucket"], found["key"]).unlink()
        # or else an upload is given up
        self._answer(204, None)

    def _list(self, bucket: Path, asked: dict[str, list[str]]) -> None:
        prefix, delimiter = asked.get("prefix", [""])[0], asked.get("delimiter", [""])[0]
        items, prefixes = [], set()
        for file in sorted(bucket.rglob("*")):
            name = file.relative_to(bucket).as_posix()
            if not file.is_file() or not name.startswith(prefix):
                continue
            inner = name[len(prefix) :]
            if delimiter and delimiter in inner:
                prefixes.add(prefix + inner.partition(delimiter)[0] + delimiter)
            else:
                items.append(self._facts(file))
        self._answer(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def _facts(self, file: Path) -> dict[str, object]:
        bucket, _, name = file.relative_to(self.told.folder).as_posix().partition("/")
        found = file.stat()
        facts = {"kind": "storage#object", "bucket": bucket, "name": name, "size": str(found.st_size)}
        times = dict.fromkeys(("timeCreated", "updated"), "2026-01-01T00:00:00.000Z")
        number = str(found.st_mtime_ns)
        return {**facts, **times, "generation": number, "metageneration": "1", "etag": number}

    def _media(self, data: bytes) -> None:
        total = len(data)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            self._answer(200, data)
            return
        data = data[int(wanted[1]) : int(wanted[2]) + 1]
        self._answer(206, data, {"Content-Range": f"bytes {wanted[1]}-{int(wanted[1]) + len(data) - 1}/{total}"})

    def _answer(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            short = self.told.short and isinstance(body, bytes)
            self.wfile.write(data[: len(data) // 2] if short else data)
            self.close_connection = self.close_connection or short
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve_gcs(folder: Path) -> Iterator[Gcs]:
    """A server over a folder, whose folder "bucket" is the bucket gs://bucket."""
    (folder / "bucket").mkdir(parents=True)
    handler: type[_Handler] = type("Handler", (_Handler,), {"begun": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    handler.told = Gcs(f"http://127.0.0.1:{server.server_port}", folder)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield handler.told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
