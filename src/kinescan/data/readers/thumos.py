import re
from collections import defaultdict
from pathlib import Path

from kinescan.data.intervals import RowProblem
from kinescan.data.readers.annotations import AnnotatedVideo, Annotations, LabelledSpan
from kinescan.data.readers.source import LabelSource
from kinescan.data.readers.video_names import VideoNames
from kinescan.errors import ConfigError
from kinescan.runtime.files import read_text

_AMBIGUOUS = "Ambiguous"
_NAME = re.compile(r"([A-Za-z0-9]+)_(val|test)")
_LINE = re.compile(r"(\S+)\s+(\d+(?:\.\d+)?)\s+(\d+(?:\.\d+)?)")


def is_thumos(folder: Path, root: Path | None = None) -> bool:
    """Whether a folder holds a text file for each class, such as Diving_val.txt, whose lines are a video and times."""
    if not folder.is_dir():
        return False
    files = _files(folder)
    return bool(files) and _LINE.fullmatch(read_text(files[0]).partition("\n")[0].strip()) is not None


def thumos_held_out(folder: Path, root: Path | None = None) -> str | None:
    """The name "test", where there are files of both parts."""
    parts = {_part(file) for file in _files(folder)}
    return "test" if parts == {"val", "test"} else None


def read_thumos(source: LabelSource) -> Annotations:
    """THUMOS'14: a text file for each class, such as Diving_val.txt; a line: video, start and end in seconds.

    Its validation part is what models are trained on. Ambiguous_test.txt is left out.

    Raises:
        ConfigError: files are missing or of another form, or none of the videos is there.
    """
    wanted = "test" if source.part == "test" and thumos_held_out(source.path) else "val"
    files = [file for file in _files(source.path) if _part(file) == wanted or not thumos_held_out(source.path)]
    there = VideoNames(source.root or source.path)
    spans: dict[str, list[LabelledSpan]] = defaultdict(list)
    problems = []
    for file in files:
        label = file.stem.rsplit("_", 1)[0]
        for number, line in enumerate(read_text(file).splitlines(), 1):
            match = _LINE.fullmatch(line.strip())
            if match is not None and float(match[3]) > float(match[2]):
                spans[match[1]].append(LabelledSpan(label, float(match[2]), float(match[3]), number))
            elif line.strip():
                problems.append(
                    RowProblem(number, f"{file.name}: VIDEO START END is needed, got {line.strip()[:80]!r}.")
                )
    found = {name: there.find(name) for name in sorted(spans)}
    missing = tuple(name for name, path in found.items() if path is None)
    videos = [AnnotatedVideo(path, name, tuple(spans[name])) for name, path in found.items() if path is not None]
    if not videos:
        raise ConfigError(
            f"none of the {len(found)} videos of the {source.part} part of {source.path} is in {there.folder} or below"
            f"{f'; the first is {missing[0]}' if missing else ''}. Name the folder of the videos with data.root."
        )
    notes = tuple(f"{_AMBIGUOUS}_{part}.txt is not used" for part in {wanted} if _ambiguous(source.path, part))
    return Annotations(videos, None, tuple(problems), missing, notes, is_published=True)


def _files(folder: Path) -> list[Path]:
    """The files of the classes, in the folder or in its folder annotation."""
    folders = [folder, folder / "annotation", folder / "annotations"]
    found = [file for each in folders for form in ("*_val.txt", "*_test.txt") for file in each.glob(form)]
    return sorted(file for file in found if _NAME.fullmatch(file.stem) and not file.stem.startswith(_AMBIGUOUS))


def _ambiguous(folder: Path, part: str) -> bool:
    return any(folder.glob(f"{_AMBIGUOUS}_{part}.txt"))


def _part(file: Path) -> str:
    return file.stem.rsplit("_", 1)[1]
