from collections.abc import Callable
from pathlib import Path

import av
import pytest

from kinescan.data.video import VideoReader
from kinescan.data.video.transport import is_whole

BLOCK = 188


def blocks_of_packet(path: Path, ordinal: int) -> list[int]:
    """The blocks of a packet, and the first one of the next."""
    with av.open(str(path)) as container:
        places = [packet.pos // BLOCK for packet in container.demux(video=0) if packet.size]
    data = path.read_bytes()

    def stream_of(block: int) -> int:
        return int.from_bytes(data[block * BLOCK + 1 : block * BLOCK + 3]) & 0x1FFF

    first, end = places[ordinal], places[ordinal + 1]
    return [block for block in range(first, end + 1) if stream_of(block) == stream_of(first)]


@pytest.fixture
def stream(make_video: Callable[..., Path]) -> Path:
    return make_video("a.ts", 20, 96, 128, keyframe_interval=5, crf=1)


def test_a_packet_is_whole_with_all_of_its_blocks(stream: Path) -> None:
    data = stream.read_bytes()
    blocks = blocks_of_packet(stream, 5)
    assert len(blocks) > 4
    start = blocks[0] * BLOCK
    assert is_whole(data[start:])
    assert is_whole(data[start : blocks[-1] * BLOCK])
    assert not is_whole(data[start : start + 2 * BLOCK])
    for lost in blocks[1:-1]:
        assert not is_whole((data[: lost * BLOCK] + data[(lost + 1) * BLOCK :])[start:])
    assert not is_whole(b"")
    assert not is_whole(data[start + 1 :])


def test_blocks_of_camcorders_are_read(stream: Path) -> None:
    """192 bytes each, a time before every block."""
    blocks = blocks_of_packet(stream, 5)
    data = stream.read_bytes()
    timed = [data[block * BLOCK : (block + 1) * BLOCK] + bytes(4) for block in blocks]
    assert is_whole(b"".join(timed))
    assert not is_whole(b"".join(timed[:1] + timed[2:]))


def test_what_was_lost_stays_left_out(stream: Path) -> None:
    data = stream.read_bytes()
    lost = blocks_of_packet(stream, 9)[1]
    stream.write_bytes(data[: lost * BLOCK] + data[(lost + 1) * BLOCK :])
    with VideoReader(stream, allow_short=True) as video:
        assert video.num_frames < 20
