import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from kinescan.data.class_numbers import lookalikes, number_labels
from kinescan.data.groups import column_of, make_grouping
from kinescan.data.readers import (
    LabelSource,
    Listing,
    read_breakfast,
    read_folder,
    read_hmdb51,
    read_kinetics,
    read_list,
    read_ssv2,
    read_ucf101,
)
from kinescan.data.readers.class_folders import LIST_SUFFIXES, find_parts
from kinescan.data.readers.files import is_video
from kinescan.data.readers.lists import list_held_out_name
from kinescan.data.readers.remote_folders import read_remote_folder
from kinescan.data.readers.shards import read_shards, shard_parts
from kinescan.data.readers.source import Part
from kinescan.data.shards.index import find_index
from kinescan.errors import ConfigError
from kinescan.runtime.addresses import address_of, as_path, is_remote
from kinescan.runtime.urls import refuse_url
from kinescan.settings import closest

__all__ = ["DATASETS", "Layout", "VideoItem", "VideoList", "choose_layout", "list_videos", "read_items"]

logger = logging.getLogger(__name__)

EXPORT_SUFFIXES = (".json", ".eaf", ".xml", ".zip", ".boris")
"""Suffixes of files that annotation tools write; they are not lists of videos."""


@dataclass(frozen=True)
class VideoItem:
    """A labelled video.

    Attributes:
        path: the file.
        label: index of the class.
        video_id: what names the video wherever its folder lies; augmentation and splits depend on it.
        group: what must not stand on both sides of a split, such as a person; empty: the video alone.
    """

    path: Path
    label: int
    video_id: str
    group: str = ""


@dataclass(frozen=True)
class VideoList:
    """What there is to read of one side of a data set.

    Attributes:
        items: the videos, each once.
        classes: label texts in the order of their numbers.
        missing: ids that the annotations list and no file was found for. They are among `items` unless the layout
            leaves them out, as Kinetics does.
        repeated: ids that are listed more than once, with the same label.
        empty: folders without a video; they are not classes.
        unused: classes without a video.
        notes: what else a user should know, such as the lines of missing videos.
    """

    items: list[VideoItem]
    classes: tuple[str, ...]
    missing: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"VideoList({len(self.items)} videos, {len(self.classes)} classes, {len(self.missing)} missing)"


@dataclass(frozen=True)
class Layout:
    """How a data set is laid out.

    Attributes:
        read: gives its listing.
        summary: one line on what it is.
        has_parts: it comes in training and test parts.
        num_splits: divisions into these parts.
        test_name: what the test part is called.
    """

    read: Callable[[LabelSource], Listing]
    summary: str
    has_parts: bool = True
    num_splits: int = 1
    test_name: str = "test"


def read_items(
    source: str | Path,
    *,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    reader: str = "auto",
    part: Part = "train",
    split: int = 1,
    group: str = "",
) -> tuple[list[VideoItem], tuple[str, ...]]:
    r"""The labelled videos of a folder, a list or a published data set.

    A folder holds one folder per class; video files may lie deeper in it; hidden files and other files are ignored. A
    folder of parts (train and test, or val: folders of classes, or train.csv beside test.csv) is read as what it is:
    `part` is taken.
    A list is a text file of path and label, separated by commas, tabs or blanks ("path label"), with or without a
    header; labels are texts or class numbers. Published data sets are found by the names of their files (see
    `DATASETS`). Whether the files can be read shows when they are read; what is missing or listed twice is logged.

    Args:
        source: the folder, or the list.
        root: folder that paths in a list are relative to, by default the list's own; or that of a published data set's
            videos, by default anywhere below `source`.
        classes: label texts in the order of their numbers, such as those of the training data; by default the data
            set's own order, or else the folder names or label texts in alphabetical order.
        reader: name of the layout in `DATASETS`; "auto" tells a folder from a list.
        part: "train" or "test", of layouts that have both.
        split: which of the published divisions, from 1.
        group: what must stay on one side of a split: see `kinescan.data.groups`.

    Returns:
        The videos (in the order of the list; by class and path for a folder) and the classes. Numbered labels
        without `classes` give the classes "0", "1", ....

    Raises:
        ConfigError: there is nothing at `source`, it holds no labelled video, a line cannot be understood, a video has
            two labels, a label is not among `classes`, or the label reader or split is unknown.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "list.csv"
        ...     _ = file.write_text("a.mp4,jump\nb.mp4,fall\n")
        ...     items, classes = read_items(file)
        >>> classes, [item.label for item in items]
        (('fall', 'jump'), [1, 0])
    """
    found = list_videos(source, root=root, classes=classes, reader=reader, part=part, split=split, group=group)
    if found.empty:
        logger.warning("%s: no video in %s; taken for no class", source, ", ".join(found.empty))
    if found.unused:
        logger.warning(
            "%s: %d of the %d classes have no video in the %s part: %s%s",
            *(source, len(found.unused), len(found.classes), part),
            *(", ".join(map(repr, found.unused[:10])), ", ..." if len(found.unused) > 10 else ""),
        )
    for note in found.notes:
        logger.warning("%s: %s", source, note)
    if found.repeated:
        logger.warning(
            "%s lists %d videos more than once, such as %s; each is taken once",
            *(source, len(found.repeated), found.repeated[0]),
        )
    if found.missing:
        kept = any(item.video_id == found.missing[0] for item in found.items)
        logger.warning(
            "%s, %s part: %d of the listed videos are missing, such as %s; %s",
            *(source, part, len(found.missing), found.missing[0]),
            "they will be listed as unreadable" if kept else f"{len(found.items)} are there",
        )
    return found.items, found.classes


