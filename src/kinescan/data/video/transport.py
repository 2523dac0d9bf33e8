_SYNC, _BLOCK_BYTES, _TIME_BYTES = 0x47, (188, 192, 204), 4

LARGEST_PACKET_BYTES = 1 << 22
"""How many bytes from its start on have to be looked at to find a packet's end."""


def is_whole(data: bytes) -> bool:
    """Whether MPEG-TS holds the whole of a packet, whatever its counters say behind it.

    FFmpeg marks a packet as damaged when the counter of the transport stream jumps behind it. That happens where data
    was lost, and where two recordings were joined. A packet's last block is filled up to its size, so that one whose
    counters do not jump, and which ends with a block that is filled up, is whole.

    Args:
        data: bytes from the packet's first on, and some behind it.

    Example:
        >>> block = bytes([0x47, 0x41, 0x00, 0x30, 183]) + bytes(183)
        >>> is_whole(block + block), is_whole(block[:3] + bytes([0x10]) + bytes(184) + block)
        (True, False)
    """
    if data[:1] != bytes([_SYNC]):
        # blocks of 192 bytes begin with a time
        data = data[_TIME_BYTES:]
    step = next((size for size in _BLOCK_BYTES if len(data) == size or data[size : size + 1] == bytes([_SYNC])), 0)
    if not step or data[0] != _SYNC:
        return False
    stream, counter, filled = _stream_of(data[:4]), None, False
    for offset in range(0, len(data) - _BLOCK_BYTES[0] + 1, step):
        block = data[offset : offset + 6]
        if block[0] != _SYNC:
            return False
        has_payload, has_adaptation = bool(block[3] & 0x10), bool(block[3] & 0x20)
        if _stream_of(block) != stream or not has_payload:
            continue
        if counter is not None:
            if block[1] & 0x40:
                break
            if block[3] & 15 != (counter + 1) % 16:
                return False
        counter = block[3] & 15
        # flags alone, such as those of a clock, are not filling: they come with the first block
        filled = has_adaptation
    return filled


def _stream_of(block: bytes) -> int:
    return int.from_bytes(block[1:3]) & 0x1FFF
