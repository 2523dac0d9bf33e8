"""Tables of packets and frames that are kept on disk, so that a video that was opened once is not read whole again."""

import hashlib
import io
import logging
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from kinescan.data.stored import identity_of
from kinescan.data.video.table import FrameTable, PacketTable
from kinescan.errors import ConfigError
from kinescan.runtime.addresses import absolute
from kinescan.runtime.atomic_write import atomic_write
from kinescan.runtime.files import read_bytes

logger = logging.getLogger(__name__)

VARIABLE = "KINESCAN_FRAME_TABLES"
"""Environment variable: the folder of the tables, or "off"."""
FORMAT = f"1 {av.__version__}"
"""Of a table's file; other versions of FFmpeg may read a container otherwise."""
LEAST_BYTES = 2**20
"""Smaller files are read whole as quickly as their table is."""
_PROBED_BYTES = 4096
_MOST_BYTES = 2**28
_NO_TIME = np.iinfo(np.int64).min
_SUFFIX = ".npz"
_told: set[str] = set()


@dataclass(frozen=True)
class KeptTables:
    """What opening a whole video finds out by reading all of it.

    Attributes:
        packets: of its stream.
        frames: in the order of display.
        num_lost_at_start: see `Decoder`.
    """

    packets: PacketTable
    frames: FrameTable
    num_lost_at_start: int


@dataclass(frozen=True)
class FrameTableCache:
    """A folder of tables, one file for each video; any file, or all, may be deleted at any moment.

    A table belongs to a path, and to a size, a time of the last change and the first and last bytes of the file there;
    where one of them differs, or another version wrote the table, it is made anew. Many processes may read and write at
    once: files are written aside and renamed.

    Attributes:
        folder: made when the first table is written.
    """

    folder: Path

    def read(self, path: str | Path, stream_index: int | None) -> KeptTables | None:
        """The tables of a video as it is now; None where there are none, or others.

        Args:
            path: the video.
            stream_index: as for `VideoReader`.
        """
        file = self._file(path, stream_index)
        try:
            if not file.is_file():
                return None
            with np.load(io.BytesIO(read_bytes(file, max_bytes=_MOST_BYTES)), allow_pickle=False) as arrays:
                why = "another version wrote it" if str(arrays["format"]) != FORMAT else ""
                if not why and arrays["identity"].tolist() != list(identity_of(path, _PROBED_BYTES)):
                    why = "the video was changed since"
                if not why:
                    return _from_arrays(arrays)
        except Exception as error:  # whatever zlib, zipfile and NumPy raise for a damaged archive: it is made anew
            why = f"it cannot be read ({type(error).__name__})"
        _say_once(f"{self.folder}: the kept table of {path} is made anew, and so are others like it: {why}", why)
        return None

    def write(self, path: str | Path, stream_index: int | None, tables: KeptTables) -> bool:
        """Keeps the tables of a video; a folder that cannot be written is said once, and nothing else happens.

        Returns:
            Whether they are kept.
        """
        try:
            arrays = {
                "format": np.array(FORMAT),
                "identity": np.array(identity_of(path, _PROBED_BYTES)),
                **_to_arrays(tables),
            }
            with atomic_write(self._file(path, stream_index), sync=False) as aside, aside.open("wb") as out:
                np.savez_compressed(out, **arrays)
        except (ConfigError, OSError) as error:
            _say_once(
                f"{self.folder}: tables of frames cannot be kept there ({error}); videos are read whole each time"
            )
            return False
        return True

    def _file(self, path: str | Path, stream_index: int | None) -> Path:
        name = os.fsencode(absolute(path)) + b"\0" + str(stream_index).encode()
        key = hashlib.blake2b(name, digest_size=16).hexdigest()
        return self.folder / key[:2] / f"{key}{_SUFFIX}"


