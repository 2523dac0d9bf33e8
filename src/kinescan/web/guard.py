"""What every request passes first: who asks, how long a body may be and take, and one line about it in the log."""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from kinescan.runtime.quantities import byte_size
from kinescan.web.metrics import Metrics
from kinescan.web.problems import RequestProblem, problem_body
from kinescan.web.settings import ServeConfig, is_loopback

logger = logging.getLogger("kinescan.web.requests")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/health",)
"""Answered without a key."""
CLIENT_GONE = 499
"""Status in log and metrics where a client hung up before its body was there; nobody is sent it."""
_KEY_PROTOCOL = "openai-insecure-api-key."
_REALM = (b"www-authenticate", b'Basic realm="kinescan"')


class Guard:
    """Wraps the whole application (ASGI).

    Args:
        app: what is guarded.
        config: of the service.
        metrics: where requests are counted.
    """

    def __init__(self, app: App, config: ServeConfig, metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, config.limits, metrics
        self._digest = None if config.api_key is None else _digest(config.api_key)
        self._only_loopback = config.api_key is None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or has it answered."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        number, begun = secrets.token_hex(8), time.perf_counter()
        sent: dict[str, Any] = {"status": 101 if scope["type"] == "websocket" else 500, "begun": False}
        sent["owed"] = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"

        async def note(message: Message) -> None:
            if sent["status"] == CLIENT_GONE:
                return
            if message["type"] == "http.response.start":
                sent.update(status=message["status"], begun=True)
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", number.encode())]
                if sent["owed"] and (b"connection", b"close") not in message["headers"]:
                    # answered before the whole body was there: what else the client may send is not read
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            self._check(scope, headers)
            bounded = receive if scope["type"] == "websocket" else self._bounded(receive, sent)
            await self._app(scope, bounded, note)
        except RequestProblem as problem:
            sent["status"] = problem.status
            if not sent["begun"]:
                await _refuse(scope, receive, note, problem)
        except Exception:
            # a client that went away in the middle of its body is not an error of this service
            if sent["status"] != CLIENT_GONE:
                raise
        finally:
            seconds = time.perf_counter() - begun
            route = getattr(scope.get("route"), "path", None) or _kind_of(scope["path"])
            method = "WS" if scope["type"] == "websocket" else _known_method(scope["method"])
            self._metrics.request(method, route, sent["status"], seconds)
            line = {"id": number, "method": method, "route": route, "status": sent["status"]}
            client = (scope.get("client") or ("?",))[0]
            logger.info("%s", json.dumps({**line, "seconds": round(seconds, 4), "client": client}))

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        if self._only_loopback:
            # a page elsewhere may send a browser here under another name, or speak for it
            if not is_loopback(_host_of(headers.get("host", ""))):
                raise RequestProblem(403, "without an API key, only localhost is answered.", "host_not_allowed")
            origin = headers.get("origin")
            if origin not in (None, "null") and not is_loopback(_host_of(origin.partition("://")[2])):
                raise RequestProblem(403, "pages of other hosts may not ask here.", "origin_not_allowed")
        elif scope["path"] not in OPEN_PATHS and not self._has_key(headers):
            raise RequestProblem(401, "an API key is needed: Authorization: Bearer KEY.", "invalid_api_key")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._limits.body_bytes:
            raise RequestProblem(413, f"bodies may have {byte_size(self._limits.body_bytes)}.", "too_large")

    def _has_key(self, headers: dict[str, str]) -> bool:
        kind, _, value = headers.get("authorization", "").partition(" ")
        given = value.strip() if kind.lower() == "bearer" else ""
        if kind.lower() == "basic":
            # what browsers send for the page: any name, the key as the password
            try:
                given = base64.b64decode(value).decode().partition(":")[2]
            except (binascii.Error, ValueError):
                given = ""
        for protocol in headers.get("sec-websocket-protocol", "").split(","):
            if protocol.strip().startswith(_KEY_PROTOCOL):
                given = protocol.strip()[len(_KEY_PROTOCOL) :]
        assert self._digest is not None, "asked only where there is a key"
        return hmac.compare_digest(_digest(given), self._digest)

    def _bounded(self, receive: Receive, sent: dict[str, Any]) -> Receive:
        limits, received, is_over = self._limits, 0, False
        end = time.monotonic() + limits.body_seconds

        async def next_message() -> Message:
            nonlocal received, is_over
            if is_over:
                # only a farewell comes now, and it may take as long as it likes
                return await receive()
            wait = min(limits.stall_seconds, end - time.monotonic())
            try:
                message = await asyncio.wait_for(receive(), max(0.001, wait))
            except TimeoutError:
                raise RequestProblem(408, "the body did not come in time.", "body_too_slow") from None
            if message["type"] == "http.disconnect" and not sent["begun"]:
                sent["status"] = CLIENT_GONE
            received += len(message.get("body", b""))
            if received > limits.body_bytes:
                raise RequestProblem(413, f"bodies may have {byte_size(limits.body_bytes)}.", "too_large")
            is_over = message["type"] != "http.request" or not message.get("more_body", False)
            sent["owed"] = not is_over
            return message

        return next_message


async def _refuse(scope: Scope, receive: Receive, send: Send, problem: RequestProblem) -> None:
    if scope["type"] == "websocket":
        await receive()
        # before it is accepted, this is an answer 403 to the client
        await send({"type": "websocket.close", "code": 1008, "reason": problem.message[:120]})
        return
    body = json.dumps(problem_body(problem.status, problem.message, problem.code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # what else the client may send is not read
    headers += [(b"connection", b"close"), *([_REALM] if problem.status == 401 else [])]
    headers += [(b"retry-after", b"1")] if problem.status in (429, 503) else []
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _host_of(text: str) -> str:
    """The host of a Host header, without the port.

    Example:
        >>> _host_of("localhost:8000"), _host_of("[::1]:8000")
        ('localhost', '::1')
    """
    text = text.partition("/")[0].lower()
    return text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]


def _kind_of(path: str) -> str:
    """What requests without a route of ours are counted as; never what a client wrote."""
    return "/gradio_api" if path.startswith("/gradio_api/") else "other"


def _known_method(method: str) -> str:
    return method if method in ("GET", "POST", "DELETE", "HEAD", "PUT", "OPTIONS", "PATCH") else "OTHER"
