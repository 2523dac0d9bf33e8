"""What is wrong with the files of a data set: found out by looking at every one; nothing is changed or deleted."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kinescan.data.file_workers import CRASH, each_file
from kinescan.data.interval_summary import IntervalSummary, summarise
from kinescan.data.intervals import IntervalTable, IntervalVideo
from kinescan.data.listing import VideoItem, VideoList
from kinescan.data.readers.files import is_hidden, is_video
from kinescan.data.video import Inspection, Limits, inspect_video
from kinescan.runtime.addresses import shown_path
from kinescan.runtime.escaping import escape_terminal

PROBLEMS = ("missing", "unreadable", "short")
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class CheckedVideo:
    """A video and what was found in it.

    Attributes:
        part: which side of the data set.
        video_id: its id there.
        label: text of its class; of intervals, of all classes in it.
        file: what its file holds, or what is wrong with it.
        classes: of intervals, the classes in it; None where there is one, the label.
        group: see `VideoItem`.
    """

    part: str
    video_id: str
    label: str
    file: Inspection
    classes: frozenset[str] | None = None
    group: str = ""

    @property
    def labels(self) -> frozenset[str]:
        """The classes in it."""
        return frozenset({self.label}) if self.classes is None else self.classes

    def to_json(self) -> dict[str, str]:
        """Where it is and what is wrong, as plain values."""
        named = {"part": self.part, "id": self.video_id, "path": shown_path(self.file.path), "label": self.label}
        return named | ({"reason": self.file.reason} if self.file.problem else {})


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """What was found in a data set.

    Attributes:
        videos: every one, with what its file holds.
        classes: label texts.
        gone: part -> ids that are listed, not there and left out, which is normal (Kinetics).
        repeated: part -> ids that are listed more than once.
        empty: part -> class folders without a video.
        same_ids: whether equal ids mean the same video in all parts, as in published data sets.
        decoded: every frame was decoded; otherwise damage inside of files does not show.
        intervals: part -> what the labels say, where they have a start and an end.
        unlisted: videos beside those that are listed, which have no labels and are not used.
    """

    videos: tuple[CheckedVideo, ...]
    classes: tuple[str, ...]
    gone: Mapping[str, tuple[str, ...]]
    repeated: Mapping[str, tuple[str, ...]]
    empty: Mapping[str, tuple[str, ...]]
    same_ids: bool
    decoded: bool
    intervals: Mapping[str, IntervalSummary] = field(default_factory=dict)
    unlisted: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Sides that were checked."""
        return tuple(self.gone)

    def with_problem(self, problem: str) -> list[CheckedVideo]:
        """Videos that are "missing", "unreadable" or "short"."""
        return [video for video in self.videos if video.file.problem == problem]

    def duplicates(self) -> list[list[CheckedVideo]]:
        """Groups of videos of one part that show the same pictures in several files."""
        return [group for group in self._same_content() if len({video.part for video in group}) == 1]

    def overlap(self) -> list[list[CheckedVideo]]:
        """Groups of videos that lie on both sides: by their pictures or, where ids are comparable, by their id."""
        groups = [group for group in self._same_content() if len({video.part for video in group}) > 1]
        known = {(video.part, video.video_id) for group in groups for video in group}
        by_name: dict[str, list[CheckedVideo]] = {}
        for video in self.videos:
            if (video.part, video.video_id) not in known:
                name = video.video_id if self.same_ids else str(Path(video.file.path).resolve())
                by_name.setdefault(name, []).append(video)
        return groups + [group for group in by_name.values() if len({video.part for video in group}) > 1]

    def without_videos(self) -> dict[str, list[str]]:
        """Part -> classes, and folders that would be classes, of which no file can be read."""
        found = {}
        for part in self.parts:
            readable = [video for video in self.videos if video.part == part and video.file.problem is None]
            sound = {label for video in readable for label in video.labels}
            found[part] = [label for label in self.classes if label not in sound] + list(self.empty[part])
        return found

    def shared_groups(self) -> list[str]:
        """Groups with videos in several parts."""
        parts: dict[str, set[str]] = {}
        for video in self.videos:
            if video.group:
                parts.setdefault(video.group, set()).add(video.part)
        return sorted(group for group, found in parts.items() if len(found) > 1)

    def is_sound(self) -> bool:
        """Nothing was found but what is normal."""
        findings = (
            any(video.file.problem for video in self.videos),
            any(self.repeated.values()),
            any(self.without_videos().values()),
            self.duplicates(),
            self.overlap(),
            self.shared_groups(),
            any(found.problems for found in self.intervals.values()),
        )
        return not any(findings)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "sound": self.is_sound(),
            "decoded": self.decoded,
            "parts": {part: self._count(part) for part in self.parts},
            **{problem: [video.to_json() for video in self.with_problem(problem)] for problem in PROBLEMS},
            "notes": [video.to_json() | {"notes": list(video.file.notes)} for video in self.videos if video.file.notes],
            "gone": {part: list(ids) for part, ids in self.gone.items()},
            "listed_twice": {part: list(ids) for part, ids in self.repeated.items()},
            "classes_without_videos": self.without_videos(),
            "duplicates": [[video.to_json() for video in group] for group in self.duplicates()],
            "train_and_test": [[video.to_json() for video in group] for group in self.overlap()],
            "groups_in_train_and_test": self.shared_groups(),
            "without_labels": list(self.unlisted),
            **self._intervals_to_json(),
        }

    def _intervals_to_json(self) -> dict[str, Any]:
        return (
            {"intervals": {part: found.to_json() for part, found in self.intervals.items()}} if self.intervals else {}
        )

    def to_text(self) -> str:
        """A page to read: counts, then what was found: all wrong rows, and at most ten of each other kind."""
        lines = []
        for part in self.parts:
            counts = self._count(part)
            sound = f"{counts['readable']:,} of {counts['videos']:,} videos are sound"
            lines.append(f"{part}: {sound}, {counts['classes']} classes, {counts['hours']:.2f} h")
            if counts.get("groups"):
                lines.append(f"  {counts['groups']} groups, the largest of {counts['largest_group']} videos")
            if part in self.intervals:
                seconds = sum(video.file.seconds for video in self.videos if video.part == part)
                lines += self.intervals[part].lines(seconds)
            if self.gone[part]:
                lines.append(
                    f"  {len(self.gone[part]):,} more are listed and gone; they are left out, as is usual here"
                )
        for part, found in self.intervals.items():
            lines += _section(f"wrong rows of {part}", list(map(str, found.problems)), most=None)
            lines += _section(f"worth knowing of {part}", list(found.notes))
        for problem in PROBLEMS:
            lines += _section(
                problem, [f"{shown_path(video.file.path)}: {video.file.reason}" for video in self.with_problem(problem)]
            )
        for part in self.parts:
            lines += _section(f"listed more than once in {part}", list(self.repeated[part]))
            lines += _section(f"classes of {part} without a readable video", self.without_videos()[part])
        lines += _section(
            "worth knowing, and no fault",
            [f"{shown_path(video.file.path)}: {note}" for video in self.videos for note in video.file.notes],
        )
        lines += _section("videos without labels beside the others, which are not used", list(self.unlisted))
        lines += _section("the same pictures in several files", list(map(_named, self.duplicates())))
        lines += _section("in training and in test", list(map(_named, self.overlap())))
        lines += _section("groups in training and in test", self.shared_groups())
        if not self.decoded:
            lines.append("frames were not decoded: damage inside of files does not show")
        lines.append("sound: nothing was found" if self.is_sound() else "nothing was changed or deleted")
        return "\n".join(lines)

    def _count(self, part: str) -> dict[str, Any]:
        videos = [video for video in self.videos if video.part == part]
        problems = Counter(str(video.file.problem) for video in videos)
        return {
            "videos": len(videos),
            "readable": problems["None"],
            **{problem: problems[problem] for problem in PROBLEMS},
            "gone": len(self.gone[part]),
            "classes": len({label for video in videos for label in video.labels}),
            **self._groups(videos),
            "frames": sum(video.file.num_frames for video in videos),
            "hours": round(sum(video.file.seconds for video in videos) / 3600, 4),
        }

    def _groups(self, videos: list[CheckedVideo]) -> dict[str, int]:
        sizes = Counter(video.group for video in videos if video.group)
        return {"groups": len(sizes), "largest_group": max(sizes.values())} if sizes else {}

    def _same_content(self) -> list[list[CheckedVideo]]:
        groups: dict[str, list[CheckedVideo]] = {}
        for video in self.videos:
            if video.file.content:
                groups.setdefault(video.file.content, []).append(video)
        return [group for group in groups.values() if len(group) > 1]


