from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kinescan.data.stored import num_bytes_of, open_bytes

_GIF = b"GIF8"
_EBML_HEADER = bytes.fromhex("1A45DFA3")
_EBML_SEGMENT = bytes.fromhex("18538067")
_MP4_BOXES = frozenset(b"ftyp moov mdat free skip wide moof mfra sidx styp uuid meta emsg ssix prft pdin udta".split())
# What mp4 calls encrypted video.
_ENCRYPTED_TAGS = (b"encv", b"drmi")
_MAX_INDEX_BYTES = 1 << 26


def missing_bytes(path: str | Path) -> int:
    """How many bytes the outer structure of an mp4/mov, Matroska/WebM, AVI or gif file promises beyond its end.

    A file that was cut while it was fetched or written still carries the sizes that its whole was to have. This does
    not prove that frames are missing (an index at the end may be all that is lost), but a file without missing bytes is
    not cut, whatever its duration field says.

    Args:
        path: a readable file.

    Returns:
        0 where nothing is missing, or where the format promises nothing (streams, raw video, transport streams).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "a.avi"
        ...     _ = file.write_bytes(b"RIFF" + (100).to_bytes(4, "little") + b"AVI ")
        ...     print(missing_bytes(file))
        96
    """
    size = num_bytes_of(path)
    with open_bytes(path) as file:
        start = file.read(12)
        if start[:4] == _EBML_HEADER:
            end = _matroska_end(file)
        elif start[:4] == b"RIFF":
            end = _riff_end(file, size)
        elif start[:4] == _GIF:
            end = _gif_end(file)
        elif start[4:8] in _MP4_BOXES:
            end = _mp4_end(file, size)
        else:
            return 0
    return max(0, end - size)


def next_file(path: str | Path) -> int | None:
    """Where another file of the same kind begins behind a file's end, as where two were written into one.

    Args:
        path: an mp4/mov, Matroska/WebM, AVI or gif.

    Returns:
        The byte; None where there is no other file, or where the format does not tell.
    """
    size = num_bytes_of(path)
    with open_bytes(path) as file:
        start = file.read(12)
        if start[4:8] in _MP4_BOXES:
            boxes = [(kind, position) for kind, position, _ in _boxes(file, size)]
            index = next((index for index, (kind, _) in enumerate(boxes) if kind in (b"moov", b"mdat")), len(boxes))
            return next((position for kind, position in boxes[index:] if kind == b"ftyp"), None)
        if start[:4] == _EBML_HEADER:
            end = _matroska_end(file)
        elif start[:4] == b"RIFF":
            return next((index for index, kind in _riff_chunks(file, size) if index and kind != b"AVIX"), None)
        elif start[:4] == _GIF:
            end = _gif_end(file)
        else:
            return None
        file.seek(end)
        return end if 0 < end < size and file.read(4) == start[:4] else None


def is_animated_webp(path: str | Path) -> bool:
    """Whether a file is a webp of several pictures: its extended header says so."""
    with open_bytes(path) as file:
        head = file.read(21)
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) == 21 and bool(head[20] & 2)


def is_encrypted_mp4(path: str | Path) -> bool:
    """Whether the index of an mp4 calls its video encrypted, in a way that hides what it is coded in."""
    size = num_bytes_of(path)
    with open_bytes(path) as file:
        for kind, position, length in _boxes(file, size):
            if kind == b"moov":
                file.seek(position)
                index = file.read(min(length, _MAX_INDEX_BYTES))
                return any(tag in index for tag in _ENCRYPTED_TAGS)
    return False


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, length) of the boxes of the top level, up to the first that is none or lies to the end."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8 or kind not in _MP4_BOXES:
            # length 0 means "to the end of the file"; anything else is not a box, and promises nothing
            yield b"", position, 0
            return
        yield kind, position, length
        position += length


def _mp4_end(file: BinaryIO, size: int) -> int:
    """Where the last box of the top level ends; 0 where something is not a box."""
    end = 0
    for kind, position, length in _boxes(file, size):
        end = position + length if kind else 0
    return end


def _matroska_end(file: BinaryIO) -> int:
    """Skips the EBML header and reads the length of the segment."""
    file.seek(4)
    header_length = _read_length(file)
    if header_length is None:
        return 0
    file.seek(header_length, 1)
    if file.read(4) != _EBML_SEGMENT:
        return 0
    length = _read_length(file)
    return 0 if length is None else file.tell() + length


def _read_length(file: BinaryIO) -> int | None:
    """An EBML number of 1 to 8 bytes: the zeros that lead say how many; all ones mean unknown."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    num_bytes = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(num_bytes - 1), "big")
    mask = (1 << (7 * num_bytes)) - 1
    return None if value & mask == mask else value & mask


def _gif_end(file: BinaryIO) -> int:
    """Walks the blocks of a gif to the byte that ends it; beyond the file's end where that is not there."""
    file.seek(10)
    flags = file.read(3)[:1]
    file.seek(13 + _color_table_bytes(flags))
    while kind := file.read(1):
        if kind == b";":
            return file.tell()
        if kind == b",":
            flags = file.read(9)[8:]
            # and the size of its codes
            file.seek(_color_table_bytes(flags) + 1, 1)
        elif kind == b"!":
            file.read(1)
        else:
            # no block: what a decoder makes of it, shows when it is decoded
            return 0
        while length := file.read(1)[:1].strip(b"\0"):
            file.seek(length[0], 1)
    # at least that one byte is missing
    return file.tell() + 1


def _color_table_bytes(flags: bytes) -> int:
    return 3 << (1 + (flags[0] & 7)) if flags and flags[0] & 0x80 else 0


def _riff_chunks(file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
    """(start, kind) of the RIFF chunks."""
    position = 0
    while position + 12 <= size:
        file.seek(position)
        header = file.read(12)
        if header[:4] != b"RIFF":
            return
        yield position, header[8:12]
        length = int.from_bytes(header[4:8], "little")
        position += 8 + length + length % 2


def _riff_end(file: BinaryIO, size: int) -> int:
    """Walks the RIFF chunks: files above 1 GB have several."""
    position = 0
    while position + 12 <= size:
        file.seek(position)
        header = file.read(8)
        if header[:4] != b"RIFF":
            return 0
        length = int.from_bytes(header[4:8], "little")
        position += 8 + length + length % 2
    return position
