import csv
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kinescan.errors import ConfigError
from kinescan.settings import closest

logger = logging.getLogger(__name__)

_SUFFIXES = "3gp asf avi divx flv gif m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv ts vob webm wmv"
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _SUFFIXES.split())
"""Endings of files that count as videos in folders; lists may name any file."""

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


def read_items(
    source: str | Path, *, root: str | Path | None = None, classes: Sequence[str] | None = None
) -> tuple[list[VideoItem], tuple[str, ...]]:
    r"""The labelled videos of a folder or a list.

    A folder holds one folder per class; video files may lie deeper in it; hidden files and other files are ignored.
    A list is a text file of path and label, separated by commas, tabs or blanks ("path label"), with or without a
    header; labels are texts or class numbers. Whether the files can be read shows when they are read.

    Args:
        source: the folder, or the list.
        root: folder that paths in a list are relative to; by default the list's own.
        classes: label texts in the order of their numbers, such as those of the training data; by default the folder
            names or label texts in alphabetical order.

    Returns:
        The videos (in the order of the list; by class and path for a folder) and the classes. Numbered labels
        without `classes` give the classes "0", "1", ....

    Raises:
        ConfigError: there is nothing at `source`, it holds no labelled video, a line cannot be understood, a video has
            two labels, or a label is not among `classes`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "list.csv"
        ...     _ = file.write_text("a.mp4,jump\nb.mp4,fall\n")
        ...     items, classes = read_items(file)
        >>> classes, [item.label for item in items]
        (('fall', 'jump'), [1, 0])
    """
    source = Path(source)
    if source.is_dir():
        labelled = DATASETS["folder"](source, source)
    elif source.is_file():
        labelled = DATASETS["list"](source, Path(root) if root else source.parent)
    else:
        raise ConfigError(f"{source} does not exist. Name a folder with one folder of videos per class, or a csv.")
    texts = {label for _, _, label in labelled}
    numbered = source.is_file() and all(text.isdecimal() for text in texts)
    if classes is None:
        classes = [str(number) for number in range(max(map(int, texts)) + 1)] if numbered else sorted(texts)
    numbers = _class_numbers(source, texts, tuple(classes), numbered=numbered)
    items = [VideoItem(path, numbers[label], video_id) for path, video_id, label in labelled]
    _refuse_contradictions(source, items, classes)
    return items, tuple(classes)


def find_videos(folder: str | Path) -> list[Path]:
    """The video files in a folder and below, sorted; hidden ones are ignored.

    Args:
        folder: an existing folder.
    """
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        found += [Path(parent, name) for name in files if not _is_hidden(name) and _is_video(name)]
    return sorted(found)


def _read_folder(folder: Path, root: Path) -> list[tuple[Path, str, str]]:
    """Path, id and label text of the videos in class folders."""
    names = sorted(child.name for child in folder.iterdir() if child.is_dir() and not _is_hidden(child.name))
    found = {name: find_videos(folder / name) for name in names}
    filled = {name: videos for name, videos in found.items() if videos}
    if not filled:
        loose = sum(_is_video(child.name) for child in folder.iterdir())
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
    empty = sorted(set(found) - set(filled))
    if empty:
        logger.warning("%s: no video in %s; taken for no class", folder, ", ".join(empty))
    return [(path, path.relative_to(root).as_posix(), name) for name, videos in filled.items() for path in videos]


def _read_list(file: Path, root: Path) -> list[tuple[Path, str, str]]:
    """Path, id and label text of the videos that a text file lists."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file} is no UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from None
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
        labelled.append((root / path, Path(path).as_posix(), row[label_column]))
    return labelled


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


def _refuse_contradictions(source: Path, items: Sequence[VideoItem], classes: Sequence[str]) -> None:
    labels: dict[str, int] = {}
    for item in items:
        first = labels.setdefault(item.video_id, item.label)
        if first != item.label:
            raise ConfigError(
                f"{source}: {item.video_id} has two labels, {classes[first]!r} and {classes[item.label]!r}. "
                "Leave one of the lines out."
            )


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _has_folders(folder: Path) -> bool:
    return any(child.is_dir() for child in folder.iterdir())


DATASETS: dict[str, Callable[[Path, Path], list[tuple[Path, str, str]]]] = {"folder": _read_folder, "list": _read_list}
"""Layouts that are understood: takes the source and the folder that paths are relative to."""
