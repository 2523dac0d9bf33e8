"""Which videos a run was trained on and which it held out, known again wherever they lie later."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinescan.data.intervals import Interval, IntervalVideo
from kinescan.data.listing import VideoItem
from kinescan.data.splits import Video
from kinescan.data.stored import is_plain, open_bytes
from kinescan.errors import CheckpointError, ConfigError
from kinescan.runtime.addresses import absolute, address_of
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import read_json_object
from kinescan.runtime.run_folder import RunFolder

FORMAT = 1
_END = 4096
_THREADS = 16
_MAX_BYTES = 8 * 2**30


@dataclass(frozen=True, kw_only=True)
class RecordedVideo:
    """A video of a run.

    Attributes:
        video_id: its id in the data set.
        label: number of its class; None where labels have a start and an end.
        path: the file, absolute; of an address, as it was typed.
        fingerprint: of its content (see `fingerprint`); empty where the file was not there when the run began.
        group: see `VideoItem`.
        intervals: (label, start, end in seconds) of each; None where the label is of the whole clip.
    """

    video_id: str
    label: int | None
    path: str
    fingerprint: str
    group: str = ""
    intervals: tuple[tuple[str, float, float], ...] | None = None

    def item(self, path: str | Path | None = None) -> VideoItem:
        """As an item of a data set, by default where it was.

        Raises:
            CheckpointError: its labels have a start and an end.
        """
        if self.label is None:
            raise CheckpointError(f"{self.video_id}: the labels of this run have a start and an end.")
        return VideoItem(Path(path or self.path), self.label, self.video_id, self.group)

    def interval_video(self, path: str | Path | None = None) -> IntervalVideo:
        """As a video with intervals, by default where it was.

        Raises:
            CheckpointError: its label is of the whole clip.
        """
        if self.intervals is None:
            raise CheckpointError(f"{self.video_id}: the labels of this run are of whole clips.")
        intervals = tuple(
            Interval(video_id=self.video_id, label=label, start_seconds=start, end_seconds=end)
            for label, start, end in self.intervals
        )
        return IntervalVideo(Path(path or self.path), self.video_id, intervals, self.group)

    def to_json(self) -> dict[str, Any]:
        """As videos.json holds it."""
        plain: dict[str, Any] = {"id": self.video_id, "label": self.label, "path": self.path}
        plain["fingerprint"] = self.fingerprint
        if self.group:
            plain["group"] = self.group
        if self.intervals is not None:
            del plain["label"]
            plain["intervals"] = [list(interval) for interval in self.intervals]
        return plain


@dataclass(frozen=True, kw_only=True)
class RunVideos:
    """The videos of a run, as its videos.json holds them.

    Attributes:
        classes: label texts in the order of their numbers.
        train: what it is trained on.
        held_out: what it is scored on at the end and by `kinescan eval`; without `validation` also while it trains.
        origin: what the held-out videos are called in reports.
        validation: what the best checkpoint and thresholds are chosen on; empty: the held-out videos.
    """

    classes: tuple[str, ...]
    train: tuple[RecordedVideo, ...]
    held_out: tuple[RecordedVideo, ...]
    origin: str
    validation: tuple[RecordedVideo, ...] = ()

    def __repr__(self) -> str:
        chosen = f"{len(self.validation)} to choose on, " if self.validation else ""
        return f"RunVideos({len(self.train)} to train on, {chosen}{len(self.held_out)} held out)"

    @property
    def chosen_on(self) -> tuple[RecordedVideo, ...]:
        """What is scored while the run is trained."""
        return self.validation or self.held_out

    def save(self, folder: Path) -> None:
        """Writes videos.json into a run's folder.

        Raises:
            ConfigError: it cannot be written.
        """
        sides = {"train": self.train, "validation": self.validation, "held_out": self.held_out}
        parts = {name: [video.to_json() for video in videos] for name, videos in sides.items()}
        content = {"format": FORMAT, "held_out_is": self.origin, "classes": list(self.classes), **parts}
        text = to_json(content, indent=1)
        write_text(RunFolder(folder).videos, text + "\n", error=ConfigError)


def record_videos(
    train: Sequence[Video],
    held_out: Sequence[Video],
    classes: Sequence[str],
    *,
    origin: str,
    validation: Sequence[Video] = (),
) -> RunVideos:
    """The videos of a run that begins; of every file, the size and both ends are read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.mp4"
        ...     _ = path.write_bytes(b"frames")
        ...     videos = record_videos([VideoItem(path, 0, "a.mp4")], [], ["jump"], origin="test")
        ...     videos.save(Path(folder))
        ...     read_run_videos(Path(folder)) == videos
        True
    """

    def record(videos: Sequence[Video]) -> tuple[RecordedVideo, ...]:
        prints = fingerprints([video.path for video in videos])
        return tuple(_record(video, print_ or "") for video, print_ in zip(videos, prints, strict=True))

    return RunVideos(
        classes=tuple(classes),
        train=record(train),
        held_out=record(held_out),
        origin=origin,
        validation=record(validation),
    )


def _record(video: Video, print_: str) -> RecordedVideo:
    return RecordedVideo(
        video_id=video.video_id,
        label=video.label if isinstance(video, VideoItem) else None,
        path=address_of(video.path) or absolute(video.path),
        fingerprint=print_,
        group=video.group,
        intervals=None
        if isinstance(video, VideoItem)
        else tuple((item.label, item.start_seconds, item.end_seconds) for item in video.intervals),
    )


def read_run_videos(folder: Path) -> RunVideos | None:
    """What a run's folder says of its videos; None where it says nothing, as those of earlier versions.

    Raises:
        CheckpointError: videos.json is damaged.
    """
    file = RunFolder(folder).videos
    if not file.exists():
        return None
    content = read_json_object(file, max_bytes=_MAX_BYTES, error=CheckpointError)
    try:
        if content["format"] != FORMAT or not all(isinstance(name, str) for name in content["classes"]):
            raise ValueError
        # runs of earlier versions have no validation part
        train, held_out, validation = (
            tuple(map(_recorded, content[name] if name != "validation" else content.get(name, [])))
            for name in ("train", "held_out", "validation")
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(
            f"{file} is not the list of videos that a run writes (format {FORMAT}). Restore it from a copy, or delete "
            "it: it is then unknown which videos the run was trained on."
        ) from None
    return RunVideos(
        classes=tuple(content["classes"]),
        train=train,
        held_out=held_out,
        origin=str(content.get("held_out_is")),
        validation=validation,
    )


def fingerprint(path: str | Path) -> str | None:
    """What tells a file's content from others at the cost of one look: a hash of its size and both ends (4 KiB each).

    Returns:
        32 hexadecimal digits; None where the file cannot be read, or is not a regular file.
    """
    try:
        # a named pipe would be waited for without end
        if is_plain(path) and not os.path.isfile(path):
            return None
        with open_bytes(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            digest = hashlib.blake2b(f"{size}\0".encode() + file.read(_END), digest_size=16)
            file.seek(max(0, size - _END))
            digest.update(file.read(_END))
    except (OSError, ValueError):
        return None
    return digest.hexdigest()


def fingerprints(paths: Iterable[str | Path]) -> list[str | None]:
    """`fingerprint` of many files, several at a time."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(fingerprint, paths))


def _recorded(entry: Any) -> RecordedVideo:
    intervals = None
    if not isinstance(entry["path"], str):
        raise TypeError
    if "intervals" in entry:
        intervals = tuple((str(label), float(start), float(end)) for label, start, end in entry["intervals"])
    video = RecordedVideo(
        video_id=entry["id"],
        label=entry["label"] if intervals is None else None,
        # earlier versions left out one slash of an address
        path=address_of(entry["path"]) or entry["path"],
        fingerprint=entry["fingerprint"],
        group=entry.get("group", ""),
        intervals=intervals,
    )
    texts = (video.video_id, video.path, video.fingerprint, video.group)
    if (intervals is None and type(video.label) is not int) or not all(isinstance(text, str) for text in texts):
        raise TypeError
    return video