def default_cache() -> FrameTableCache | None:
    """The tables of this user; None where KINESCAN_FRAME_TABLES=off.

    By default they lie in the user's folder of caches ($XDG_CACHE_HOME, or ~/.cache), below kinescan/frame_tables.
    """
    chosen = os.environ.get(VARIABLE, "")
    if chosen.lower() == "off":
        return None
    if chosen:
        return FrameTableCache(Path(chosen))
    caches = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(caches) if os.path.isabs(caches) else Path(os.path.expanduser("~"), ".cache")
    return FrameTableCache(home / "kinescan" / "frame_tables")


def _to_arrays(tables: KeptTables) -> dict[str, Any]:
    packets, frames = tables.packets, tables.frames
    columns: dict[str, Any] = {}
    for name in ("pts", "dts", "positions"):
        columns[name] = np.array([_NO_TIME if x is None else x for x in getattr(packets, name)], dtype=np.int64)
    for name in ("durations", "sizes", "marked", "lasting", "num_pictures"):
        columns[name] = np.array(getattr(packets, name), dtype=np.int64)
    for name in ("key", "shown", "is_b", "clean"):
        columns[name] = np.array(getattr(packets, name), dtype=np.bool_)
    columns["second_fields"] = np.array(sorted(packets.second_fields), dtype=np.int64)
    base = packets.time_base
    counts = (packets.num_empty, packets.reorder_depth, base.numerator, base.denominator, frames.num_restarts)
    flags = (tables.num_lost_at_start, frames.by_rank, frames.from_first)
    columns["counts"] = np.array([*counts, *flags], dtype=np.int64)
    columns["seconds"] = np.array([packets.frame_seconds, frames.last_seconds], dtype=np.float64)
    columns["frame_identities"] = np.array(frames.identities, dtype=np.int64)
    columns["frame_starts"] = np.array(frames.starts, dtype=np.int64)
    columns["frame_seconds_shown"] = frames.pts_seconds.numpy()
    return columns


def _from_arrays(arrays: Any) -> KeptTables:
    """The tables; numbers that do not fit together are a ValueError."""
    num_packets, num_frames = len(arrays["pts"]), len(arrays["frame_identities"])
    by_packet = ("dts", "positions", "durations", "sizes", "key", "shown", "is_b", "clean", "frame_starts")
    if any(len(arrays[name]) != num_packets for name in by_packet) or len(arrays["frame_seconds_shown"]) != num_frames:
        raise ValueError("columns of different lengths")
    for name in ("frame_identities", "frame_starts", "second_fields", "marked", "lasting"):
        column = arrays[name]
        if len(column) and not 0 <= int(column.min()) <= int(column.max()) < max(num_packets, num_frames):
            raise ValueError("numbers of packets that are not there")
    empty, depth, numerator, denominator, restarts, lost, by_rank, from_first = arrays["counts"].tolist()
    frame_seconds, last_seconds = arrays["seconds"].tolist()
    plain: dict[str, Any] = {name: arrays[name].tolist() for name in _PLAIN}
    times: dict[str, Any] = {
        name: [None if x == _NO_TIME else x for x in arrays[name].tolist()] for name in ("pts", "dts", "positions")
    }
    packets = PacketTable(
        **times,
        **plain,
        second_fields=set(arrays["second_fields"].tolist()),
        num_empty=empty,
        time_base=Fraction(numerator, denominator),
        frame_seconds=frame_seconds,
        reorder_depth=depth,
    )
    frames = FrameTable(
        identities=arrays["frame_identities"].tolist(),
        pts_seconds=torch.from_numpy(arrays["frame_seconds_shown"].astype(np.float64)),
        starts=arrays["frame_starts"].tolist(),
        last_seconds=last_seconds,
        by_rank=bool(by_rank),
        num_restarts=restarts,
        from_first=bool(from_first),
    )
    return KeptTables(packets, frames, lost)


_PLAIN = ("durations", "sizes", "key", "shown", "is_b", "clean", "marked", "lasting", "num_pictures")


def _say_once(text: str, kind: str = "") -> None:
    """A line of the log, once in a process for each kind."""
    if (kind or text) not in _told:
        _told.add(kind or text)
        logger.info(text)
