from pathlib import Path

_SYNC, _BLOCK_BYTES = 0x47, (188, 192, 204)
_MAX_BYTES = 1 << 24


def is_whole(path: str | Path, start: int, end: int | None) -> bool:
    """Whether an MPEG-TS file holds a packet's bytes from the first to the last, whatever its counters say then.

    FFmpeg marks a packet as damaged when the counter of the transport stream jumps behind it. That happens where data
    was lost, and where two recordings were joined. A packet's last block is filled up to its size, so that one whose
    counters do not jump, and which ends with a block that is filled up, is whole.

    Args:
        path: the file.
        start: where the packet starts.
        end: where the next one of the same stream does; None at the end of the file.
    """
    with open(path, "rb") as file:
        file.seek(start)
        data = file.read(_MAX_BYTES if end is None else min(max(0, end - start) + max(_BLOCK_BYTES) + 1, _MAX_BYTES))
    step = next((size for size in _BLOCK_BYTES if len(data) == size or data[size : size + 1] == bytes([_SYNC])), 0)
    if not step or data[0] != _SYNC:
        return False
    if end is not None:
        data = data[: end - start]
    stream, counter, filled = _stream_of(data[:4]), None, False
    for place in range(0, len(data) - _BLOCK_BYTES[0] + 1, step):
        block = data[place : place + 6]
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
        # flags alone, such as those of a clock, are no filling: they come with the first block
        filled = has_adaptation
    return filled


def _stream_of(block: bytes) -> int:
    return int.from_bytes(block[1:3]) & 0x1FFF
