"""What MPEG-TS says of its own losses: blocks of a stream are counted from 0 to 15, again and again."""

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Damage = Literal["none", "inside", "behind"]
"""What is missing: nothing; some of the packet, or unknown; or nothing of it, but something before the next."""

_SYNC, _BLOCK_BYTES, _TIME_BYTES = 0x47, (188, 192, 204), 4
_LEAST_BLOCKS = 4
"""Blocks that have to begin with the sync byte before a file counts as a transport stream."""
_CHUNK_BYTES = 1 << 18
_KEPT_STARTS = 4096
_PAYLOAD, _ADAPTATION, _START, _ERROR, _ANNOUNCED = 0x10, 0x20, 0x40, 0x80, 0x80
_MARK_REACH = 3
"""Packets by which a mark of FFmpeg may stand before what it is of."""


class Continuity:
    """Which packets of one stream are whole, by the counters of its blocks.

    FFmpeg tells of a jump of a counter by a mark on the packet before, which its parsers move to the one before that;
    of one between two packets whose lengths are given it tells nothing. So the blocks are counted here.

    A packet's last block is filled up to its size. So where a counter jumps between two packets, and the first one ends
    with a block that is filled up, that one is whole: others were lost behind it, or a second recording was joined
    to the first.

    Args:
        stream_id: the stream's number in the transport stream (PID).
        read: gives up to so many bytes from an offset on, where the video source can be looked at anywhere; None where
            bytes are given as they come, by `feed`.

    Example:
        >>> first = bytes([0x47, 0x41, 0x00, 0x30, 183]) + bytes(183)
        >>> second = bytes([0x47, 0x41, 0x00, 0x31, 183]) + bytes(183)
        >>> fifth = bytes([0x47, 0x41, 0x00, 0x34, 183]) + bytes(183)
        >>> counted = Continuity(0x100)
        >>> counted.feed(first + second + fifth + bytes([0x47]) + bytes(187))
        >>> [counted.of(188 * block) for block in range(3)]
        ['none', 'behind', 'none']
    """

    def __init__(self, stream_id: int, *, read: Callable[[int, int], bytes] | None = None) -> None:
        self._stream_id, self._read = stream_id, read
        self._rest = b""
        self._offset = 0
        self._step = 0
        self._counter: int | None = None
        self._is_filled = False
        self._is_lost = False
        # where packets begin, with what is known of what lies before each
        self._starts: deque[tuple[int, Damage]] = deque(maxlen=_KEPT_STARTS)
        self._losses: deque[int] = deque(maxlen=_KEPT_STARTS)
        self._has_ended = False
        self._position = 0
        self._num_since_loss = _MARK_REACH + 1

    def feed(self, data: bytes) -> None:
        """The next bytes of the transport stream."""
        self._rest += data
        while True:
            if not self._step and not self._synchronise():
                return
            num_blocks = len(self._rest) // self._step
            if not num_blocks:
                return
            blocks = np.frombuffer(self._rest, dtype=np.uint8, count=num_blocks * self._step)
            self._take(blocks.reshape(num_blocks, self._step))

    def of(self, position: int | None, *, is_marked: bool = False) -> Damage:
        """What is missing of the packet that begins at an offset; packets are asked for in the order of the stream.

        Args:
            position: of its first block; None where it begins in the same block as the one before.
            is_marked: FFmpeg calls it damaged: taken as true where no counted loss is near.
        """
        position = self._position if position is None else position
        self._position = position
        while self._read is not None and not self._has_ended and self._next_start(position) is None:
            data = self._read(_CHUNK_BYTES, self._offset + len(self._rest))
            self._has_ended = not data
            self.feed(data)
        behind = self._next_start(position)
        end = self._offset + len(self._rest) if behind is None else behind[0]
        while self._losses and self._losses[0] <= position:
            self._losses.popleft()
        found: Damage = "none" if behind is None else behind[1]
        if self._losses and self._losses[0] < end:
            found = "inside"
        self._num_since_loss = 0 if found != "none" else self._num_since_loss + 1
        return "inside" if is_marked and not self._is_near_loss(position) else found

    def _is_near_loss(self, position: int) -> bool:
        coming = list(islice(self._starts, _MARK_REACH))
        end = coming[-1][0] if coming else position
        ahead = any(loss != "none" for _, loss in coming) or any(offset < end for offset in self._losses)
        return ahead or self._num_since_loss <= _MARK_REACH

    def _next_start(self, position: int) -> tuple[int, Damage] | None:
        while self._starts and self._starts[0][0] <= position + _TIME_BYTES:
            self._starts.popleft()
        return self._starts[0] if self._starts else None

    def _synchronise(self) -> bool:
        """Finds out where blocks begin and how long they are."""
        reach = _LEAST_BLOCKS * _BLOCK_BYTES[-1]
        for first in range(max(1, len(self._rest) - reach)):
            for step in _BLOCK_BYTES:
                heads = self._rest[first : first + _LEAST_BLOCKS * step : step]
                if len(heads) == _LEAST_BLOCKS and set(heads) == {_SYNC}:
                    self._skip(first)
                    self._step = step
                    return True
        self._skip(max(0, len(self._rest) - reach))
        return False

    def _skip(self, num_bytes: int) -> None:
        self._rest, self._offset = self._rest[num_bytes:], self._offset + num_bytes

    def _take(self, blocks: NDArray[np.uint8]) -> None:
        """Counts blocks up to the first that does not begin as it should."""
        wrong = np.flatnonzero(blocks[:, 0] != _SYNC)
        num_good = int(wrong[0]) if len(wrong) else len(blocks)
        heads = blocks[:num_good, :4].astype(np.int64)
        ids = (heads[:, 1] & 0x1F) << 8 | heads[:, 2]
        own = np.flatnonzero((ids == self._stream_id) & (heads[:, 3] & _PAYLOAD > 0))
        for index in own.tolist():
            flags = blocks[index, 5] if heads[index, 3] & _ADAPTATION and blocks[index, 4] else 0
            self._count(self._offset + index * self._step, int(heads[index, 1]), int(heads[index, 3]), int(flags))
        self._skip(num_good * self._step)
        if len(wrong):
            # bytes are missing, unknown which; the block before may be short
            self._losses.append(self._offset - 1)
            self._step, self._is_lost = 0, True
            self._skip(1)

    def _count(self, offset: int, first: int, second: int, flags: int) -> None:
        counter = second & 15
        is_next = self._counter is None or counter == (self._counter + 1) % 16 or bool(flags & _ANNOUNCED)
        is_lost = self._is_lost or not is_next
        if first & _START:
            behind: Damage = "behind" if self._is_filled else "inside"
            self._starts.append((offset, behind if is_lost else "none"))
        elif is_lost:
            self._losses.append(offset)
        if first & _ERROR:
            self._losses.append(offset + 1)
        # flags alone, such as those of a clock, are not filling: they come with the first block
        self._is_filled = bool(second & _ADAPTATION)
        self._counter, self._is_lost = counter, False
