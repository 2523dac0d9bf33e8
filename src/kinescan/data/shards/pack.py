"""Videos packed into tars, as WebDataset has them, with an index of where each one is."""

import hashlib
import io
import logging
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from kinescan.data.file_workers import CRASH, each_file
from kinescan.data.listing import VideoItem, VideoList
from kinescan.data.shards.index import FORMAT, INDEX_FILE, LOST, PackedVideo, Shard, ShardIndex
from kinescan.data.stored import TAR_BLOCK, open_bytes, stamp_of
from kinescan.data.transforms import resize
from kinescan.data.video import Limits, VideoReader
from kinescan.data.video.writer import write_frames
from kinescan.errors import ConfigError, VideoError
from kinescan.runtime.addresses import shown_path
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import read_json_object
from kinescan.runtime.stored_files import remove_file, require_file_taker, sizes_in, write_file

logger = logging.getLogger(__name__)

SHARD_BYTES = 2**29
_BEGUN = "packing.json"
"""There until all is written."""
_NOT_THERE = -1
_MOST_OF_A_RECORD = 2**28
_OURS = re.compile(r"\d{6,}\.(tar|written\.json)")
_CHUNK = 2**20
_SPOOLED_BYTES = 2**26
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """How videos are packed.

    Attributes:
        size: short side of the frames in pixels; larger ones are resized and all are coded once (H.264 in mp4). 0
            packs the files as they are, byte for byte.
        crf: quality of frames that are coded: smaller is better.
        keyframe_interval: frames from one key frame to the next, at most: of fewer, fewer are decoded for a clip.
        shard_bytes: of the files that go into one tar, about.

    Raises:
        ConfigError: a number is out of range.
    """

    size: int = 0
    crf: int = 20
    keyframe_interval: int = 12
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        ranges = {"size": (0, 8192), "crf": (0, 51), "keyframe_interval": (1, 10_000), "shard_bytes": (1, 2**40)}
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name} must lie in [{least}, {most}], got {getattr(self, name)}.")
        if self.size % 2 or 0 < self.size < 16:
            raise ConfigError(f"size must be 0, or an even number of at least 16, got {self.size}.")


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """What was packed.

    Attributes:
        folder: of the shards.
        num_videos: that are in them.
        num_shards: tars.
        num_bytes: of all tars.
        lost: id -> why a video is not in them.
        seconds: how long it took.
    """

    folder: str
    num_videos: int
    num_shards: int
    num_bytes: int
    lost: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class _Entry:
    """A video to be packed: its number in the data set, what the index says of it, its bytes and when it changed."""

    number: int
    part: str
    item: VideoItem
    num_bytes: int
    changed: int


@dataclass(frozen=True)
class _Plan:
    """One tar to be written."""

    number: int
    entries: tuple[_Entry, ...]

    @property
    def name(self) -> str:
        return f"{self.number:06d}.tar"

    @property
    def record_name(self) -> str:
        """The file that says what was written, until all is."""
        return f"{self.number:06d}.written.json"

    def fingerprint(self, settings: PackSettings) -> str:
        """The same for what would become the same tar."""
        entries = [
            (entry.number, entry.part, entry.item.video_id, entry.item.label, entry.num_bytes, entry.changed)
            for entry in self.entries
        ]
        return hashlib.sha256(to_json([FORMAT, asdict(settings), entries]).encode()).hexdigest()


@dataclass(frozen=True)
class _Written:
    """A tar that was written: number -> name, offset and size of each video, and why others are not in it."""

    plan: _Plan
    num_bytes: int
    members: dict[int, tuple[str, int, int]]
    lost: dict[int, str]


def pack_videos(
    parts: Mapping[str, VideoList],
    folder: Path,
    settings: PackSettings | None = None,
    *,
    num_workers: int = 0,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ShardIndex, int]:
    """Writes tars and, last, their index, into a folder or to an object store.

    What an interrupted attempt has written whole, of the same videos and settings, is kept; other tars of it are
    replaced. To a store each tar is uploaded when it is whole, and made in the system's folder for temporary files.

    The order of the videos, their ids and their labels are those of the data set, so that order, splits and draws of a
    training on the shards are those of a training on the files. What is not there, or cannot be decoded where frames
    are coded, keeps its position and is listed.

    Args:
        parts: "train" and perhaps "test".
        folder: made if need be; or an address of an object store.
        settings: by default the files as they are.
        num_workers: processes that write tars; 0 writes in this one.
        limits: what one video may take.
        progress: is called with how many tars are done, of how many.

    Returns:
        The index, and how many bytes the tars have.

    Raises:
        ConfigError: the folder holds an index already, or cannot be written.
    """
    settings = settings or PackSettings()
    require_file_taker(folder)
    there = sizes_in(folder)
    if INDEX_FILE in there:
        raise ConfigError(f"{shown_path(folder)} holds shards already. Choose another folder, or delete that one.")
    entries, lost = _entries(parts)
    plans = _plans(entries, settings.shard_bytes)
    # a store that refuses is found out before the first tar is made
    _write_json(folder / _BEGUN, {"format": FORMAT, "shards": len(plans)})
    written = [found for plan in plans if (found := _written_before(plan, folder, settings, there)) is not None]
    if written:
        logger.info("%s: %d of %d shards are there already", shown_path(folder), len(written), len(plans))
    done = {one.plan.number for one in written}
    left = [plan for plan in plans if plan.number not in done]
    write = partial(_write_shard, folder=folder, settings=settings, limits=limits)
    with closing(each_file(left, write, num_workers=num_workers, crashed=_crashed)) as results:
        for result in results:
            written.append(_without_killers(result, write, limits))
            if progress is not None:
                progress(len(written), len(plans))
    index = _index(parts, entries, written, lost, settings)
    index.save(folder)
    _tidy(folder, index)
    return index, sum(one.num_bytes for one in written)


