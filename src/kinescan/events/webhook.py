"""Events by HTTP POST, through outages."""

import base64
import hashlib
import hmac
import http.client
import logging
import random
import re
import socket
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from kinescan.errors import ConfigError
from kinescan.events.disk_queue import DiskQueue
from kinescan.events.told import Told
from kinescan.runtime.escaping import to_json
from kinescan.runtime.urls import mask_url, mask_urls
from kinescan.version import __version__

logger = logging.getLogger(__name__)

SIGNATURE_HEADER, KEY_HEADER = "X-Kinescan-Signature", "Idempotency-Key"
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 60.0
_REMIND_SECONDS = 600.0
_NEVER = frozenset({400, 413, 414, 415, 422, 431})
"""What a server says of a message that it will not take, however often it comes."""
_MOST_REFUSALS = 3
_IDLE_SECONDS = 1.0
_LONGEST_CLOSE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class WebhookSettings:
    """Where events are sent, and what happens where that fails.

    Attributes:
        url: http:// or https://; user and password in it are sent as basic authorization.
        queue: folder where messages wait; None is one beside the stream's state, or in the current folder.
        secret_env: name of an environment variable with the secret that signs messages; None looks for
            KINESCAN_WEBHOOK_SECRET, and signs nothing where it is not set.
        timeout_seconds: how long one attempt may take.
        capacity: how many messages may wait; of more, the oldest are dropped and counted.

    Raises:
        ConfigError: the address is not of http or https, or a number is not positive.
    """

    url: str
    queue: str | None = None
    secret_env: str | None = None
    timeout_seconds: float = 10.0
    capacity: int = 10_000

    def __post_init__(self) -> None:
        _split(self.url)
        if not 0 < self.timeout_seconds <= 3600:
            raise ConfigError(f"timeout_seconds must be above 0 and at most 3600, got {self.timeout_seconds}.")
        if not 1 <= self.capacity <= 10_000_000:
            raise ConfigError(f"capacity must be at least 1 and at most 10,000,000, got {self.capacity}.")


