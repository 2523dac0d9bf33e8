"""The files that motions over real pixels are cut from: which can be used, and which part each belongs to."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kinescan.data.readers.files import find_videos
from kinescan.data.readers.split_names import part_of
from kinescan.data.synthetic.writing import Split
from kinescan.data.video import VideoReader, inspect_video
from kinescan.errors import ConfigError, VideoError
from kinescan.runtime.escaping import escape_terminal

logger = logging.getLogger(__name__)

PICTURE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Endings of files that count as pictures, beside those of videos."""
LEAST_SIDE = 32
"""Of a picture's shorter side, in pixels."""
LEAST_SOURCES = 2
"""Of each part: the score on a single one would be about that picture."""
SPLITS: tuple[Split, ...] = ("train", "test")

_LEAST_VARIATION = 4.0
"""Standard deviation of a picture's levels below which it is taken for one colour."""
_SHOWN = 5


@dataclass(frozen=True)
class Sources:
    """The files of each part.

    Attributes:
        folder: where they lie.
        names: "train" and "test" -> paths below `folder`, with forward slashes.
        left_out: path below `folder` -> why it is not used.
    """

    folder: Path
    names: dict[str, list[str]]
    left_out: dict[str, str] = field(default_factory=dict)


def find_sources(
    folder: str | Path, *, needed: Mapping[Split, int], test_ratio: float, seed: int, workers: int = 1
) -> Sources:
    """Videos and pictures of a folder, whole ones only, each in one part.

    Where the folder has parts itself (train beside test or val, in its first level), a file belongs to the part that it
    lies in; otherwise files are dealt out at random. Every file is decoded once; a second file with the same pictures
    is left out.

    Args:
        folder: searched with the folders below.
        needed: how many files of each part can be of use; no more are looked at.
        test_ratio: fraction of the source files that go to test.
        seed: of the order in which files are taken.
        workers: files looked at at a time.

    Raises:
        ConfigError: the folder is not there or cannot be read, or there are too few files that can be used.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"{folder} is not a folder. --from takes a folder with videos or pictures.")
    files = sorted(path.relative_to(root).as_posix() for path in find_videos(root, also=PICTURE_SUFFIXES))
    order = np.random.default_rng(seed).permutation(len(files))
    files = [files[k] for k in order]
    parts = _own_parts(files)
    check = _Check(root, workers)
    if parts:
        check.left_out |= {name: "lies in none of the folder's parts." for name in files if name not in parts}
        names = {
            split: check.usable([name for name in files if parts.get(name) == split], needed[split]) for split in SPLITS
        }
    else:
        names = _deal(check.usable(files, sum(needed.values())), needed, test_ratio)
    _log(root, check.left_out)
    _require_enough(root, names, needed, len(files), check.left_out)
    return Sources(root, {split: sorted(found) for split, found in names.items()}, dict(sorted(check.left_out.items())))


class _Check:
    """Looks at files, one after the other, until there are enough."""

    def __init__(self, root: Path, workers: int) -> None:
        self._root, self._workers = root, workers
        self._seen: dict[str, str] = {}
        self.left_out: dict[str, str] = {}

    def usable(self, names: Sequence[str], needed: int) -> list[str]:
        """The first `needed` of the names that can be used; what is wrong with others goes to `left_out`."""
        found: list[str] = []
        needed = max(needed, LEAST_SOURCES) if needed else 0
        with ThreadPoolExecutor(self._workers) as pool:
            for first in range(0, len(names), 2 * self._workers):
                if len(found) >= needed:
                    break
                some = names[first : first + 2 * self._workers]
                for name, (problem, content) in zip(some, pool.map(self._look, some), strict=True):
                    if not problem and content in self._seen:
                        problem = f"shows the same as {self._seen[content]}."
                    if problem:
                        self.left_out[name] = problem
                        continue
                    self._seen[content] = name
                    found.append(name)
        return found[:needed]

    def _look(self, name: str) -> tuple[str, str]:
        """What is wrong with a file (nothing: ""), and a text that is the same for the same pictures."""
        path = self._root / name
        inspection = inspect_video(path)
        if inspection.problem:
            # what follows is advice for training on it
            return inspection.reason.partition(". ")[0].rstrip(".") + ".", ""
        try:
            with VideoReader(path, square_pixels=True) as video:
                pixels = video.read([video.num_frames // 2]).pixels[0]
        except VideoError as error:
            return error.reason, ""
        if min(pixels.shape[1:]) < LEAST_SIDE:
            size = f"{pixels.shape[2]} x {pixels.shape[1]}"
            return f"is too small: {size} pixels; the shorter side must be {LEAST_SIDE} or more.", ""
        if pixels.float().std(dim=(1, 2)).max() < _LEAST_VARIATION:
            return "shows a single colour, on which no motion is seen.", ""
        return "", inspection.content


def _own_parts(names: Sequence[str]) -> dict[str, Split]:
    """Name -> part, where the first level of the folder has a part to train on and one to test on; else nothing."""
    found: dict[str, Split] = {}
    for name in names:
        top, _, below = name.partition("/")
        part = part_of(top) if below else None
        if part is not None:
            found[name] = "train" if part == "train" else "test"
    return found if len(set(found.values())) == 2 else {}


def _deal(names: Sequence[str], needed: Mapping[Split, int], test_ratio: float) -> dict[Split, list[str]]:
    """The first ones to test, the others to train; a part of which no clips are wanted gets none."""
    if not needed["train"] or not needed["test"]:
        return {split: list(names) if needed[split] else [] for split in SPLITS}
    num_test = max(LEAST_SOURCES, round(test_ratio * len(names)))
    num_test = max(0, min(num_test, len(names) - LEAST_SOURCES))
    return {"train": list(names[num_test:]), "test": list(names[:num_test])}


def _log(root: Path, left_out: Mapping[str, str]) -> None:
    for name, reason in list(left_out.items())[:_SHOWN]:
        logger.warning("left out: %s: %s", escape_terminal(str(root / name)), reason)
    if len(left_out) > _SHOWN:
        logger.warning("left out: %d more; meta.json lists all of them", len(left_out) - _SHOWN)


def _require_enough(
    root: Path,
    names: Mapping[Split, Sequence[str]],
    needed: Mapping[Split, int],
    num_files: int,
    left_out: Mapping[str, str],
) -> None:
    few = [split for split in SPLITS if needed[split] and len(names[split]) < LEAST_SOURCES]
    if not few:
        return
    numbers = " and ".join(f"{len(names[split])} to {split}" for split in SPLITS if needed[split])
    reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:_SHOWN])
    raise ConfigError(
        f"{root} holds too few videos or pictures: of {num_files}, {num_files - len(left_out)} can be used, {numbers}. "
        f"Each part needs {LEAST_SOURCES} or more, and none is in both. Put more files there"
        + (f" (left out: {reasons})." if left_out else ".")
    )
