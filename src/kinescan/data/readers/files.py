"""Where the files of a data set are: video files below a folder, annotation files by their published names."""

import logging
import os
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from kinescan.errors import ConfigError
from kinescan.runtime.escaping import escape_terminal

logger = logging.getLogger(__name__)

_SUFFIXES = "3gp asf avi divx flv gif m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv ts vob webm wmv"
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _SUFFIXES.split())
"""Endings of files that count as videos in folders; lists may name any file."""
_Identity = tuple[int, int]
"""Device and number of a folder."""


class FolderWalk:
    """The video files below a data set's folder; links to folders are followed, each folder is taken once.

    A link to a folder is left alone where it leads to the data set's own folder or one above it, to a folder that the
    data set holds itself, or to one that another link led to before. So a loop ends, and no video gets the label of a
    class that is linked to. A link to a file counts as a file.

    Args:
        root: the data set's folder.

    Attributes:
        left_alone: links that were not followed so far.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("a", "b"):
        ...         Path(folder, name).mkdir()
        ...         Path(folder, name, "1.mp4").touch()
        ...     Path(folder, "a", "loop").symlink_to("..")
        ...     walk = FolderWalk(folder)
        ...     names = [path.name for path in walk.videos(Path(folder, "a"))]
        ...     names, [link.name for link in walk.left_alone]
        (['1.mp4'], ['loop'])
    """

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root)
        self._linked: set[_Identity] = set()
        self.left_alone: list[Path] = []

    def videos(self, folder: str | Path, *, also: Collection[str] = ()) -> list[Path]:
        """The video files in a folder of the data set and below, sorted; hidden ones are ignored.

        Args:
            folder: in the data set.
            also: endings of files that count as well, in small letters.

        Raises:
            ConfigError: a folder cannot be read.
        """
        start = Path(folder)
        found: list[Path] = []
        left = [(start, start != self._root and start.is_symlink())]
        while left:
            parent, is_linked = left.pop()
            if is_linked and not self._enter(parent):
                continue
            folders: list[tuple[Path, bool]] = []
            for entry in _entries(parent):
                if is_hidden(entry.name):
                    continue
                if _is_folder(entry):
                    folders.append((Path(entry.path), is_linked or entry.is_symlink()))
                elif is_video(entry.name) or os.path.splitext(entry.name)[1].lower() in also:
                    found.append(Path(entry.path))
            # the first one in the order of names is the next one
            left += sorted(folders, reverse=True)
        return sorted(found)

    def notes(self) -> tuple[str, ...]:
        """What a user should know of the links."""
        if not self.left_alone:
            return ()
        first = escape_terminal(str(self.left_alone[0]))
        return (
            f"{len(self.left_alone)} links are not followed, such as {first}: they lead to folders that are listed "
            "already, or that the data set lies in",
        )

    def _enter(self, path: Path) -> bool:
        """Whether this folder, a link or below one, is met for the first time; then it no longer is."""
        identity = _identity(path)
        if identity in self._own or identity in self._linked:
            self.left_alone.append(path)
            return False
        self._linked.add(identity)
        return True

    @cached_property
    def _own(self) -> frozenset[_Identity]:
        """The data set's folder, those above it, and those that it holds without links."""
        root = Path(os.path.realpath(self._root))
        below = (Path(parent) for parent, _, _ in os.walk(root))
        return frozenset(_identity(path) for path in (*root.parents, *below))


def find_videos(folder: str | Path, *, also: Collection[str] = ()) -> list[Path]:
    """The video files in a folder and below, sorted; hidden ones are ignored, and each real folder is taken once.

    Args:
        folder: an existing folder.
        also: endings of files that count as well, in small letters, such as ".png".

    Raises:
        ConfigError: a folder cannot be read.
    """
    walk = FolderWalk(folder)
    found = walk.videos(folder, also=also)
    for note in walk.notes():
        logger.warning("%s: %s", escape_terminal(str(folder)), note)
    return found


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
    folders = [folder, *_folders_in(folder)]
    for name in names:
        for candidate in folders:
            file = min(candidate.glob(name), default=None)
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


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be read ({error.strerror or error}). Check its permissions, or move it out of the "
            "data set's folder."
        ) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # a link that leads to itself
        return False


def _identity(path: str | Path) -> _Identity:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _folders_in(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not is_hidden(entry.name))