def _write_json(path: Path, content: Any) -> None:
    with write_file(path) as aside:
        aside.write_bytes(to_json(content).encode())


def _written_before(plan: _Plan, folder: Path, settings: PackSettings, there: dict[str, int]) -> _Written | None:
    """What an earlier attempt has written of a plan, whole and of the same videos; None where it has not."""
    if plan.record_name not in there or plan.name not in there:
        return None
    try:
        record = read_json_object(folder / plan.record_name, max_bytes=_MOST_OF_A_RECORD)
        if record["of"] != plan.fingerprint(settings) or record["num_bytes"] != there[plan.name]:
            return None
        members = {int(number): (str(name), int(offset), int(size)) for number, name, offset, size in record["members"]}
        return _Written(plan, there[plan.name], members, {int(number): str(why) for number, why in record["lost"]})
    except (ConfigError, KeyError, TypeError, ValueError):
        # of no use: the tar is made anew
        return None


def _tidy(folder: Path, index: ShardIndex) -> None:
    """Takes away what the shards do not need: records, and tars of an earlier attempt with smaller shards."""
    kept = {shard.name for shard in index.shards}
    try:
        for name in sizes_in(folder):
            if name == _BEGUN or (_OURS.fullmatch(name) and name not in kept):
                remove_file(folder / name)
    except OSError as error:
        # the shards are whole: some stores let nobody delete
        logger.warning("%s: what is not needed is not removed: %s", shown_path(folder), getattr(error, "reason", error))


def _entries(parts: Mapping[str, VideoList]) -> tuple[list[_Entry], dict[int, str]]:
    entries: list[_Entry] = []
    lost: dict[int, str] = {}
    for part, videos in parts.items():
        for item in videos.items:
            number = len(entries)
            try:
                size, changed = stamp_of(item.path)
            except OSError as error:
                size, changed = 0, _NOT_THERE
                lost[number] = str(getattr(error, "reason", None) or error.strerror or error)
            entries.append(_Entry(number, part, item, size, changed))
    return entries, lost


def _plans(entries: list[_Entry], shard_bytes: int) -> list[_Plan]:
    plans: list[_Plan] = []
    together: list[_Entry] = []
    num_bytes = 0
    for entry in entries:
        if together and num_bytes + entry.num_bytes > shard_bytes:
            plans.append(_Plan(len(plans), tuple(together)))
            together, num_bytes = [], 0
        together.append(entry)
        num_bytes += entry.num_bytes
    if together:
        plans.append(_Plan(len(plans), tuple(together)))
    return plans


def _crashed(plan: _Plan) -> _Written:
    return _Written(plan, 0, {}, {entry.number: CRASH for entry in plan.entries})


def _without_killers(written: _Written, write: Callable[[_Plan], _Written], limits: Limits | None) -> _Written:
    """A tar that ended the process that wrote it, without the videos that do that."""
    if not written.lost or written.members or set(written.lost.values()) != {CRASH}:
        return written
    numbers = {entry.number: entry for entry in written.plan.entries}
    survive = partial(_survives, limits=limits)
    killers = {
        number
        for number, is_alive in each_file(
            list(numbers.values()), survive, num_workers=1, crashed=lambda entry: (entry.number, False)
        )
        if not is_alive
    }
    left = tuple(entry for entry in written.plan.entries if entry.number not in killers)
    again = write(_Plan(written.plan.number, left))
    return _Written(written.plan, again.num_bytes, again.members, again.lost | dict.fromkeys(killers, CRASH))


def _survives(entry: _Entry, *, limits: Limits | None) -> tuple[int, bool]:
    with suppress(VideoError), VideoReader(entry.item.path, limits=limits) as video:
        video.check()
    return entry.number, True


