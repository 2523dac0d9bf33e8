"""Connections: how many may be open, and how long one may say nothing; needs the extra `serve`."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from kinescan.web.settings import ServeLimits

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: 26\r\n\r\ntoo many open connections.\n"[:-1]
)


def protocol(limits: ServeLimits) -> Any:
    """Uvicorn's protocol for HTTP with an end to silence, and to the number of connections.

    A connection that has not sent a whole request head within `stall_seconds` is closed; so an idle socket, or one
    that sends a letter now and then, costs nobody else anything.
    """

    class Bounded(H11Protocol):  # type: ignore[misc]
        def connection_made(self, transport: Any) -> None:
            if len(self.connections) >= limits.connections:
                transport.write(_FULL)
                transport.close()
                self._is_refused = True
                return
            self._is_refused = False
            super().connection_made(transport)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            if not self._is_refused:
                self._watching.cancel()
                super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if not self._is_refused:
                super().data_received(data)

        def eof_received(self) -> None:
            if not self._is_refused:
                super().eof_received()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watching.cancel()
            self._watch()

        def handle_websocket_upgrade(self, event: Any) -> None:
            # a stream has bounds of its own
            self._watching.cancel()
            super().handle_websocket_upgrade(event)

        def _watch(self) -> None:
            self._watching = asyncio.get_running_loop().call_later(limits.stall_seconds, self._close_if_silent)

        def _close_if_silent(self) -> None:
            # a request under way has bounds of its own
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Bounded
