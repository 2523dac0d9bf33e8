"""Where the files of a data set are: video files below a folder, annotation files by their published names."""

import os
from collections.abc import Sequence
from pathlib import Path

from kinescan.errors import ConfigError

_SUFFIXES = "3gp asf avi divx flv gif m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv ts vob webm wmv"
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _SUFFIXES.split())
"""Endings of files that count as videos in folders; lists may name any file."""


def find_videos(folder: str | Path) -> list[Path]:
    """The video files in a folder and below, sorted; hidden ones are ignored.

    Args:
        folder: an existing folder.
    """
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found += [Path(parent, name) for name in files if not is_hidden(name) and is_video(name)]
    return sorted(found)


def index_videos(folder: Path, *, num_parts: int) -> dict[str, Path]:
    """The video files below a folder by the end of their path, without its suffix.

    So a file is found whether it lies flat or in folders, and in whatever container it was packed again. Where two
    files have the same name, the first in the order of paths counts.

    Args:
        folder: an existing folder.
        num_parts: how many parts of the path name a video: 1 is the file's name alone, 2 that and its folder.
    """
    found: dict[str, Path] = {}
    for path in find_videos(folder):
        found.setdefault("/".join((*path.parts[-num_parts:-1], path.stem)), path)
    return found


def find_annotation(folder: Path, names: Sequence[str]) -> Path:
    """The first file of several names in a folder or in one of its own folders.

    Args:
        folder: of the data set.
        names: file names or patterns, the likeliest first.

    Raises:
        ConfigError: none is there.
    """
    places = [folder, *_folders_in(folder)]
    for name in names:
        for place in places:
            file = min(place.glob(name), default=None)
            if file is not None and file.is_file():
                return file
    also = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
    raise ConfigError(
        f"{folder} holds no {names[0]}{also}, neither itself nor in one of its folders. Put the annotation files of "
        "the data set there, as they are published."
    )


def is_video(name: str) -> bool:
    """Whether a file's name ends like a video's."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not meant to be seen."""
    return name.startswith((".", "__MACOSX"))


def _folders_in(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not is_hidden(entry.name))
