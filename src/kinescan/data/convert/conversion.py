"""From the exports of annotation tools to rows of path,start,end,label."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kinescan.data.convert.export import Export, ExportFile, Mark
from kinescan.data.convert.formats import FORMATS, export_files
from kinescan.data.intervals import RowProblem
from kinescan.data.readers.video_names import VideoNames
from kinescan.data.video import VideoReader
from kinescan.errors import ConfigError, VideoError
from kinescan.settings import closest

_ATTRIBUTE = "attribute:"
_FRAMES_BEHIND = 2
"""Frames by which a mark may end after its video: tools count frames differently."""
_RATES_APART = 0.02
"""Frames per second by which two rates may differ and still count as equal: tools round their number of frames up."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """How an export is read.

    Attributes:
        format: name in `FORMATS`; "auto" finds it out.
        frame_rate: frames per second that frame numbers are counted at; 0: as the export or the videos say.
        label: fields that make the label, separated by commas; empty: the format's usual one.
        where: "FIELD=VALUE" each: marks are kept that have one of the values of every field that is named.
        videos: folder of the videos; empty: that of the export.
        least_seconds: how long what has no length lasts; 0 leaves it out.
    """

    format: str = "auto"
    frame_rate: float = 0.0
    label: str = ""
    where: tuple[str, ...] = ()
    videos: str = ""
    least_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ConvertedRow:
    """A row of the list; without times and label, nothing happens in its video."""

    path: Path
    start: float | None = None
    end: float | None = None
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What came out of an export.

    Attributes:
        format: its name.
        rows: by video and start.
        problems: what is wrong, by file; it is in no row.
        notes: what else a user should know.
        not_found: names of videos for which there is no file.
    """

    format: str
    rows: tuple[ConvertedRow, ...]
    problems: tuple[tuple[Path, RowProblem], ...] = ()
    notes: tuple[str, ...] = ()
    not_found: tuple[str, ...] = ()

    @property
    def num_videos(self) -> int:
        """Videos that were looked at."""
        return len({row.path for row in self.rows})

    @property
    def labels(self) -> Counter[str]:
        """How many rows have each label."""
        return Counter(row.label for row in self.rows if row.label)


def convert_export(source: str | Path, options: ConvertOptions | None = None) -> Conversion:
    """Reads an export, or all of a folder.

    Raises:
        ConfigError: its format is unknown, it holds nothing, it needs a frame rate that is not given, or names
            videos that are not in the folder that was given.
    """
    options = options or ConvertOptions()
    source = Path(source)
    files = export_files(source, options.format)
    kind = files[0][1]
    attribute = _attribute(kind, options)
    video_paths = _VideoPaths(source, options)
    marks: list[tuple[Path, Mark]] = []
    found = _Found()
    for file, _ in files:
        export = FORMATS[kind].read(ExportFile(file, attribute))
        found.problems += [(file, problem) for problem in export.problems]
        found.notes += export.notes
        found.videos.update(dict.fromkeys(export.videos))
        known = [problem.video for problem in export.problems]
        found.unsure.update(known if all(known) else export.videos)
        marks += [(file, mark) for mark in _in_seconds(export, options, video_paths, file, found)]
    if not found.videos and not found.problems:
        raise ConfigError(f"{source} holds no annotation of a video.")
    rows = [row for file, mark in marks for row in _rows(file, mark, kind, options, video_paths, found)]
    rows += _empty_rows(rows, video_paths, found)
    ordered = sorted(set(rows), key=lambda row: (str(row.path), row.start or 0.0, row.end or 0.0, row.label))
    notes = [*dict.fromkeys(found.notes), *_counts(found), *_overlaps(ordered)]
    return Conversion(
        format=kind,
        rows=tuple(ordered),
        problems=tuple(found.problems),
        notes=tuple(notes),
        not_found=tuple(video_paths.not_found(found.videos)),
    )


