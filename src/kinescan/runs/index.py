import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from kinescan.data.disk_cache import CACHE_VARIABLE
from kinescan.data.file_workers import CRASH, each_file
from kinescan.data.intervals import IntervalTable
from kinescan.data.stored import num_bytes_of
from kinescan.data.video import Limits, VideoReader
from kinescan.data.video.kept_tables import LEAST_BYTES, default_cache
from kinescan.errors import ConfigError, VideoError
from kinescan.runs.check import data_config, data_parts
from kinescan.runtime.addresses import shown_path
from kinescan.runtime.counter import Counter

State = Literal["kept", "small", "not kept", "unreadable"]


@dataclass(frozen=True, kw_only=True)
class IndexedFiles:
    """What `index` found.

    Attributes:
        folder: where the tables lie.
        num_files: that were looked at.
        num_kept: whose table is kept now.
        num_small: below the size from which on tables are kept; they are read whole each time.
        not_kept: files whose table cannot be kept, as on a full disk.
        unreadable: path -> why it cannot be read.
        seconds: how long it took.
    """

    folder: str
    num_files: int
    num_kept: int
    num_small: int
    not_kept: tuple[str, ...]
    unreadable: dict[str, str]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)


def index(
    source: str | Path,
    *,
    test: str | Path | None = None,
    reader: str | None = None,
    split: int | None = None,
    overrides: Sequence[str] = (),
    num_workers: int | None = None,
) -> IndexedFiles:
    """Reads the tables of frames of all videos of a data set once and keeps them (see `FrameTableCache`).

    Tables that are kept and fit are left as they are. Reading a video also keeps its table; this does it beforehand.

    Args:
        source: a folder with one folder of videos per class, a csv, the folder of a published data set, or a recipe.
        test: the same for evaluation.
        reader: how they are laid out, as `data.reader`.
        split: of a published data set, as `data.split`.
        overrides: "dotted.key=value" each.
        num_workers: processes that read files; by default as many as there are cores.

    Raises:
        ConfigError: the label source cannot be understood, or tables are turned off.
    """
    cache, started = default_cache(), time.monotonic()
    if cache is None:
        raise ConfigError(f"{CACHE_VARIABLE}=off: no table is kept. Unset it, or set it to a folder.")
    cache.files.remove_left_over()
    data = data_config(source, overrides, test=test, reader=reader, split=split)
    parts, _ = data_parts(data)
    lists = [part.videos if isinstance(part, IntervalTable) else part.items for part in parts.values()]
    paths = list(dict.fromkeys(os.fspath(item.path) for items in lists for item in items))
    workers = os.cpu_count() or 1 if num_workers is None else num_workers
    found: list[tuple[str, State, str]] = []
    with Counter("reading tables of frames", "files") as progress:
        work = partial(_index_file, limits=data.limits)
        for entry in each_file(paths, work, num_workers=workers, crashed=lambda path: (path, "unreadable", CRASH)):
            found.append(entry)
            progress.update(len(found), len(paths))
    return IndexedFiles(
        folder=str(cache.folder),
        num_files=len(found),
        num_kept=sum(state == "kept" for _, state, _ in found),
        num_small=sum(state == "small" for _, state, _ in found),
        not_kept=tuple(sorted(shown_path(path) for path, state, _ in found if state == "not kept")),
        unreadable={shown_path(path): reason for path, state, reason in sorted(found) if state == "unreadable"},
        seconds=time.monotonic() - started,
    )


def _index_file(path: str, *, limits: Limits) -> tuple[str, State, str]:
    try:
        if 0 < num_bytes_of(path) < LEAST_BYTES:
            return path, "small", ""
        with VideoReader(path, limits=limits) as video:
            return path, "kept" if video.table_is_kept else "not kept", ""
    except VideoError as error:
        return path, "unreadable", error.reason
    except OSError as error:
        return path, "unreadable", str(getattr(error, "reason", None) or error.strerror or error)