def list_videos(
    source: str | Path,
    *,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    reader: str = "auto",
    part: Part = "train",
    split: int = 1,
    group: str = "",
) -> VideoList:
    """As `read_items`, with what is missing and what is listed twice; nothing is logged.

    Raises:
        ConfigError: as for `read_items`.
    """
    source = as_path(source)
    if root and not is_remote(root):
        refuse_url(root, "Name the folder of the videos, or an address.")
    layout = choose_layout(source, reader)
    if not 1 <= split <= layout.num_splits:
        raise ConfigError(f"data.split must lie in [1, {layout.num_splits}] for this data set, got {split}.")
    grouping = make_grouping(group)
    listing = layout.read(
        LabelSource(path=source, root=as_path(root) if root else None, part=part, split=split, group=group)
    )
    given = listing.classes if classes is None else tuple(classes)
    is_list = any(video.line for video in listing.videos)
    if column_of(group) and not is_list:
        raise ConfigError(f"group {group!r} names a column, but {source} is not a list. Write a pattern over paths.")
    numbered = number_labels(listing.videos, given, source=source, is_list=is_list)
    items: dict[str, VideoItem] = {}
    lines: dict[str, int] = {}
    repeated = []
    for video in listing.videos:
        # The same file may be listed by two spellings of its path.
        file = os.path.normpath(video.path)
        item = VideoItem(
            video.path, numbered.index_of[video.label], video.video_id, grouping(video.video_id) or video.group
        )
        first = items.setdefault(file, item)
        if first.label != item.label:
            where = f" (lines {lines[file]} and {video.line})" if video.line else ""
            raise ConfigError(
                f"{source}: {item.video_id} has two labels, {numbered.classes[first.label]!r} and "
                f"{numbered.classes[item.label]!r}{where}. Leave one of the lines out."
            )
        if first is not item:
            repeated.append(item.video_id)
        lines.setdefault(file, video.line)
    used = {item.label for item in items.values()}
    return VideoList(
        list(items.values()),
        numbered.classes,
        listing.missing,
        tuple(dict.fromkeys(repeated)),
        listing.empty,
        unused=tuple(name for index, name in enumerate(numbered.classes) if index not in used),
        notes=(*listing.notes, *_notes(listing, numbered.classes, used, is_list=is_list and given is None)),
    )


def _notes(listing: Listing, classes: tuple[str, ...], used: set[int], *, is_list: bool) -> Iterator[str]:
    """What a user should know about the classes and the missing videos of a listing."""
    for first, second in lookalikes(classes)[:5]:
        yield f"classes {first!r} and {second!r} differ only in case, blanks or the form of letters"
    if is_list and 0 not in used and classes[0] == "0":
        yield "no video has the label 0: class numbers start from 0, so the first output of a model will stay unused"
    lines = {video.video_id: video.line for video in listing.videos if video.line}
    missing = [lines[video_id] for video_id in listing.missing if video_id in lines]
    if missing and len(missing) == len(listing.videos):
        video = listing.videos[0]
        yield f"not one of the listed videos is there; that of line {video.line} was looked for at {video.path}"
    elif missing:
        shown = ", ".join(map(str, missing[:10]))
        yield f"videos of lines {shown}{', ...' if len(missing) > 10 else ''} are not there"


