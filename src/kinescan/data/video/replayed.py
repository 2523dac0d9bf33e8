"""What a live playlist has shown already, and shows again when it is opened anew."""

import zlib
from collections import deque

import av

_MOST_PACKETS = 10_000
"""Kept of a video source: more than a playlist names."""


class ShownPackets:
    """Tells packets that came over an earlier connection.

    A player that opens a live playlist (HLS) begins some seconds before its end. Where the playlist has not grown,
    because the camera behind it is gone, these are the seconds that were shown before.

    Example:
        >>> shown = ShownPackets()
        >>> packet = av.Packet(b"picture")
        >>> shown.opened()
        >>> shown.is_again(packet)
        False
        >>> shown.opened()
        >>> [shown.is_again(found) for found in (packet, av.Packet(b"new"), packet)]
        [True, False, False]
    """

    def __init__(self) -> None:
        self._order: deque[tuple[int | None, int, int]] = deque()
        self._known: set[tuple[int | None, int, int]] = set()
        self._looks = False

    def opened(self) -> None:
        """Begins a connection, whose first packets are compared."""
        self._looks = bool(self._known)

    def is_again(self, packet: av.Packet) -> bool:
        """Whether a packet of this connection was shown before; from the first new one on, none was."""
        key = (packet.pts, packet.size, zlib.crc32(bytes(packet)))
        if self._looks and key in self._known:
            return True
        self._looks = False
        if key not in self._known:
            self._known.add(key)
            self._order.append(key)
            if len(self._order) > _MOST_PACKETS:
                self._known.discard(self._order.popleft())
        return False
