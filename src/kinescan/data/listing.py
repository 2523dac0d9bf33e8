import csv
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kinescan.data.readers import (
    LabelledVideo,
    Listing,
    Source,
    read_breakfast,
    read_hmdb51,
    read_kinetics,
    read_ssv2,
    read_ucf101,
)
from kinescan.data.readers.files import VIDEO_SUFFIXES, find_videos, is_hidden, is_video, read_text
from kinescan.data.readers.source import Part
from kinescan.errors import ConfigError
from kinescan.settings import closest

__all__ = [
    "DATASETS",
    "VIDEO_SUFFIXES",
    "Layout",
    "Part",
    "VideoItem",
    "VideoList",
    "choose_layout",
    "find_videos",
    "list_videos",
    "read_items",
]

logger = logging.getLogger(__name__)

_SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_PATH_COLUMNS = ("path", "video", "file", "filename", "video_path", "file_path", "filepath", "video_name", "name")
_LABEL_COLUMNS = ("label", "class", "label_name", "class_name", "category", "action", "target", "label_id", "class_id")


@dataclass(frozen=True)
class VideoItem:
    """A labelled video.

    Attributes:
        path: the file.
        label: index of the class.
        video_id: what names the video wherever its folder lies; draws and splits depend on it.
    """

    path: Path
    label: int
    video_id: str


@dataclass(frozen=True)
class VideoList:
    """What there is to read of one side of a data set.

    Attributes:
        items: the videos, each once.
        classes: label texts in the order of their numbers.
        missing: ids that the annotations list and no file was found for. They are among `items` unless the layout
            leaves them out, as Kinetics does.
        repeated: ids that are listed more than once, with the same label.
        empty: folders without a video; they are no classes.
    """

    items: list[VideoItem]
    classes: tuple[str, ...]
    missing: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"VideoList({len(self.items)} videos, {len(self.classes)} classes, {len(self.missing)} missing)"


@dataclass(frozen=True)
class Layout:
    """How a data set is laid out.

    Attributes:
        read: gives its listing.
        summary: one line on what it is.
        has_parts: it is published in training and test parts.
        num_splits: divisions into these parts.
    """

    read: Callable[[Source], Listing]
    summary: str
    has_parts: bool = True
    num_splits: int = 1


def read_items(
    source: str | Path,
    *,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    reader: str = "auto",
    part: Part = "train",
    split: int = 1,
) -> tuple[list[VideoItem], tuple[str, ...]]:
    r"""The labelled videos of a folder, a list or a published data set.

    A folder holds one folder per class; video files may lie deeper in it; hidden files and other files are ignored.
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

    Returns:
        The videos (in the order of the list; by class and path for a folder) and the classes. Numbered labels
        without `classes` give the classes "0", "1", ....

    Raises:
        ConfigError: there is nothing at `source`, it holds no labelled video, a line cannot be understood, a video has
            two labels, a label is not among `classes`, or there is no such reader or split.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "list.csv"
        ...     _ = file.write_text("a.mp4,jump\nb.mp4,fall\n")
        ...     items, classes = read_items(file)
        >>> classes, [item.label for item in items]
        (('fall', 'jump'), [1, 0])
    """
    found = list_videos(source, root=root, classes=classes, reader=reader, part=part, split=split)
    if found.empty:
        logger.warning("%s: no video in %s; taken for no class", source, ", ".join(found.empty))
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
) -> VideoList:
    """As `read_items`, with what is missing and what is listed twice; nothing is logged.

    Raises:
        ConfigError: as for `read_items`.
    """
    source = Path(source)
    layout = choose_layout(source, reader)
    if not 1 <= split <= layout.num_splits:
        raise ConfigError(f"data.split must lie in [1, {layout.num_splits}] for this data set, got {split}.")
    listing = layout.read(Source(path=source, root=Path(root) if root else None, part=part, split=split))
    texts = {video.label for video in listing.videos}
    numbered = source.is_file() and all(text.isdecimal() for text in texts)
    if classes is None:
        classes = listing.classes
    if classes is None:
        classes = [str(number) for number in range(max(map(int, texts)) + 1)] if numbered else sorted(texts)
    numbers = _class_numbers(source, texts, tuple(classes), numbered=numbered)
    items: dict[str, VideoItem] = {}
    repeated = []
    for video in listing.videos:
        item = VideoItem(video.path, numbers[video.label], video.video_id)
        first = items.setdefault(item.video_id, item)
        if first.label != item.label:
            raise ConfigError(
                f"{source}: {item.video_id} has two labels, {classes[first.label]!r} and {classes[item.label]!r}. "
                "Leave one of the lines out."
            )
        if first is not item:
            repeated.append(item.video_id)
    return VideoList(
        list(items.values()), tuple(classes), listing.missing, tuple(dict.fromkeys(repeated)), listing.empty
    )


def choose_layout(source: str | Path, reader: str = "auto") -> Layout:
    """The layout that a reader's name means for a source.

    Raises:
        ConfigError: there is no such reader, nothing at `source`, or a file where the layout is a folder.
    """
    source = Path(source)
    if reader != "auto" and reader not in DATASETS:
        raise ConfigError(f"there is no reader {reader!r}. {closest(reader, ['auto', *DATASETS])}")
    if source.is_dir() and reader != "list":
        return DATASETS["folder" if reader == "auto" else reader]
    if source.is_file() and reader in ("auto", "list"):
        return DATASETS["list"]
    if reader in ("auto", "list"):
        raise ConfigError(f"{source} does not exist. Name a folder with one folder of videos per class, or a csv.")
    raise ConfigError(f"{source} is no folder. Name the folder of the data set for data.reader = {reader!r}.")