class Webhook:
    """Sends each record as JSON by HTTP POST, in order, one at a time, until the server answers with 2xx.

    `deliver` only puts the record into a queue on the disk; a thread sends what waits there. An attempt that fails (no
    connection, no answer in time, 5xx, 3xx, most of 4xx) is repeated after 1, 2, 4, ... seconds, at most 60, without an
    end. A message that is refused as such (400, 413, 414, 415, 422, 431) is tried three times and then set aside into
    the queue's folder `refused`, so that it does not hold those behind it. What waits at the end of the program is
    sent by the next one with the same queue.

    A message can arrive twice (the answer may be lost on its way): its header Idempotency-Key is the same then. With a
    secret, X-Kinescan-Signature is "sha256=" and the hexadecimal HMAC-SHA256 of the body.

    Args:
        settings: the address, and what else can be chosen.
        queue: folder where messages wait.
        secret: signs messages; None signs none.

    Raises:
        ConfigError: the folder cannot be written, or another process has it.
    """

    def __init__(self, settings: WebhookSettings, queue: str | Path, *, secret: str | None = None) -> None:
        self.settings = settings
        self.name = mask_url(settings.url)
        self.queue = DiskQueue(queue, capacity=settings.capacity)
        self._parts = _split(settings.url)
        self._secret = secret
        self._stop = threading.Event()
        self._connection: http.client.HTTPConnection | None = None
        if len(self.queue):
            logger.info("%s: %d earlier messages wait in %s and are sent first", self.name, len(self.queue), queue)
        self._closing = threading.Event()
        self._arrived = 0.0
        self._thread = threading.Thread(target=self._run, name=f"webhook {self.name}", daemon=True)
        self._thread.start()

    def deliver(self, told: Told) -> None:
        """Puts a record into the queue.

        Raises:
            OSError: the disk does not take it.
        """
        self.queue.put(told.key, to_json(told.to_plain()), stream_id=told.stream_id, sequence=told.sequence)

    def position(self, stream_id: str) -> int:
        """The last record of a stream that the queue took."""
        return self.queue.position(stream_id)

    def close(self, patience_seconds: float) -> None:
        """Sends what waits, as long as no more than that passes without a message that arrives; the rest stays."""
        self._arrived = begun = time.monotonic()
        self._closing.set()
        self.queue.wake()
        while self._thread.is_alive() and time.monotonic() - self._arrived < patience_seconds:
            if time.monotonic() - begun > _LONGEST_CLOSE_SECONDS:
                break
            self._thread.join(0.05)
        self._stop.set()
        self._shut()
        self._thread.join(1.0)
        self.queue.close()
        if len(self.queue):
            logger.warning(
                "%s: %d messages wait in %s; the next stream with this webhook sends them",
                *(self.name, len(self.queue), self.queue.folder),
            )
        for number, what in (
            (self.queue.num_dropped, "dropped, since the queue was full"),
            (self.queue.num_refused, "refused"),
        ):
            if number:
                logger.warning("%s: %d messages were %s (%s)", self.name, number, what, self.queue.folder)

    def _run(self) -> None:
        num_failures, num_refusals, last_said = 0, 0, 0.0
        while not self._stop.is_set():
            entry = self.queue.first(_IDLE_SECONDS if not self._closing.is_set() else 0.0)
            if entry is None:
                if self._closing.is_set():
                    return
                continue
            key, body = entry
            problem, status = self._post(key, body)
            if problem is None:
                self.queue.done(key)
                self._arrived = time.monotonic()
                if num_failures:
                    logger.warning("%s: takes messages again, after %d failures", self.name, num_failures)
                num_failures = num_refusals = 0
                continue
            if self._stop.is_set():
                return
            num_failures += 1
            num_refusals = num_refusals + 1 if status in _NEVER else 0
            if num_refusals >= _MOST_REFUSALS:
                logger.warning(
                    "%s: refuses message %s for good (%s); it is set aside in %s",
                    self.name,
                    key,
                    problem,
                    self.queue.folder,
                )
                self.queue.set_aside(key)
                num_failures = num_refusals = 0
                continue
            if num_failures == 1 or time.monotonic() - last_said > _REMIND_SECONDS:
                last_said = time.monotonic()
                logger.warning(
                    "%s: a message did not arrive (%s); %d wait in %s, and it is tried again. The stream continues.",
                    *(self.name, problem, len(self.queue), self.queue.folder),
                )
            wait = min(_FIRST_WAIT_SECONDS * 2 ** min(num_failures - 1, 10), _LONGEST_WAIT_SECONDS)
            # many streams that lost one server do not all come back at once
            self._stop.wait(wait * random.uniform(0.75, 1.0))

    def _post(self, key: str, body: bytes) -> tuple[str | None, int]:
        """Sends one message; gives why it did not arrive, or None, and the server's status, 0 without one."""
        connection = self._connection = self._open()
        # a server that sends a byte now and then would never meet a time limit of the socket
        limit = threading.Timer(self.settings.timeout_seconds, self._shut)
        limit.daemon = True
        limit.start()
        begun = time.monotonic()
        try:
            connection.request("POST", self._target(), body=body, headers=self._headers(key, body))
            answer = connection.getresponse()
            status = answer.status
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() - begun >= 0.95 * self.settings.timeout_seconds:
                return f"no answer within {self.settings.timeout_seconds:g} s", 0
            return mask_urls(str(getattr(error, "strerror", None) or error) or type(error).__name__), 0
        finally:
            limit.cancel()
            with suppress(OSError):
                connection.close()
        if 200 <= status < 300:
            return None, status
        if 300 <= status < 400:
            return f"the server answers {status} and names another address; give that one", status
        return f"the server answers {status} {http.client.responses.get(status, '')}".rstrip(), status

    def _open(self) -> http.client.HTTPConnection:
        assert self._parts.hostname is not None, "_split has looked"
        timeout = self.settings.timeout_seconds
        if self._parts.scheme.lower() == "https":
            return http.client.HTTPSConnection(
                self._parts.hostname, self._parts.port, timeout=timeout, context=ssl.create_default_context()
            )
        return http.client.HTTPConnection(self._parts.hostname, self._parts.port, timeout=timeout)

    def _target(self) -> str:
        path = self._parts.path or "/"
        return f"{path}?{self._parts.query}" if self._parts.query else path

    def _headers(self, key: str, body: bytes) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "User-Agent": f"kinescan/{__version__}",
            KEY_HEADER: key,
        }
        if self._secret is not None:
            headers[SIGNATURE_HEADER] = signature(self._secret, body)
        if self._parts.username is not None:
            pair = f"{unquote(self._parts.username)}:{unquote(self._parts.password or '')}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        return headers

    def _shut(self) -> None:
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)


def signature(secret: str, body: bytes) -> str:
    """What X-Kinescan-Signature is for a body: a receiver computes the same and compares.

    Example:
        >>> signature("s3cret", b"{}")[:20]
        'sha256=adbde1ce40c89'
    """
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _split(url: str) -> SplitResult:
    """The parts of an address, checked.

    Raises:
        ConfigError: it is not of http or https with a host, or holds what no request can carry.
    """
    advice = "Give http://HOST/PATH or https://HOST/PATH."
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise ConfigError(f"the webhook {mask_url(url)} is not an address ({error}). {advice}") from None
    if parts.scheme.lower() not in ("http", "https") or not host or port == 0:
        raise ConfigError(f"the webhook {mask_url(url)} is not an address of http or https. {advice}")
    if re.search(r"[^!-~]", parts.path + parts.query) or re.search(r"[\s\x00-\x1f]", host):
        raise ConfigError(f"the webhook {mask_url(url)} holds letters that have to be escaped (%20 and the like).")
    return parts
