"""Which video lies where in which shard."""

import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from kinescan.data.stored import TAR_BLOCK, Member
from kinescan.errors import ConfigError
from kinescan.runtime.addresses import address_of
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import parse_json, read_text
from kinescan.runtime.http_store import StoreError
from kinescan.runtime.remote import remote_size
from kinescan.runtime.stored_files import write_file

INDEX_FILE = "shards.json"
FORMAT = 1
LOST = -1
"""Shard of a video that was not there, or could not be read, when the others were packed."""
_MOST_BYTES = 8 * 2**30
_COLUMNS = {"id": str, "name": str, "label": int, "part": str, "group": str, "shard": int, "offset": int, "size": int}


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A tar.

    Attributes:
        name: of the file, beside the index.
        num_bytes: of the tar.
        num_videos: in it.
    """

    name: str
    num_bytes: int
    num_videos: int


@dataclass(frozen=True, kw_only=True)
class PackedVideo:
    """A video and where it is.

    Attributes:
        id: what names it, as before it was packed: augmentation and splits depend on it.
        name: in the tar; empty where it is lost.
        label: number of its class.
        part: "train" or "test".
        group: see `VideoItem`.
        shard: number of its tar; `LOST` where it could not be packed.
        offset: of its first byte in the tar.
        size: its bytes.
    """

    id: str
    name: str
    label: int
    part: str
    group: str = ""
    shard: int = LOST
    offset: int = 0
    size: int = 0


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """All videos of a folder of shards, in the order of the data set that was packed.

    Attributes:
        classes: label texts in the order of their numbers.
        shards: the tars.
        videos: train first, then test.
        made_of: "files" as they were, or "frames" that were resized and coded once.
        lost: id -> why it was not packed.
    """

    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    videos: tuple[PackedVideo, ...]
    made_of: str = "files"
    lost: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"ShardIndex({len(self.videos)} videos in {len(self.shards)} shards, {len(self.classes)} classes)"

    def path(self, folder: Path, video: PackedVideo) -> Path:
        """The path that stands for a video, in the folder or at the address of the shards."""
        if video.shard == LOST:
            return folder / "not packed" / video.id
        return Member(str(folder / self.shards[video.shard].name), video.offset, video.size, video.name).path

    @property
    def parts(self) -> tuple[str, ...]:
        """The sides that it holds."""
        return tuple(dict.fromkeys(video.part for video in self.videos))

    def save(self, folder: Path) -> None:
        """Writes it into the folder, or to its address.

        Raises:
            ConfigError: it cannot be written.
        """
        columns = {name: [getattr(video, name) for video in self.videos] for name in _COLUMNS}
        content = {
            "format": FORMAT,
            "made_of": self.made_of,
            "classes": list(self.classes),
            "shards": [asdict(shard) for shard in self.shards],
            "lost": self.lost,
            "videos": columns,
        }
        with write_file(folder / INDEX_FILE) as aside:
            aside.write_bytes(f"{to_json(content)}\n".encode())


def find_index(source: str | Path) -> Path | None:
    """The index that a path or an address names: itself, or that of its folder; None where there is none.

    Raises:
        ConfigError: the store of an address does not answer, or refuses.
    """
    path = Path(source)
    address = address_of(path)
    if address is None:
        file = path if path.name == INDEX_FILE else path / INDEX_FILE
        return file if file.is_file() else None
    if path.name == INDEX_FILE:
        return path
    if path.suffix:
        return None
    try:
        remote_size(f"{address.rstrip('/')}/{INDEX_FILE}")
    except StoreError as error:
        if error.status == 404:
            return None
        raise ConfigError(f"{address}: {error.reason}") from None
    return path / INDEX_FILE


def read_index(file: str | Path) -> ShardIndex:
    """The index in a file, or at an address; the last few are kept in memory.

    Raises:
        ConfigError: it cannot be read, another version wrote it, or what it says cannot be: a shard or a video that is
            listed twice, or a video outside of its shard.
    """
    file = Path(file)
    address = address_of(file)
    try:
        if address is None:
            found = os.stat(file)
            return _read_kept(file, (found.st_size, found.st_mtime_ns))
        return _read_kept(file, remote_size(address))
    except StoreError as error:
        raise ConfigError(f"{address}: {error.reason}") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror or error}). Check the path.") from None


@lru_cache(maxsize=4)
def _read_kept(file: Path, state: tuple[int, int | str]) -> ShardIndex:
    content = parse_json(read_text(file, max_bytes=_MOST_BYTES), file)
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise ConfigError(
            f"{file} is an index of shards of format {version!r}; this version of kinescan reads format {FORMAT}. Pack "
            "the videos again, or use the version that wrote it."
        )
    try:
        index = _from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{file} is not a whole index of shards ({type(error).__name__}: {error}). Fetch it again."
        ) from None
    _check(index, file)
    return index


def _from_json(content: dict[str, Any]) -> ShardIndex:
    columns = content["videos"]
    for name, kind in _COLUMNS.items():
        if not all(type(value) is kind for value in columns[name]):
            raise TypeError(f"column {name}")
    rows = zip(*(columns[name] for name in _COLUMNS), strict=True)
    return ShardIndex(
        classes=tuple(map(str, content["classes"])),
        shards=tuple(
            Shard(name=str(one["name"]), num_bytes=int(one["num_bytes"]), num_videos=int(one["num_videos"]))
            for one in content["shards"]
        ),
        videos=tuple(PackedVideo(**dict(zip(_COLUMNS, row, strict=True))) for row in rows),
        made_of=str(content["made_of"]),
        lost=dict(content["lost"]),
    )


def _check(index: ShardIndex, file: Path) -> None:
    def refuse(what: str) -> ConfigError:
        return ConfigError(f"{file}: {what}. Fetch the index again, or pack the videos again.")

    names = Counter(shard.name for shard in index.shards)
    if twice := [name for name, count in names.items() if count > 1]:
        raise refuse(f"the shard {twice[0]} is listed {names[twice[0]]} times")
    for name in names:
        if not name.endswith(".tar") or "/" in name or "\\" in name or name.startswith("."):
            raise refuse(f"{name!r} is not the name of a shard beside it")
    seen: set[tuple[int, int]] = set()
    ids: set[tuple[str, str]] = set()
    for video in index.videos:
        if not 0 <= video.label < len(index.classes) or video.part not in ("train", "test"):
            raise refuse(f"{video.id} has a label or part that is not there")
        if (video.part, video.id) in ids:
            raise refuse(f"the video {video.id} is listed twice")
        ids.add((video.part, video.id))
        if video.shard == LOST:
            continue
        if not 0 <= video.shard < len(index.shards):
            raise refuse(f"{video.id} lies in a shard that is not listed")
        end = index.shards[video.shard].num_bytes
        if (video.shard, video.offset) in seen or not TAR_BLOCK <= video.offset <= end - video.size or video.size < 0:
            raise refuse(f"{video.id} lies outside of its shard, or where another one does")
        seen.add((video.shard, video.offset))