def choose_layout(source: str | Path, reader: str = "auto") -> Layout:
    """The layout that a label reader's name means for a label source.

    Raises:
        ConfigError: the label reader is unknown, nothing is at `source`, or a file where the layout is a folder.
    """
    if reader != "auto" and reader not in DATASETS:
        raise ConfigError(f"unknown label reader {reader!r}. {closest(reader, ['auto', *DATASETS])}")
    source = as_path(source)
    if reader in ("auto", "shards") and find_index(source) is not None:
        return _with_parts(DATASETS["shards"], "test" if len(shard_parts(source)) > 1 else None)
    if is_remote(source):
        return _remote_layout(source, reader)
    if source.is_dir() and reader in ("auto", "folder"):
        parts = find_parts(source)
        both = parts is not None and parts.train is not None and parts.held_out is not None
        return _with_parts(DATASETS["folder"], parts.held_out if parts is not None and both else None)
    if source.is_dir() and reader != "list":
        return DATASETS[reader]
    if source.is_file() and is_video(source.name):
        raise ConfigError(f"{source} is a video. Name a folder with one folder of videos per class, or a csv.")
    if source.is_file() and reader == "auto" and source.suffix.lower() in EXPORT_SUFFIXES:
        raise ConfigError(
            f"{source} is not a list of videos. If an annotation tool exported it, write it as one: "
            f"kinescan data convert {source.name} labels.csv."
        )
    if source.is_file() and reader in ("auto", "list"):
        return _with_parts(DATASETS["list"], list_held_out_name(source))
    if reader in ("auto", "list"):
        refuse_url(source, "Name a folder with one folder of videos per class, or a csv.")
        here = "" if source.is_absolute() else f" in {Path.cwd()}"
        raise ConfigError(
            f"{source} does not exist{here}. Name a folder with one folder of videos per class, or a csv."
        )
    raise ConfigError(f"{source} is not a folder. Name the folder of the data set for data.reader = {reader!r}.")


def _remote_layout(source: Path, reader: str) -> Layout:
    """Of an address: a list, or an object store's folder with a folder for each class.

    Raises:
        ConfigError: it is neither.
    """
    if source.suffix.lower() in LIST_SUFFIXES and reader in ("auto", "list"):
        return _with_parts(DATASETS["list"], list_held_out_name(source))
    if not source.suffix and reader in ("auto", "folder"):
        return replace(DATASETS["folder"], read=read_remote_folder)
    raise ConfigError(
        f"{address_of(source)} is read as a csv of path,label, as a folder of shards (kinescan data pack), or as a "
        "folder with one folder of videos per class in an object store. Name one of these."
    )


def _with_parts(layout: Layout, held_out: str | None) -> Layout:
    return layout if held_out is None else replace(layout, has_parts=True, test_name=held_out)


DATASETS: dict[str, Layout] = {
    "folder": Layout(read_folder, "one folder of videos per class", has_parts=False),
    "list": Layout(read_list, "a csv of path,label", has_parts=False),
    "ssv2": Layout(read_ssv2, "Something-Something V2: labels.json, train.json, validation.json, ID.webm"),
    "kinetics400": Layout(
        partial(read_kinetics, num_classes=400), "Kinetics-400: train.csv, val.csv, ID_START_END.mp4"
    ),
    "kinetics600": Layout(partial(read_kinetics, num_classes=600), "Kinetics-600, laid out alike"),
    "kinetics700": Layout(partial(read_kinetics, num_classes=700), "Kinetics-700, laid out alike"),
    "ucf101": Layout(read_ucf101, "UCF-101: classInd.txt, trainlist01.txt, testlist01.txt; 3 splits", num_splits=3),
    "hmdb51": Layout(read_hmdb51, "HMDB-51: CLASS_test_split1.txt; 3 splits", num_splits=3),
    "shards": Layout(read_shards, "shards that kinescan data pack writes: shards.json beside tars", has_parts=False),
    "breakfast": Layout(read_breakfast, "Breakfast: P03/cam01/P03_cereals.avi; 5 splits by person", num_splits=5),
}
"""Layouts that are understood, by the name that `data.reader` takes."""
