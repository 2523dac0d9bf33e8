"""Tables of mp4 and mov files that promise more than any file holds: seen before FFmpeg builds its index from them."""

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kinescan.data.stored import open_bytes
from kinescan.errors import VideoError

MAX_REPEATED = 2**22
"""Frames that an edit list may add to those that the file holds."""
_FOLDERS = frozenset((b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"udta", b"cmov"))
_MAX_BOXES = 2**20
_MAX_DEPTH = 10
_MAX_HEADER_BYTES = 2**26
_PREROLL = 32


@dataclass
class _Track:
    """What the tables of one track say."""

    num_samples: int = 0
    is_one_size: bool = False
    num_keys: int | None = None
    media_scale: int = 1
    media_ticks: int = 0
    is_sound: bool = False
    num_edits: int = 0
    edited_ticks: int = 0


def refuse_endless_tables(path: str | Path) -> None:
    """Looks at an mp4 or mov file's tables; other files end the look at once.

    Args:
        path: the file.

    Raises:
        VideoError: it lists more frames than it has bytes, or its edit list repeats frames without end.
    """
    with open_bytes(path) as opened:
        size = opened.seek(0, 2)
        try:
            tracks, scale = _read_tracks(opened, size)
        except _TooMuch as error:
            raise VideoError(path, str(error)) from None
    # sound of one size is indexed by chunks
    num_samples = sum(track.num_samples for track in tracks if not (track.is_one_size and track.is_sound))
    if num_samples > size:
        raise VideoError(
            path, f"its tables list {num_samples:,} frames in {size:,} bytes, which cannot be. Fetch it again."
        )
    for track in tracks:
        shown = _shown_frames(track, scale)
        if shown > track.num_samples + MAX_REPEATED:
            raise VideoError(
                path,
                f"its edit list of {track.num_edits:,} entries makes about {shown:,} frames of the "
                f"{track.num_samples:,} that it holds, which no player could show. Write the file anew.",
            )


class _TooMuch(Exception):
    pass


def _shown_frames(track: _Track, movie_scale: int) -> int:
    """What FFmpeg would put into its index: the frames of every edit, and those from the key frame before it on."""
    at_most = track.num_samples * track.num_edits
    if at_most <= MAX_REPEATED or not track.num_samples:
        return at_most + _PREROLL * track.num_edits
    per_key = track.num_samples // max(1, track.num_samples if track.num_keys is None else track.num_keys)
    media_seconds = track.media_ticks / max(1, track.media_scale)
    times = track.edited_ticks / max(1, movie_scale) / media_seconds if media_seconds else float(track.num_edits)
    return round(min(at_most, times * track.num_samples)) + track.num_edits * (per_key + _PREROLL)


def _read_tracks(file: BinaryIO, size: int) -> tuple[list[_Track], int]:
    """The tracks, those of fragments each for itself, and the ticks of a second of the movie's clock."""
    tracks, movie_scale = [_Track()], 1
    for kind, start, end in _boxes(file, size):
        track = tracks[-1]
        if kind in (b"trak", b"traf"):
            tracks.append(_Track())
        elif kind == b"mvhd":
            movie_scale = _ticks_of_a_second(file, start)
        elif kind == b"mdhd":
            track.media_scale = _ticks_of_a_second(file, start)
        elif kind in (b"stsz", b"stz2"):
            track.num_samples += _number(file, start + 8)
            track.is_one_size = kind == b"stsz" and _number(file, start + 4) > 0
        elif kind == b"trun":
            track.num_samples += _number(file, start + 4)
        elif kind == b"stss":
            track.num_keys = _number(file, start + 4)
        elif kind == b"stts":
            track.media_ticks = _stts_ticks(file, start, end)
            track.is_sound = _number(file, start + 4) == 1 and _number(file, start + 12) == 1
        elif kind == b"elst":
            track.num_edits += _number(file, start + 4)
            track.edited_ticks += _elst_ticks(file, start, end)
        elif kind == b"cmvd":
            inner, scale = _compressed(file, start, end)
            tracks += inner
            movie_scale = scale
    return tracks, movie_scale


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start and end of the content) of every box, those inside of folders behind their folder."""
    ends, position = [size], 0
    for _ in range(_MAX_BOXES):
        while len(ends) > 1 and position + 8 > ends[-1]:
            position = ends.pop()
        if position + 8 > ends[-1]:
            return
        file.seek(position)
        header = file.read(16)
        length, kind, start = int.from_bytes(header[:4], "big"), header[4:8], position + 8
        if length == 1:
            length, start = int.from_bytes(header[8:16], "big"), position + 16
        end = ends[-1] if length == 0 else position + length
        if end < start or not kind.strip(b"\0"):
            # no box: this ends what is around it, or the file
            if len(ends) == 1:
                return
            position = ends.pop()
            continue
        end = min(end, ends[-1])
        yield kind, start, end
        if kind in _FOLDERS and len(ends) <= _MAX_DEPTH:
            ends.append(end)
            position = start
        else:
            position = end
    raise _TooMuch(f"it has more than {_MAX_BOXES:,} parts, which no video has. Fetch it again.")


def _number(file: BinaryIO, position: int) -> int:
    file.seek(position)
    return int.from_bytes(file.read(4), "big")


def _ticks_of_a_second(file: BinaryIO, start: int) -> int:
    """By an mvhd or mdhd box."""
    is_wide = _number(file, start) >> 24 == 1
    return max(1, _number(file, start + (20 if is_wide else 12)))


def _table(file: BinaryIO, start: int, end: int, fields: str) -> np.ndarray:
    """The rows of a table behind its version and count, as many as there are."""
    dtype = np.dtype(fields)
    file.seek(start + 4)
    count = int.from_bytes(file.read(4), "big")
    num_rows = min(count, max(0, end - start - 8) // dtype.itemsize)
    rows = file.read(min(num_rows * dtype.itemsize, _MAX_HEADER_BYTES))
    return np.frombuffer(rows[: len(rows) // dtype.itemsize * dtype.itemsize], dtype)


def _stts_ticks(file: BinaryIO, start: int, end: int) -> int:
    rows = _table(file, start, end, ">u4, >u4")
    return int((rows["f0"].astype(np.float64) * rows["f1"]).sum())


def _elst_ticks(file: BinaryIO, start: int, end: int) -> int:
    wide = _number(file, start) >> 24 == 1
    rows = _table(file, start, end, ">u8, >i8, >u4" if wide else ">u4, >i4, >u4")
    return int(rows["f0"].astype(np.float64).sum())


def _compressed(file: BinaryIO, start: int, end: int) -> tuple[list[_Track], int]:
    """The tracks of a header that is compressed by zlib."""
    file.seek(start + 4)
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(file.read(min(end - start - 4, _MAX_HEADER_BYTES)), _MAX_HEADER_BYTES)
    except zlib.error:
        return [], 1
    if unpacker.unconsumed_tail or _number(file, start) > _MAX_HEADER_BYTES:
        raise _TooMuch(f"its compressed header is longer than {_MAX_HEADER_BYTES:,} bytes. Write the file anew.")
    return _read_tracks(io.BytesIO(content), len(content))
