import logging
import math
import os
import select
import stat
import sys
import time
from collections import deque

import av

from kinescan.data.video.transport import Continuity

logger = logging.getLogger(__name__)

STANDARD_INPUT = "-"
_MAX_READS_AHEAD = 65536
_MOST_UNUSED_BYTES = 8192
"""Behind the last packet of a pipe: indices, sound, and what fills a block up."""


class NothingOfVideo(TimeoutError):
    """Data came in time, but no packet of the video that is read."""


class Pipe:
    """Bytes of standard input or a named pipe: a read gives what is there, and waits where there is nothing."""

    def __init__(self, source: str, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        is_standard = source == STANDARD_INPUT
        self._descriptor = os.dup(sys.stdin.fileno()) if is_standard else os.open(source, os.O_RDONLY)
        is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._came: KeyboardInterrupt | None = None
        self.has_ended = False
        self._num_bytes = 0
        self._num_used = 0
        # opening has bounds of its own
        self._asked_at = math.inf
        # where each read ended, and when it was: of what FFmpeg has read ahead, which it bounds
        self._reads: deque[tuple[int, float]] = deque(maxlen=_MAX_READS_AHEAD)
        # all that came, until it is known whether it has to be looked at
        self._head: list[bytes] | None = []
        self._continuity: Continuity | None = None
        # standard input that is a file can be gone back in: some formats have their index at the end
        self.file = os.fdopen(self._descriptor, "rb", closefd=False) if is_file else None

    def read(self, num_bytes: int) -> bytes:
        """Up to so many bytes; none at the end.

        Raises:
            TimeoutError: nothing came; or, as `NothingOfVideo`, nothing of the video in all that came.
        """
        try:
            if time.monotonic() - self._asked_at > self._timeout_seconds:
                raise NothingOfVideo
            # Windows can only wait for sockets
            if os.name == "posix" and not select.select([self._descriptor], [], [], self._timeout_seconds)[0]:
                raise TimeoutError
            content = os.read(self._descriptor, num_bytes)
            self.has_ended = not content
            self._num_bytes += len(content)
            self._reads.append((self._num_bytes, time.monotonic()))
            self._look_at(content)
            return content
        except KeyboardInterrupt as error:
            # FFmpeg, which called this, would swallow it
            self._came = error
            return b""

    @property
    def is_empty(self) -> bool:
        """Whether it ended before anything came."""
        return self.has_ended and not self._num_bytes

    def expect(self) -> None:
        """A packet of the video is asked for from now on."""
        self._asked_at = time.monotonic()

    def used(self, packet: av.Packet) -> None:
        """A packet of the video has come out of what was read."""
        if packet.pos is not None:
            self._num_used = packet.pos + packet.size

    def tell_unused(self, source: str) -> None:
        """Says at the end that much came behind the last packet, such as another recording that FFmpeg passes over."""
        if self.file is not None or not self._num_used:
            return
        if not self.has_ended and os.name == "posix" and select.select([self._descriptor], [], [], 0)[0]:
            self._num_bytes += len(os.read(self._descriptor, 4 * _MOST_UNUSED_BYTES))
        unused = self._num_bytes - self._num_used
        if unused > max(_MOST_UNUSED_BYTES, self._num_bytes // 20):
            logger.warning(
                "%s: %s of %s bytes came behind the last frame of this video and were not read: another recording, or "
                "another stream. Send each by itself, or one after the other through ffmpeg's concat.",
                *(source, f"{unused:,}", f"{self._num_bytes:,}"),
            )

    def arrived(self, position: int) -> float:
        """When the bytes before this one had come; positions ascend from call to call."""
        while len(self._reads) > 1 and self._reads[0][0] < position:
            self._reads.popleft()
        return self._reads[0][1] if self._reads else time.monotonic()

    def count_blocks(self, stream_id: int | None) -> Continuity | None:
        """Counts the blocks of a stream of MPEG-TS from the first byte on; None is another format, or unknown.

        Args:
            stream_id: the stream's number; None for another format: what was kept is dropped.
        """
        head, self._head = self._head or [], None
        if stream_id is None:
            return None
        if self.file is not None:
            # Windows has no way to look without moving on
            return None if os.name != "posix" else Continuity(stream_id, read=self._read_at)
        self._continuity = Continuity(stream_id)
        self._continuity.feed(b"".join(head))
        return self._continuity

    def _read_at(self, num_bytes: int, offset: int) -> bytes:
        return os.pread(self._descriptor, num_bytes, offset)

    def _look_at(self, data: bytes) -> None:
        if self._head is not None:
            self._head.append(data)
        elif self._continuity is not None:
            self._continuity.feed(data)

    def raise_what_came(self) -> None:
        """Raises the KeyboardInterrupt that came while `read` waited."""
        if self._came is not None:
            raise self._came

    def close(self) -> None:
        """Gives its descriptor back; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
