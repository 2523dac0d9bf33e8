"""Which videos a run was trained on and which it held out, known again wherever they lie later."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinescan.data.listing import VideoItem
from kinescan.errors import CheckpointError, ConfigError
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
        label: number of its class.
        path: the file, absolute.
        fingerprint: of its content (see `fingerprint`); empty where the file was not there when the run began.
    """

    video_id: str
    label: int
    path: str
    fingerprint: str

    def item(self, path: str | Path | None = None) -> VideoItem:
        """As an item of a data set, by default where it was."""
        return VideoItem(Path(path or self.path), self.label, self.video_id)


@dataclass(frozen=True, kw_only=True)
class RunVideos:
    """The videos of a run, as its videos.json holds them.

    Attributes:
        classes: label texts in the order of their numbers.
        train: what it is trained on.
        held_out: what it is scored on while it trains, and by `kinescan eval`.
        origin: what the held-out videos are called in reports.
    """

    classes: tuple[str, ...]
    train: tuple[RecordedVideo, ...]
    held_out: tuple[RecordedVideo, ...]
    origin: str

    def __repr__(self) -> str:
        return f"RunVideos({len(self.train)} to train on, {len(self.held_out)} held out)"

    def save(self, folder: Path) -> None:
        """Writes videos.json into a run's folder.

        Raises:
            ConfigError: it cannot be written.
        """
        parts = {
            name: [
                {"id": video.video_id, "label": video.label, "path": video.path, "fingerprint": video.fingerprint}
                for video in videos
            ]
            for name, videos in (("train", self.train), ("held_out", self.held_out))
        }
        content = {"format": FORMAT, "held_out_is": self.origin, "classes": list(self.classes), **parts}
        text = to_json(content, indent=1)
        write_text(RunFolder(folder).videos, text + "\n", error=ConfigError)


def record_videos(
    train: Sequence[VideoItem], held_out: Sequence[VideoItem], classes: Sequence[str], *, origin: str
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
    prints = fingerprints([item.path for item in (*train, *held_out)])
    recorded = [
        RecordedVideo(
            video_id=item.video_id, label=item.label, path=os.path.abspath(item.path), fingerprint=print_ or ""
        )
        for item, print_ in zip((*train, *held_out), prints, strict=True)
    ]
    return RunVideos(
        classes=tuple(classes),
        train=tuple(recorded[: len(train)]),
        held_out=tuple(recorded[len(train) :]),
        origin=origin,
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
        train, held_out = (tuple(map(_recorded, content[name])) for name in ("train", "held_out"))
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{file} is not the list of videos that a run writes (format {FORMAT}). Restore it from a copy, or delete "
            "it: nobody knows then which videos the run was trained on."
        ) from None
    return RunVideos(
        classes=tuple(content["classes"]), train=train, held_out=held_out, origin=str(content.get("held_out_is"))
    )


def fingerprint(path: str | Path) -> str | None:
    """What tells a file's content from others at the cost of one look: a hash of its size and both ends (4 KiB each).

    Returns:
        32 hexadecimal digits; None where the file cannot be read, or is no regular file.
    """
    try:
        # a named pipe would be waited for without end
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
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
    video = RecordedVideo(
        video_id=entry["id"], label=entry["label"], path=entry["path"], fingerprint=entry["fingerprint"]
    )
    texts = (video.video_id, video.path, video.fingerprint)
    if type(video.label) is not int or not all(isinstance(text, str) for text in texts):
        raise TypeError
    return video
