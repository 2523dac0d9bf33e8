"""Tables of packets and frames that are kept on disk, so that a video that was opened once is not read whole again."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from kinescan.data.disk_cache import DiskCache, cache_folder
from kinescan.data.video.table import FrameTable, PacketTable

FORMAT = f"1 {av.__version__}"
"""Of a table's file; other versions of FFmpeg may read a container otherwise."""
LEAST_BYTES = 2**20
"""Smaller files are read whole as quickly as their table is."""
_NO_TIME = np.iinfo(np.int64).min


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
    """A folder of tables, one file for each video (see `DiskCache`).

    Attributes:
        folder: made when the first table is written.
    """

    folder: Path

    @property
    def files(self) -> DiskCache:
        """The files of the tables."""
        return DiskCache(self.folder, FORMAT, "table of frames")

    def read(self, path: str | Path, stream_index: int | None) -> KeptTables | None:
        """The tables of a video as it is now; None where there are none, or others.

        Args:
            path: the video.
            stream_index: as for `VideoReader`.
        """
        found: KeptTables | None = self.files.read(path, str(stream_index), _from_arrays)
        return found

    def write(self, path: str | Path, stream_index: int | None, tables: KeptTables) -> bool:
        """Keeps the tables of a video; a folder that cannot be written is logged once, and nothing else happens.

        Returns:
            Whether they are kept.
        """
        return self.files.write(path, str(stream_index), _to_arrays(tables), compressed=True)


def default_cache() -> FrameTableCache | None:
    """The tables of this user (see `cache_folder`); None where KINESCAN_FRAME_TABLES=off."""
    folder = cache_folder()
    return None if folder is None else FrameTableCache(folder)


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