@dataclass
class _Found:
    """What is gathered while the files are read.

    Attributes:
        problems: what is wrong, by file.
        notes: what else a user should know.
        videos: names of all videos, in order (the values are not used).
        left_out: how many marks were left out, by reason.
        unsure: videos of which a mark could not be read, so that it is unknown whether nothing happens in them.
    """

    problems: list[tuple[Path, RowProblem]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    videos: dict[str, None] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    unsure: set[str] = field(default_factory=set)


def _empty_rows(rows: Sequence[ConvertedRow], video_paths: "_VideoPaths", found: _Found) -> Sequence[ConvertedRow]:
    """Rows of the videos in which nothing happens."""
    used = {row.path for row in rows}
    empty = [name for name in found.videos if video_paths.path(name) not in used]
    lost = [name for name in empty if name in found.unsure]
    if lost:
        found.notes.append(
            f"{len(lost)} videos are not in the list, such as {lost[0]}: none of what was marked in them could be taken"
        )
    return [ConvertedRow(path=video_paths.path(name)) for name in empty if name not in found.unsure]


class _VideoPaths:
    """Where the videos of an export are.

    Args:
        source: the export.
        options: name the folder.

    Raises:
        ConfigError: the folder is none.
    """

    def __init__(self, source: Path, options: ConvertOptions) -> None:
        self._asked = bool(options.videos)
        folder = Path(options.videos) if options.videos else source if source.is_dir() else source.parent
        self._names = VideoNames(folder)
        self._paths: dict[str, Path | None] = {}

    def find(self, name: str) -> Path | None:
        """The file of a video; None: there is none, or several fit."""
        if name not in self._paths:
            uploaded = _as_uploaded(name)
            self._paths[name] = self._names.find(name) or self._names.find(uploaded) or self._stored_as(uploaded)
        return self._paths[name]

    def _stored_as(self, name: str) -> Path | None:
        """The one file that a storage would call so: blanks become underscores, and odd signs go."""
        wanted = Path(name).name
        found = [path for path in self._names.paths if _plain(path.name) == wanted != path.name]
        return found[0] if len(found) == 1 else None

    def path(self, name: str) -> Path:
        """The file of a video, or the last part of its name where there is none."""
        return self.find(name) or Path(re.split(r"[\\/]", _as_uploaded(name).rstrip("\\/"))[-1] or name)

    def not_found(self, names: Iterable[str]) -> Sequence[str]:
        """Names without a file.

        Raises:
            ConfigError: not one is found in the folder that was asked for.
        """
        names = list(names)
        lost = [name for name in names if self.find(name) is None]
        if self._asked and lost and len(lost) == len(names):
            several = self._names.all_of(lost[0])
            why = f"{len(several)} files fit {lost[0]!r}" if several else f"the first is {lost[0]!r}"
            raise ConfigError(f"none of the {len(lost)} videos of the export is found in {self._names.folder}: {why}.")
        return lost


def _as_uploaded(name: str) -> str:
    """The name that a file had before Label Studio stored it: upload/3/0a1b2c3d-clip.mp4 was clip.mp4."""
    return re.sub(r"((?:^|/)upload/(?:[^/]+/)*)[0-9a-f]{8}-(?=[^/])", r"\1", name)


def _plain(name: str) -> str:
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def _attribute(kind: str, options: ConvertOptions) -> str:
    """The attribute that labels are made of.

    Raises:
        ConfigError: the format has no such field.
    """
    known = FORMATS[kind]
    allowed = [*known.fields, *([f"{_ATTRIBUTE}NAME"] if known.has_attributes else [])]
    asked = [*_fields(options.label), *(text.partition("=")[0].strip() for text in options.where)]
    for name in asked:
        if name not in known.fields and not (known.has_attributes and name.startswith(_ATTRIBUTE)):
            raise ConfigError(f"{name!r} is not a field of the format {kind}. {closest(name, allowed)}")
    attributes = dict.fromkeys(name.removeprefix(_ATTRIBUTE) for name in asked if name.startswith(_ATTRIBUTE))
    if len(attributes) > 1:
        raise ConfigError(f"one attribute can be used, got {', '.join(attributes)}.")
    return next(iter(attributes), "")


def _fields(label: str) -> list[str]:
    return [name.strip() for name in label.split(",") if name.strip()]


def _in_seconds(
    export: Export, options: ConvertOptions, video_paths: _VideoPaths, file: Path, found: _Found
) -> Iterator[Mark]:
    """Marks with times in seconds.

    Raises:
        ConfigError: times are frame numbers, and no frame rate is known.
    """
    if export.unit == "seconds":
        yield from export.marks
        return
    clocks: dict[str, Sequence[float] | None] = {}
    overruled: dict[float, None] = {}
    for mark in export.marks:
        if mark.in_seconds:
            yield mark
            continue
        rate = options.frame_rate or mark.frame_rate
        if mark.frame_rate and abs(rate / mark.frame_rate - 1) > _RATES_APART:
            rate = mark.frame_rate
            overruled.setdefault(rate)
        if rate:
            yield replace(mark, start=mark.start / rate, end=mark.end / rate)
            continue
        if mark.video not in clocks:
            clocks[mark.video] = _clock(video_paths.find(mark.video), export)
        clock = clocks[mark.video]
        if clock is None and export.counts_own_frames and any(map(video_paths.find, export.videos)):
            found.unsure.add(mark.video)
            reason = f"{mark.video} was not found, so that its frames have no times: give --fps, or correct the path."
            found.problems.append((file, RowProblem(mark.line, reason)))
            continue
        if clock is None:
            why = (
                "and the video was not found: give --fps, or --videos FOLDER"
                if export.counts_own_frames
                else "at the rate that the labelling configuration sets (24 where it sets none), which the export does "
                "not hold: give it with --fps"
            )
            raise ConfigError(f"{file} counts frames of {mark.video}, {why}.")
        if mark.start >= len(clock) - 1 or mark.end > len(clock) + _FRAMES_BEHIND:
            found.unsure.add(mark.video)
            found.problems.append(
                (
                    file,
                    RowProblem(mark.line, f"frames {mark.start:g} to {mark.end:g}: {mark.video} has {len(clock) - 1}."),
                )
            )
            continue
        yield replace(mark, start=clock[int(mark.start)], end=clock[min(int(mark.end), len(clock) - 1)])
    if overruled:
        said = ", ".join(f"{rate:g}" for rate in overruled)
        found.notes.append(
            f"some videos are counted at {said} frames a second, as the export says: --fps is for the others"
        )


def _clock(path: Path | None, export: Export) -> Sequence[float] | None:
    """When each frame of a video begins, and when its last one ends, since the first; None where that says nothing."""
    if path is None or not export.counts_own_frames:
        return None
    try:
        with VideoReader(path) as video:
            starts: list[float] = (video.pts_seconds - video.pts_seconds[0]).tolist()
            return [*starts, video.duration_seconds]
    except VideoError as error:
        raise ConfigError(f"{error} Its clock is needed for frame numbers: give --fps.") from None


def _rows(
    file: Path, mark: Mark, kind: str, options: ConvertOptions, video_paths: _VideoPaths, found: _Found
) -> Iterator[ConvertedRow]:
    """The row of a mark; none where it is left out."""
    if not _is_kept(mark, options.where):
        found.left_out["where"] += 1
        return
    label = _label(mark, kind, options)
    start, end = mark.start, mark.end
    if end == start:
        if not options.least_seconds:
            found.left_out["point"] += 1
            found.unsure.add(mark.video)
            return
        end = start + options.least_seconds
    if not label or end < start or end <= 0:
        found.unsure.add(mark.video)
    if not label:
        found.problems.append((file, RowProblem(mark.line, f"{mark.video}: no label from {start:g} to {end:g} s.")))
    elif end < start or end <= 0:
        found.problems.append(
            (file, RowProblem(mark.line, f"{mark.video}: {label!r} ends at {end:g} s and starts at {start:g} s."))
        )
    else:
        yield ConvertedRow(path=video_paths.path(mark.video), start=max(start, 0.0), end=end, label=label)


def _is_kept(mark: Mark, where: Sequence[str]) -> bool:
    wanted: dict[str, set[str]] = {}
    for text in where:
        name, sign, value = text.partition("=")
        if not sign:
            raise ConfigError(f"--where takes FIELD=VALUE, such as tier=event, got {text!r}.")
        wanted.setdefault(name.strip(), set()).add(value.strip())
    return all(mark.fields.get(name, "") in values for name, values in wanted.items())


def _label(mark: Mark, kind: str, options: ConvertOptions) -> str:
    known = FORMATS[kind]
    names = _fields(options.label)
    texts = [mark.fields.get(name, "") for name in names or known.fields[:1]]
    if not names:
        attributes = [text for name, text in mark.fields.items() if name.startswith(_ATTRIBUTE)]
        texts = texts if any(texts) else [mark.fields.get(known.instead, ""), *attributes]
    return " ".join(" ".join(texts).split())


def _counts(found: _Found) -> Iterator[str]:
    if found.left_out["where"]:
        yield f"{found.left_out['where']} marks are left out by --where"
    if found.left_out["point"]:
        yield f"{found.left_out['point']} events without a length are left out; --point SECONDS gives them one"


def _overlaps(rows: Sequence[ConvertedRow]) -> Iterator[str]:
    count = 0
    ends: dict[Path, float] = {}
    for row in rows:
        if row.start is None or row.end is None:
            continue
        count += row.start < ends.get(row.path, 0.0) - 0.01
        ends[row.path] = max(row.end, ends.get(row.path, 0.0))
    if count:
        yield f"{count} intervals overlap others: train with data.overlaps = true, or keep some with --where"


def row_path(path: Path, output: Path) -> str:
    """How a list calls a video: relative to the list's folder where it lies there or nearby, or else in full.

    Example:
        >>> row_path(Path("/data/clips/a.mp4"), Path("/data/labels.csv"))
        'clips/a.mp4'
    """
    if not path.is_absolute() and len(path.parts) == 1 and not path.exists():
        return path.as_posix()
    full, folder = os.path.abspath(path), os.path.abspath(output.parent)
    inside = full.startswith(folder.rstrip(os.sep) + os.sep)
    return Path(os.path.relpath(full, folder) if inside else full).as_posix()
