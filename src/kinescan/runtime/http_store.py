"""Ranges of bytes by HTTP, over connections that stay open."""

import base64
import http.client
import netrc
import socket
import ssl
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from kinescan.version import __version__

MOST_REDIRECTS = 5
_CHUNK = 2**18


class StoreError(OSError):
    """Something that is stored elsewhere cannot be read.

    Attributes:
        reason: why, and what to do.
        is_gone: it is not there, or its store does not answer; otherwise what it holds is wrong.
        may_pass: the same request may succeed later.
        status: of HTTP, or what stands for it; 0 where there was no answer.
    """

    def __init__(self, reason: str, *, is_gone: bool = True, may_pass: bool = False, status: int = 0) -> None:
        super().__init__(reason)
        self.reason, self.is_gone, self.may_pass, self.status = reason, is_gone, may_pass, status

    def __reduce__(self) -> tuple[type["StoreError"], tuple[str], dict[str, int]]:
        """Worker processes send errors by pickling."""
        kept = {"is_gone": self.is_gone, "may_pass": self.may_pass, "status": self.status}
        return type(self), (self.reason,), kept


@dataclass(frozen=True)
class Part:
    """An answer to a request for a range.

    Attributes:
        data: the bytes.
        num_bytes: of the whole.
        version: what tells this content from others: an ETag or a date; empty where the store says none.
    """

    data: bytes = field(repr=False)
    num_bytes: int
    version: str


class _Connections(dict[tuple[str, str], http.client.HTTPConnection]):
    """Those that one thread keeps open; they are closed when it ends."""

    def __del__(self) -> None:
        for connection in self.values():
            with suppress(OSError):
                connection.close()


