"""Connections: how many may be open, and how long one may say nothing; needs the extra `serve`."""

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from kinescan.web.settings import ServeLimits

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: 26\r\n\r\ntoo many open connections.\n"[:-1]
)


def protocol(limits: ServeLimits) -> Any:
    """Uvicorn's protocol for HTTP with an end to silence, and to the number of connections.

    A connection that has not sent a whole request head within `stall_seconds` is closed, and so is one that does not
    take its answer for so long; an idle socket, or one that sends a letter now and then, costs nobody else anything.
    Where all connections are taken, the one that has been idle for longest makes room for the new one; where none is
    idle, the one whose body has not come on for longest, and for a twentieth of `stall_seconds` at least.
    """
    return type("Bounded", (_Bounded,), {"limits": limits, "idle": {}})


class _Bounded(H11Protocol):  # type: ignore[misc]
    limits: ServeLimits
    idle: dict[Any, None]
    """In the order in which they fell idle; a request that begins is noticed only when room is needed."""
    _is_refused = False
    _last_came = 0.0
    """When a client last sent anything."""
    _watching: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        if len(self.connections) >= self.limits.connections and not self._make_room_for_one():
            _turn_away(transport)
            self._is_refused = True
            return
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self._untake()
        if not self._is_refused:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._last_came = time.monotonic()
        if not self._is_refused:
            super().data_received(data)

    def eof_received(self) -> None:
        if not self._is_refused:
            super().eof_received()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking = asyncio.get_running_loop().call_later(self.limits.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._untake()
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unwatch()
        self._watch()

    def handle_websocket_upgrade(self, event: Any) -> None:
        # a stream has bounds of its own
        self._unwatch()
        self._untake()
        super().handle_websocket_upgrade(event)

    def is_idle(self) -> bool:
        """Whether no request is under way; those have bounds of their own."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def silence(self) -> float:
        """Seconds since a client that owes more of its body has sent any; 0 where it owes nothing."""
        owes = not self.is_idle() and self.cycle.more_body and not self.flow.read_paused
        return time.monotonic() - self._last_came if owes else 0.0

    def make_room(self) -> None:
        """Leaves, so that another connection can come."""
        # a request that is under way hears of its end when the connection is lost
        self._is_refused = self.is_idle()
        self._unwatch()
        self.connections.discard(self)
        _turn_away(self.transport)

    def _watch(self) -> None:
        self.idle[self] = None
        self._watching = asyncio.get_running_loop().call_later(self.limits.stall_seconds, self._close_if_silent)

    def _unwatch(self) -> None:
        self.idle.pop(self, None)
        if self._watching is not None:
            self._watching.cancel()

    def _untake(self) -> None:
        if self._taking is not None:
            self._taking.cancel()

    def _close_if_silent(self) -> None:
        if self.is_idle():
            self.transport.close()

    def _make_room_for_one(self) -> bool:
        for one in list(self.idle):
            del self.idle[one]
            if one.is_idle():
                one.make_room()
                return True
        silent = max((one for one in self.connections if isinstance(one, _Bounded)), key=_Bounded.silence, default=None)
        if silent is None or silent.silence() < self.limits.stall_seconds / 20:
            return False
        silent.make_room()
        return True


def _turn_away(transport: Any) -> None:
    transport.write(_FULL)
    transport.close()
