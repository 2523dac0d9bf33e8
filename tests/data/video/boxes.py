"""Changes the boxes of small mp4 files."""

import struct


def with_edit_list(data: bytes, num_edits: int, *, ticks: int, media_ticks: int = 0) -> bytes:
    """An mp4 file, its index at the end, whose first track has so many equal edits instead of its own."""
    movie, movie_size = _find(data, b"moov", 0, len(data))
    track, track_size = _find(data, b"trak", movie + 8, movie + movie_size)
    old, old_size = _find(data, b"edts", track + 8, track + track_size)
    if not old_size:
        header, header_size = _find(data, b"tkhd", track + 8, track + track_size)
        old = header + header_size
    table = struct.pack(">Iihh", ticks, media_ticks, 1, 0) * num_edits
    elst = struct.pack(">I4sII", 16 + len(table), b"elst", 0, num_edits) + table
    edits = struct.pack(">I4s", 8 + len(elst), b"edts") + elst
    new = bytearray(data[:old] + edits + data[old + old_size :])
    more = len(new) - len(data)
    new[movie : movie + 4] = struct.pack(">I", movie_size + more)
    new[track : track + 4] = struct.pack(">I", track_size + more)
    return bytes(new)


def with_many_samples(data: bytes, num_samples: int) -> bytes:
    """An mp4 file that lists so many frames of one byte each in its first chunk."""
    new = bytearray(data)
    places = {kind: data.index(kind) for kind in (b"stsz", b"stsc", b"stts")}
    new[places[b"stsz"] + 8 : places[b"stsz"] + 16] = struct.pack(">II", 1, num_samples)
    new[places[b"stsc"] + 12 : places[b"stsc"] + 24] = struct.pack(">III", 1, num_samples, 1)
    new[places[b"stts"] + 12 : places[b"stts"] + 16] = struct.pack(">I", num_samples)
    for kind in (b"ctts", b"edts"):
        if kind in data:
            new[data.index(kind) : data.index(kind) + 4] = b"free"
    return bytes(new)


def _find(data: bytes, kind: bytes, start: int, end: int) -> tuple[int, int]:
    """Where a box begins, and how long it is; (0, 0) where there is none."""
    while start + 8 <= end:
        size = int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] == kind:
            return start, size
        start += size
    return 0, 0