class HttpStore:
    """Reads ranges of what HTTP servers hold; each thread keeps one connection to each host.

    Redirects are followed on the same host only, and from http to https there; where one leads to another host, the
    error names it. Certificates are checked. `http_proxy`, `https_proxy`, `no_proxy` and ~/.netrc are obeyed.

    Args:
        seconds: how long one request may take.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._local = threading.local()

    def read(self, address: str, start: int, end: int) -> Part:
        """The bytes from start to end, fewer where it is shorter.

        Raises:
            StoreError: the server refuses, does not answer in time, or gives something else.
        """
        origin = urlsplit(address)
        for _ in range(MOST_REDIRECTS + 1):
            parts = urlsplit(address)
            answer, data = self._ask(parts, start, end)
            if answer.status not in (301, 302, 303, 307, 308):
                return _part(answer, data, start, end)
            address = _redirected(origin, address, answer.headers.get("Location", ""))
        raise StoreError(f"the server redirects more than {MOST_REDIRECTS} times. Give the address that it leads to.")

    def _ask(self, parts: SplitResult, start: int, end: int) -> tuple[http.client.HTTPResponse, bytes]:
        deadline = time.monotonic() + self.seconds
        connections = self._connections()
        key = parts.scheme, parts.netloc
        for is_last in (False, True):
            kept = None if is_last else connections.pop(key, None)
            connection = kept or self._connect(parts)
            try:
                answer, data = self._exchange(connection, parts, start, end, deadline)
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                if isinstance(error, StoreError) or kept is None:
                    raise failed_request(error, self.seconds) from error
                # the server closed a connection that nobody used for a while
                continue
            if answer.isclosed() and not answer.will_close:
                connections[key] = connection
            else:
                connection.close()
            return answer, data
        raise AssertionError

    def _connections(self) -> _Connections:
        if not hasattr(self._local, "connections"):
            self._local.connections = _Connections()
        found: _Connections = self._local.connections
        return found

    def _connect(self, parts: SplitResult) -> http.client.HTTPConnection:
        host, secure = parts.hostname or "", parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(parts.scheme)
        if not proxy:
            return _connection(host, port, secure, self.seconds)
        through = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        connection = _connection(through.hostname or "", through.port or 8080, secure, self.seconds)
        connection.set_tunnel(host, port)
        return connection

    def _exchange(
        self, connection: http.client.HTTPConnection, parts: SplitResult, start: int, end: int, deadline: float
    ) -> tuple[http.client.HTTPResponse, bytes]:
        headers = {
            "Range": f"bytes={start}-{end - 1}",
            "Accept-Encoding": "identity",
            "User-Agent": f"kinescan/{__version__}",
            **_authorization(parts.hostname or ""),
        }
        connection.request("GET", quote(parts.path or "/", safe="/%:@!$&'()*+,;=~"), headers=headers)
        answer = connection.getresponse()
        # of an answer without ranges, what is needed and not one byte more
        most = end - start if answer.status == 206 else (end if answer.status == 200 else _CHUNK)
        chunks: list[bytes] = []
        while most > 0 and (chunk := answer.read1(min(most, _CHUNK))):
            chunks.append(chunk)
            most -= len(chunk)
            if time.monotonic() > deadline:
                raise TimeoutError
        return answer, b"".join(chunks)


def _connection(host: str, port: int, secure: bool, seconds: float) -> http.client.HTTPConnection:
    if secure:
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, port, timeout=seconds, context=context)
    return http.client.HTTPConnection(host, port, timeout=seconds)


def _authorization(host: str) -> dict[str, str]:
    with suppress(OSError, netrc.NetrcParseError):
        found = netrc.netrc().authenticators(host)
        if found is not None and found[2]:
            token = base64.b64encode(f"{found[0]}:{found[2]}".encode()).decode()
            return {"Authorization": f"Basic {token}"}
    return {}


def _redirected(origin: SplitResult, address: str, location: str) -> str:
    target = urljoin(address, location)
    parts = urlsplit(target)
    safer = (origin.scheme, parts.scheme) in {("http", "http"), ("https", "https"), ("http", "https")}
    same_port = parts.port == origin.port or (parts.scheme != origin.scheme and parts.port is None)
    if not location or parts.hostname != origin.hostname or not safer or not same_port:
        where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if location else "nowhere"
        raise StoreError(f"the server redirects to {where}, which is not followed. Give an address there, or a copy.")
    return target


def failed_request(error: Exception, seconds: float) -> StoreError:
    """The error for what the standard library raises where a server does not answer.

    Args:
        error: that was raised.
        seconds: how long the request could take.
    """
    if isinstance(error, StoreError):
        return error
    if isinstance(error, TimeoutError | socket.timeout):
        return StoreError(f"no answer, or not all of it, in {seconds:g} s. Is the server slow?", may_pass=True)
    if isinstance(error, ssl.SSLCertVerificationError):
        return StoreError(f"the server's certificate is not valid ({error.verify_message}).")
    if isinstance(error, socket.gaierror):
        return StoreError("no such host is known. Check the address.", may_pass=True)
    text = getattr(error, "strerror", None) or type(error).__name__
    return StoreError(f"the connection failed ({text}).", may_pass=True)


def _part(answer: http.client.HTTPResponse, data: bytes, start: int, end: int) -> Part:
    status = answer.status
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    if status == 206:
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if not total.isdecimal():
            raise StoreError("the server does not say how long the whole is (Content-Range).", is_gone=False)
        return _whole(Part(data, int(total), version), start, end)
    if status == 200:
        length = answer.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise StoreError("the server gives no ranges of bytes and no length. Use one that does, or a copy.")
        return _whole(Part(data[start:], int(length), version), start, end)
    if status == 416:
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        return Part(b"", int(total) if total.isdecimal() else 0, version)
    raise status_error(status, answer.reason)


def _whole(part: Part, start: int, end: int) -> Part:
    promised = max(0, min(end, part.num_bytes) - start)
    if len(part.data) != promised:
        raise StoreError(f"{len(part.data):,} bytes arrived of {promised:,} that were promised.", may_pass=True)
    return part


def status_error(status: int, said: str = "") -> StoreError:
    """The error for a status of HTTP."""
    if status in (401, 403):
        reason = f"the store refuses ({status}). Check the address and your credentials."
        return StoreError(reason, status=status)
    if status in (404, 410):
        return StoreError(f"it is not there ({status}). Check the address.", status=404)
    may_pass = status in (408, 425, 429) or status >= 500
    return StoreError(f"the store answers with {status} {said}".strip() + ".", may_pass=may_pass, status=status)
