import os
import time
from collections.abc import Sequence
from pathlib import Path

from kinescan.data.intervals import IntervalTable
from kinescan.data.listing import VideoList
from kinescan.data.shards.pack import PackReport, PackSettings, pack_videos
from kinescan.errors import ConfigError
from kinescan.runs.check import data_config, data_parts
from kinescan.runtime.addresses import as_path, is_remote, shown_path
from kinescan.runtime.counter import Counter
from kinescan.runtime.output_folder import prepare_output
from kinescan.runtime.stored_files import require_file_taker


def pack(
    source: str | Path,
    output: str | Path,
    *,
    test: str | Path | None = None,
    reader: str | None = None,
    split: int | None = None,
    overrides: Sequence[str] = (),
    size: int = 0,
    shard_mib: int = 512,
    num_workers: int | None = None,
) -> PackReport:
    """Packs the videos of a data set into shards (see `kinescan.data.shards.pack_videos`).

    Args:
        source: a folder with one folder of videos per class, a csv, the folder of a published data set, or a recipe.
        output: folder for the shards, or an address of an object store.
        test: the same for evaluation.
        reader: how they are laid out, as `data.reader`.
        split: of a published data set, as `data.split`.
        overrides: "dotted.key=value" each.
        size: short side of frames that are coded once; 0 packs files as they are.
        shard_mib: of the files that go into one tar, in MiB.
        num_workers: processes that write; by default as many as there are cores.

    Raises:
        ConfigError: the videos cannot be listed or have labels with a start and an end, the output cannot be written,
            or it holds shards already.
    """
    started = time.monotonic()
    require_file_taker(output)
    if shard_mib < 1:
        raise ConfigError(f"shards must be of at least 1 MiB, got {shard_mib}.")
    settings = PackSettings(size=size, shard_bytes=shard_mib * 2**20)
    data = data_config(source, overrides, test=test, reader=reader, split=split)
    parts, _ = data_parts(data)
    lists: dict[str, VideoList] = {}
    for name, part in parts.items():
        if isinstance(part, IntervalTable):
            raise ConfigError(f"{source}: shards hold labels of whole clips, and these have a start and an end.")
        lists[name] = part
    folder = as_path(output) if is_remote(output) else prepare_output(output)
    workers = os.cpu_count() or 1 if num_workers is None else num_workers
    with Counter("packing", "shards") as progress:
        index, num_bytes = pack_videos(
            lists, folder, settings, num_workers=workers, limits=data.limits, progress=progress.update
        )
    return PackReport(
        folder=shown_path(folder),
        num_videos=sum(shard.num_videos for shard in index.shards),
        num_shards=len(index.shards),
        num_bytes=num_bytes,
        lost=index.lost,
        seconds=time.monotonic() - started,
    )
