import csv
import io
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from kinescan.data.intervals import Interval
from kinescan.data.video import write_video
from kinescan.errors import ConfigError
from kinescan.fields import MAX_SEED, check_most, check_types
from kinescan.runtime.addresses import require_local
from kinescan.runtime.atomic_write import write_text
from kinescan.settings import to_plain
from kinescan.shapes import Pixels
from kinescan.version import __version__

Split = Literal["train", "test"]

META = "meta.json"
QUANTIZER = 20


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """Sizes and disturbances of the pictures of synthetic data.

    Attributes:
        frame_size: side of the square frame in pixels.
        fps: frames per second.
        seed: the same seed makes the same pixels.
        noise_levels: standard deviation of the noise on every pixel and channel, in levels of 255.
        shake_pixels: how far the camera is off at most, in x and in y, pixels; sampled anew for every frame.
        workers: files made at a time.
        overwrite: replace a data set that is in the folder.
    """

    frame_size: int = 64
    fps: float = 12.0
    seed: int = 0
    noise_levels: float = 3.0
    shake_pixels: float = 1.0
    workers: int = 1
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_most(self, frame_size=2**12, fps=1e3, noise_levels=255, workers=1024, seed=MAX_SEED)
        self._check_least(frame_size=16, seed=0, workers=1, noise_levels=0, shake_pixels=0)
        if not self.fps > 0:
            raise ConfigError(f"fps must be positive, got {self.fps}.")
        if self.shake_pixels > self.frame_size / 4:
            raise ConfigError(
                f"shake_pixels must be at most a quarter of frame_size {self.frame_size}, got {self.shake_pixels}: "
                "objects would leave the frame."
            )

    def _check_least(self, **lowest: float) -> None:
        for name, least in lowest.items():
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig(PictureConfig):
    """Sizes, numbers and disturbances of synthetic data, one class a file.

    Attributes:
        num_frames: frames of a file.
        train_per_class: training files of a class.
        test_per_class: test files of a class.
    """

    num_frames: int = 24
    train_per_class: int = 100
    test_per_class: int = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_most(self, num_frames=2**16, train_per_class=2**20, test_per_class=2**20)
        self._check_least(num_frames=2, train_per_class=0, test_per_class=0)

    def per_class(self, split: Split) -> int:
        """Files of a class in `split`."""
        return self.train_per_class if split == "train" else self.test_per_class


@dataclass(frozen=True)
class SyntheticReport:
    """What was made.

    Attributes:
        folder: holds train/CLASS/*.mp4, test/CLASS/*.mp4 and meta.json; of events train/*.mp4, test/*.mp4, meta.json,
            train.csv and test.csv.
        classes: in the order of their indices.
        num_train: files in train.
        num_test: files in test.
        seconds: wall time it took.
        num_events: labels with a start and an end; 0 where a file has one class.
        sources: where the pixels come from files: those of each part ("train", "test"), as paths below their folder.
        left_out: files that were not used -> why.
    """

    folder: Path
    classes: tuple[str, ...]
    num_train: int
    num_test: int
    seconds: float
    num_events: int = 0
    sources: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClipFile:
    """One file to be written: FOLDER/split/label/index.mp4; with intervals FOLDER/split/index.mp4.

    `intervals` are the labels with a start and an end (an empty tuple: nothing happens); None: the file has a class.
    """

    split: Split
    label: str
    index: int
    pixels: Pixels
    intervals: tuple[Interval, ...] | None = None

    @property
    def path(self) -> str:
        """Within the data set's folder, with forward slashes."""
        return "/".join(part for part in (self.split, self.label, f"{self.index:04d}.mp4") if part)


def write_dataset(
    folder: str | Path,
    kind: str,
    config: PictureConfig,
    classes: tuple[str, ...],
    jobs: Sequence[Callable[[], Iterable[ClipFile]]],
    *,
    keyframe_interval: int = 1,
    about: Mapping[str, Any] | None = None,
) -> SyntheticReport:
    """The files of all jobs, meta.json with kind, config, classes and version, and lists of the intervals there are.

    `about` is what meta.json says beside that.

    With a key frame interval of 1, every frame has the same quantizer and refers to no other, so that a clip and its
    reversal are compressed alike: rate control looks back, and would leave a trace of the direction of time.
    """
    start = time.perf_counter()
    folder = Path(folder)
    _prepare(folder, config.overwrite)
    meta = {"kind": kind, "version": __version__, "classes": list(classes), "config": to_plain(config)}
    meta |= about or {}
    write_text(folder / META, json.dumps({**meta, "complete": False}, indent=2) + "\n")

    def write(job: Callable[[], Iterable[ClipFile]]) -> list[ClipFile]:
        written = []
        for clip in job():
            path = folder / clip.path
            write_video(path, clip.pixels, fps=config.fps, quantizer=QUANTIZER, keyframe_interval=keyframe_interval)
            written.append(replace(clip, pixels=clip.pixels[:0]))
        return written

    with ThreadPoolExecutor(config.workers) as pool:
        files = [clip for written in pool.map(write, jobs) for clip in written]
    num_events = _write_lists(folder, files)
    write_text(folder / META, json.dumps({**meta, "complete": True}, indent=2) + "\n")
    numbers = Counter(clip.split for clip in files)
    seconds = time.perf_counter() - start
    return SyntheticReport(folder, classes, numbers["train"], numbers["test"], seconds, num_events)


def _write_lists(folder: Path, files: Sequence[ClipFile]) -> int:
    """train.csv and test.csv where files have intervals; returns how many there are."""
    num_events = 0
    for split in ("train", "test"):
        listed = [(clip.path, clip.intervals) for clip in files if clip.split == split and clip.intervals is not None]
        if not listed:
            continue
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        writer.writerow(["path", "start", "end", "label"])
        for path, intervals in listed:
            num_events += len(intervals)
            for event in intervals:
                writer.writerow([path, f"{event.start_seconds:.2f}", f"{event.end_seconds:.2f}", event.label])
            if not intervals:
                writer.writerow([path, "", "", ""])
        write_text(folder / f"{split}.csv", rows.getvalue())
    return num_events


def require_free(folder: Path, overwrite: bool) -> None:
    """Passes a folder that is not there, empty, or holds a data set made by kinescan that may be replaced.

    Raises:
        ConfigError: it holds something else, or cannot be read.
    """
    require_local(folder)
    try:
        present = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise _not_writable(folder, error) from None
    if present and not overwrite:
        raise ConfigError(
            f"{folder} is not empty ({present[0]}, ...). Name another folder, or let it be "
            "replaced: kinescan data make ... --set overwrite=true; in Python overwrite=True."
        )
    if present and META not in present:
        raise ConfigError(
            f"{folder} holds no {META}, so it is not a data set made by kinescan to overwrite. Name another folder."
        )


def _prepare(folder: Path, overwrite: bool) -> None:
    """An empty, writable folder; what is removed on the way is a data set made by kinescan, never anything else."""
    require_free(folder, overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split in ("train", "test"):
            if (folder / split).is_dir():
                shutil.rmtree(folder / split)
            (folder / f"{split}.csv").unlink(missing_ok=True)
    except OSError as error:
        raise _not_writable(folder, error) from None


def _not_writable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{folder} cannot be written: {error.strerror or error}. Name another folder.")
