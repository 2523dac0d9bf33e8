"""Video files by the names that annotation files call them by."""

import re
from collections.abc import Iterable
from pathlib import Path

from kinescan.data.readers.files import find_videos, is_video
from kinescan.errors import ConfigError

_PARTS = 3


class VideoNames:
    """Finds the video that an annotation file names, wherever it lies below a folder and in whatever container.

    A name is that of the file, with or without its ending, with or without folders before it, joined by slashes or
    underscores (P03_cam01_P03_tea is P03/cam01/P03_tea.avi), and with or without "v_" before it.

    Args:
        folder: of the videos.

    Raises:
        ConfigError: it is not a folder, or cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = [Path(folder, name).touch() for name in ("a.mp4", "v_b.mkv")]
        ...     names = VideoNames(folder)
        ...     [names.find(name).name for name in ("a", "b", "clips/a.webm", "a.mp4")]
        ['a.mp4', 'v_b.mkv', 'a.mp4', 'a.mp4']
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ConfigError(f"{self.folder} is not a folder. Name the one that holds the videos.")
        self.paths = find_videos(self.folder)
        self._found: dict[str, list[Path]] = {}
        for path in self.paths:
            for name in _names_of(path.relative_to(self.folder)):
                self._found.setdefault(name, []).append(path)

    def all_of(self, name: str) -> list[Path]:
        """The videos that a name may mean: those that share most folders with it; none, one, or several alike."""
        parts = [part for part in re.split(r"[\\/]", name) if part]
        if not parts:
            return []
        stem = _stem(parts[-1])
        found = next((paths for form in (stem, f"v_{stem}", stem.removeprefix("v_")) if (paths := self._by(form))), [])
        if len(found) < 2:
            return found

        def likeness(path: Path) -> tuple[int, bool]:
            own = path.relative_to(self.folder).parts
            shared = 0
            for mine, theirs in zip(own[-2::-1], parts[-2::-1], strict=False):
                if mine != theirs:
                    break
                shared += 1
            return shared, own[-1] == parts[-1]

        best = max(map(likeness, found))
        return [path for path in found if likeness(path) == best]

    def find(self, name: str) -> Path | None:
        """The one video that a name means; None where there is none, or several fit alike."""
        found = self.all_of(name)
        return found[0] if len(found) == 1 else None

    def _by(self, name: str) -> list[Path]:
        return self._found.get(name, [])


def _names_of(path: Path) -> Iterable[str]:
    """What a file may be called without its ending."""
    stems = [path.stem, *([path.stem[:-4]] if path.stem.endswith("_ch0") else [])]
    for stem in stems:
        for count in range(min(len(path.parts), _PARTS)):
            yield "_".join((*path.parts[-1 - count : -1], stem))


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0] if is_video(name) else name