def _read_folder(source: Source) -> Listing:
    """Videos in class folders."""
    folder = source.path
    names = sorted(child.name for child in folder.iterdir() if child.is_dir() and not is_hidden(child.name))
    found = {name: find_videos(folder / name) for name in names}
    filled = {name: videos for name, videos in found.items() if videos}
    if not filled:
        loose = sum(is_video(child.name) for child in folder.iterdir())
        holds = f"{loose} videos that lie in no class folder" if loose else "no video in a class folder"
        raise ConfigError(
            f"{folder} holds {holds}. Put the videos of each class into a folder of its name, or list them in a csv "
            "of path,label."
        )
    if set(filled) <= _SPLIT_NAMES and all(_has_folders(folder / name) for name in filled):
        raise ConfigError(
            f"{folder} holds the splits {', '.join(sorted(filled))}, not classes. Name one of them, such as "
            f"{folder / sorted(filled)[0]}."
        )
    return Listing(
        [
            LabelledVideo(path, path.relative_to(folder).as_posix(), name)
            for name, videos in filled.items()
            for path in videos
        ],
        empty=tuple(sorted(set(found) - set(filled))),
    )


def _read_list(source: Source) -> Listing:
    """Videos that a text file lists."""
    file, root = source.path, source.root or source.path.parent
    lines = read_text(file).splitlines()
    rows = [(number, row) for number, row in _split_lines(lines) if row]
    path_column, label_column = 0, 1
    header = [cell.lower() for cell in rows[0][1]] if rows else []
    known = [
        next((header.index(name) for name in names if name in header), -1) for names in (_PATH_COLUMNS, _LABEL_COLUMNS)
    ]
    if min(known) >= 0 and known[0] != known[1]:
        path_column, label_column = known
        rows = rows[1:]
    if not rows:
        raise ConfigError(f"{file} lists no video. Write one line of path,label for each.")
    labelled = []
    for number, row in rows:
        if len(row) <= max(path_column, label_column) or not row[path_column] or not row[label_column]:
            raise ConfigError(f"{file}, line {number}: expected path and label, got {','.join(row)!r}.")
        path = row[path_column]
        labelled.append(LabelledVideo(root / path, Path(path).as_posix(), row[label_column]))
    return Listing(labelled)


def _split_lines(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Line numbers with the cells of each line; the first line that is not empty tells what separates them."""
    first = next((line for line in lines if line.strip()), "")
    separator = next((sign for sign in (",", "\t", ";") if sign in first), None)
    if separator is None:
        # "path label": the path may hold blanks
        for number, line in enumerate(lines, 1):
            yield number, line.strip().rsplit(None, 1)
        return
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    for row in reader:
        cells = [cell.strip() for cell in row]
        yield reader.line_num, cells if any(cells) else []


def _class_numbers(source: Path, texts: set[str], classes: tuple[str, ...], *, numbered: bool) -> dict[str, int]:
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise ConfigError(f"class {twice!r} is given twice. Class names must differ.")
    places = {name: place for place, name in enumerate(classes)}
    if numbered and not texts <= set(classes):
        places = {str(place): place for place in range(len(classes))}
        places.update({text: int(text) for text in texts if int(text) < len(classes)})
    unknown = sorted(texts - set(places))
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        hint = f"Allowed: 0 to {len(classes) - 1}." if numbered else closest(unknown[0], classes)
        raise ConfigError(f"{source}: label {unknown[0]!r}{more} is none of the {len(classes)} classes. {hint}")
    return {text: places[text] for text in texts}


def _has_folders(folder: Path) -> bool:
    return any(child.is_dir() for child in folder.iterdir())


DATASETS: dict[str, Layout] = {
    "folder": Layout(_read_folder, "one folder of videos per class", has_parts=False),
    "list": Layout(_read_list, "a csv of path,label", has_parts=False),
    "ssv2": Layout(read_ssv2, "Something-Something V2: labels.json, train.json, validation.json, ID.webm"),
    "kinetics400": Layout(
        partial(read_kinetics, num_classes=400), "Kinetics-400: train.csv, val.csv, ID_START_END.mp4"
    ),
    "kinetics600": Layout(partial(read_kinetics, num_classes=600), "Kinetics-600, laid out alike"),
    "kinetics700": Layout(partial(read_kinetics, num_classes=700), "Kinetics-700, laid out alike"),
    "ucf101": Layout(read_ucf101, "UCF-101: classInd.txt, trainlist01.txt, testlist01.txt; 3 splits", num_splits=3),
    "hmdb51": Layout(read_hmdb51, "HMDB-51: CLASS_test_split1.txt; 3 splits", num_splits=3),
    "breakfast": Layout(read_breakfast, "Breakfast: P03/cam01/P03_cereals.avi; 5 splits by person", num_splits=5),
}
"""Layouts that are understood, by the name that `data.reader` takes."""