def check_videos(
    parts: Mapping[str, VideoList | IntervalTable],
    *,
    same_ids: bool = False,
    num_workers: int = 0,
    decode: bool = True,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DataCheck:
    """Looks at every file of a data set.

    Args:
        parts: its sides, as `list_videos` or `read_intervals` gives them.
        same_ids: whether equal ids mean the same video in all parts.
        num_workers: processes that read files; 0 reads in this one.
        decode: decode every frame (see `inspect_video`).
        limits: what one file may take; beyond it, it counts as unreadable.
        progress: is called with how many files are done, of how many.

    Returns:
        What was found; broken files raise nothing.

    Example:
        >>> import tempfile, torch
        >>> from kinescan.data import list_videos, write_video
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/run/a.mp4", torch.zeros(8, 3, 24, 32, dtype=torch.uint8), fps=8)
        ...     _ = Path(folder, "run", "b.mp4").write_bytes(Path(folder, "run", "a.mp4").read_bytes())
        ...     found = check_videos({"train": list_videos(folder)})
        >>> found.is_sound(), [[video.video_id for video in group] for group in found.duplicates()]
        (False, [['run/a.mp4', 'run/b.mp4']])
    """
    listed = [(part, item) for part, videos in parts.items() for item in _items(videos)]
    paths = list(dict.fromkeys(str(item.path) for _, item in listed))
    found: dict[str, Inspection] = {}
    inspect = partial(inspect_video, decode=decode, limits=limits)
    with closing(each_file(paths, inspect, num_workers=num_workers, crashed=_crashed)) as inspections:
        for inspection in inspections:
            found[inspection.path] = inspection
            if progress is not None:
                progress(len(found), len(paths))
    first = next(iter(parts.values()))
    return DataCheck(
        videos=tuple(_checked(part, item, first.classes, found[str(item.path)]) for part, item in listed),
        classes=first.classes,
        gone={part: _gone(videos.missing, _items(videos)) for part, videos in parts.items()},
        repeated={part: videos.repeated if isinstance(videos, VideoList) else () for part, videos in parts.items()},
        empty={part: videos.empty if isinstance(videos, VideoList) else () for part, videos in parts.items()},
        same_ids=same_ids,
        decoded=decode,
        intervals={part: summarise(videos) for part, videos in parts.items() if isinstance(videos, IntervalTable)},
        unlisted=tuple(_unlisted([video for table in parts.values() for video in _listed(table)])),
    )


def _listed(videos: VideoList | IntervalTable) -> Sequence[IntervalVideo]:
    """Videos that a list of intervals names; of annotations of published data sets, none."""
    return [video for video in videos.videos if video.line] if isinstance(videos, IntervalTable) else []


def _unlisted(listed: Sequence[IntervalVideo]) -> Iterator[str]:
    """Videos in the folders of those that a list names."""
    known = {os.path.normpath(video.path) for video in listed}
    for folder in sorted({os.path.dirname(path) for path in known}):
        try:
            names = sorted(os.listdir(folder or "."))
        except OSError:
            continue
        paths = (os.path.join(folder, name) for name in names if is_video(name) and not is_hidden(name))
        yield from (path for path in paths if path not in known and os.path.isfile(path))


def _items(videos: VideoList | IntervalTable) -> Sequence[VideoItem] | Sequence[IntervalVideo]:
    return videos.items if isinstance(videos, VideoList) else videos.videos


def _checked(part: str, item: VideoItem | IntervalVideo, classes: Sequence[str], file: Inspection) -> CheckedVideo:
    if isinstance(item, VideoItem):
        label, labels = classes[item.label], None
    else:
        label, labels = ", ".join(sorted(item.labels)), item.labels
    return CheckedVideo(part=part, video_id=item.video_id, label=label, file=file, classes=labels, group=item.group)


def _gone(missing: Iterable[str], items: Iterable[VideoItem | IntervalVideo]) -> tuple[str, ...]:
    """Missing ids that are left out of the items; the others are found missing file by file."""
    kept = {item.video_id for item in items}
    return tuple(video_id for video_id in missing if video_id not in kept)


def _crashed(path: str) -> Inspection:
    return Inspection(path=path, problem="unreadable", reason=CRASH)


def _section(title: str, rows: list[str], *, most: int | None = _SHOWN) -> list[str]:
    if not rows:
        return []
    shown = rows[:most]
    more = [f"  ... and {len(rows) - len(shown):,} more"] if len(rows) > len(shown) else []
    return [f"{title} ({len(rows):,}):", *(f"  {escape_terminal(row)}" for row in shown), *more]


def _named(group: list[CheckedVideo]) -> str:
    labels = {video.label or "nothing" for video in group}
    differ = "" if len(labels) == 1 else f"  (labels differ: {', '.join(sorted(labels))})"
    return " = ".join(shown_path(video.file.path) for video in group) + differ
