from pathlib import Path

from kinescan.data.readers.source import LabelledVideo, LabelSource, Listing
from kinescan.data.shards.index import LOST, ShardIndex, find_index, read_index
from kinescan.errors import ConfigError
from kinescan.runtime.addresses import address_of
from kinescan.runtime.quantities import byte_size


def read_shards(source: LabelSource) -> Listing:
    """Videos in shards (see `kinescan data pack`), in the order in which they were packed.

    Raises:
        ConfigError: there is no index, or it is not whole.
    """
    file = find_index(source.path)
    if file is None:
        raise ConfigError(f"{source.path} holds no shards.json. Write shards with kinescan data pack.")
    index = read_index(file)
    folder = file.parent if source.root is None else source.root
    wanted = source.part if len(index.parts) > 1 else index.parts[0] if index.parts else source.part
    videos = [video for video in index.videos if video.part == wanted]
    away, notes = _faults(index, folder)
    missing = [video.id for video in videos if video.shard == LOST or video.shard in away]
    return Listing(
        [
            LabelledVideo(index.path(folder, video), video.id, index.classes[video.label], group=video.group)
            for video in videos
        ],
        index.classes,
        missing=tuple(missing),
        notes=notes,
    )


def _faults(index: ShardIndex, folder: Path) -> tuple[set[int], tuple[str, ...]]:
    """Numbers of the shards that are not there, and what is to be reported about them and of those that are cut.

    Those at addresses are not asked for: what is wrong with one shows when a video in it is read.
    """
    if address_of(folder) is not None:
        return set(), ()
    away, notes = set(), []
    for number, shard in enumerate(index.shards):
        path = folder / shard.name
        try:
            size = path.stat().st_size
        except OSError:
            away.add(number)
            notes.append(f"the shard {path} is not there, and with it {shard.num_videos} videos")
            continue
        if size != shard.num_bytes:
            notes.append(
                f"the shard {path} has {byte_size(size)} of {byte_size(shard.num_bytes)}: what cannot be read in it "
                "will be listed as unreadable"
            )
    return away, (*notes[:10], *((f"{len(notes) - 10} more shards are missing or cut",) if len(notes) > 10 else ()))


def shard_parts(source: Path) -> tuple[str, ...]:
    """The sides that shards hold.

    Raises:
        ConfigError: as for `read_shards`.
    """
    file = find_index(source)
    return () if file is None else read_index(file).parts