def _write_shard(plan: _Plan, *, folder: Path, settings: PackSettings, limits: Limits | None) -> _Written:
    members: dict[int, tuple[str, int, int]] = {}
    lost: dict[int, str] = {}
    may_pass = False
    with write_file(folder / plan.name) as aside:
        with tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as tar:
            for entry in plan.entries:
                # gathered first: a file that ends too soon leaves nothing in the tar
                with tempfile.SpooledTemporaryFile(_SPOOLED_BYTES) as gathered:
                    try:
                        suffix = _gather(entry, cast(BinaryIO, gathered), settings, limits)
                    except OSError as error:
                        lost[entry.number] = str(getattr(error, "reason", None) or error.strerror or error)
                        may_pass |= entry.changed != _NOT_THERE and not isinstance(error, VideoError)
                        continue
                    size = gathered.tell()
                    gathered.seek(0)
                    name, offset = f"{entry.number:09d}{suffix}", tar.offset + TAR_BLOCK
                    tar.addfile(_head(name, size), gathered)
                    members[entry.number] = name, offset, size
                facts = to_json({"id": entry.item.video_id, "cls": entry.item.label, "part": entry.part}).encode()
                tar.addfile(_head(f"{entry.number:09d}.json", len(facts)), io.BytesIO(facts))
        num_bytes = os.path.getsize(aside)
    if not may_pass:
        record = {"of": plan.fingerprint(settings), "num_bytes": num_bytes, "lost": list(lost.items())}
        _write_json(
            folder / plan.record_name, {**record, "members": [(number, *found) for number, found in members.items()]}
        )
    return _Written(plan, num_bytes, members, lost)


def _head(name: str, size: int) -> tarfile.TarInfo:
    """Without names, times and rights of this machine: the same videos give the same tars."""
    head = tarfile.TarInfo(name)
    head.size, head.mode = size, 0o644
    return head


def _gather(entry: _Entry, out: BinaryIO, settings: PackSettings, limits: Limits | None) -> str:
    """Writes what is packed of a video, and gives the suffix of its name in the tar.

    Raises:
        OSError: it cannot be read; a VideoError where it is not a whole video.
    """
    path = entry.item.path
    if not settings.size:
        with open_bytes(path) as file:
            shutil.copyfileobj(file, out, _CHUNK)
        suffix = path.suffix.lower()
        return suffix if _SUFFIX.fullmatch(suffix) and suffix != ".json" else ".bin"
    with tempfile.TemporaryDirectory() as folder, VideoReader(path, limits=limits) as video:
        coded = Path(folder, "coded.mp4")
        height, width = resized((video.height, video.width), settings.size)
        times = video.pts_seconds - video.pts_seconds[0]
        write_frames(
            coded,
            (resize(image[None], (height, width), "bilinear")[0] for image, _ in video),
            size=(height, width),
            fps=video.fps or 1.0,
            crf=settings.crf,
            keyframe_interval=settings.keyframe_interval,
            pts_seconds=times.tolist(),
        )
        with coded.open("rb") as file:
            shutil.copyfileobj(file, out, _CHUNK)
    return ".mp4"


def resized(size: tuple[int, int], short: int) -> tuple[int, int]:
    """Height and width with this short side, even; never larger than before.

    Args:
        size: height and width, in pixels.
        short: the shorter side that is wanted, in pixels.

    Example:
        >>> resized((480, 854), 240), resized((101, 99), 240)
        ((240, 428), (100, 98))
    """
    scale = min(1.0, short / min(size))
    height, width = (max(2, 2 * int(side * scale / 2 + (0.5 if scale < 1 else 0))) for side in size)
    return height, width


def _index(
    parts: Mapping[str, VideoList],
    entries: list[_Entry],
    written: list[_Written],
    lost: dict[int, str],
    settings: PackSettings,
) -> ShardIndex:
    full = sorted((one for one in written if one.members), key=lambda one: one.plan.number)
    members = {number: (shard, *member) for shard, one in enumerate(full) for number, member in one.members.items()}
    for one in written:
        lost |= one.lost
    videos = []
    for entry in entries:
        shard, name, offset, size = members.get(entry.number, (LOST, "", 0, 0))
        item = entry.item
        videos.append(
            PackedVideo(
                id=item.video_id,
                name=name,
                label=item.label,
                part=entry.part,
                group=item.group,
                shard=shard,
                offset=offset,
                size=size,
            )
        )
    return ShardIndex(
        classes=next(iter(parts.values())).classes,
        shards=tuple(Shard(name=one.plan.name, num_bytes=one.num_bytes, num_videos=len(one.members)) for one in full),
        videos=tuple(videos),
        made_of="frames" if settings.size else "files",
        lost={entries[number].item.video_id: reason for number, reason in sorted(lost.items())},
    )
