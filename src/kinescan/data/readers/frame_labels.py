"""Labels for each frame in text files: MS-TCN's folders, and Breakfast's segmentation."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from kinescan.data.intervals import RowProblem
from kinescan.data.readers.annotations import AnnotatedVideo, Annotations, LabelledSpan
from kinescan.data.readers.breakfast import ACTIVITIES, TEST_PERSONS
from kinescan.data.readers.source import LabelSource
from kinescan.data.readers.video_names import VideoNames
from kinescan.errors import ConfigError
from kinescan.runtime.files import read_text

LABELS_FOLDER, MAPPING_FILE, SPLITS_FOLDER = "groundTruth", "mapping.txt", "splits"
_RANGE = re.compile(r"(\d+)\s*-\s*(\d+)[\s,]+(\S.*)")
_PERSON = re.compile(r"P(\d\d)_")


def is_mstcn(folder: Path, root: Path | None = None) -> bool:
    """Whether a folder is laid out as MS-TCN's are."""
    return (folder / LABELS_FOLDER).is_dir()


def mstcn_held_out(folder: Path, root: Path | None = None) -> str | None:
    """The name "test", where there are lists of parts."""
    return "test" if any((folder / SPLITS_FOLDER).glob("train.*")) else None


def read_mstcn(source: LabelSource) -> Annotations:
    """MS-TCN's folders: groundTruth/VIDEO.txt with a label a frame, mapping.txt, splits/train.split1.bundle.

    Frames are those of the video of that name, below the data's root or the folder itself.

    Raises:
        ConfigError: files are missing or of another form, or none of the videos is there.
    """
    folder = source.path
    if not (folder / LABELS_FOLDER).is_dir():
        raise ConfigError(f"{folder} holds no folder {LABELS_FOLDER}, as data sets of this layout do.")
    names = _names_of_part(folder, source)
    classes = _mapping(folder / MAPPING_FILE)
    there = VideoNames(source.root or folder)
    videos, missing, problems = [], [], []
    for name in names:
        path, file = there.find(name), folder / LABELS_FOLDER / f"{name}.txt"
        if path is None:
            missing.append(name)
            continue
        if not file.is_file():
            problems.append(RowProblem(0, f"{file} is not there, and the {source.part} part lists {name}."))
            continue
        labels = read_text(file).split("\n")
        # the last line may or may not end
        labels = [label.strip() for label in (labels[:-1] if not labels[-1].strip() else labels)]
        empty = [number for number, label in enumerate(labels, 1) if not label]
        if empty or not labels:
            problems.append(RowProblem(empty[0] if empty else 0, f"{file}: a label a line is needed."))
            continue
        used = {label: number for number, label in reversed(list(enumerate(labels, 1)))}
        if classes is not None and not used.keys() <= set(classes):
            problems += [
                RowProblem(line, f"{file}: {MAPPING_FILE} does not name {label!r}.")
                for label, line in used.items()
                if label not in classes
            ]
            continue
        spans = tuple(LabelledSpan(label, start, end) for label, start, end in runs(labels))
        videos.append(AnnotatedVideo(path, name, spans, in_frames=True, num_frames=len(labels)))
    _refuse_none(videos, problems, names, there, source)
    own = None if classes is None else tuple(name for name in classes if name.casefold() != "background")
    return Annotations(videos, own, tuple(problems), tuple(missing), is_published=True)


def runs(labels: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """(label, first frame, frame behind the last) of equal labels in a row.

    Example:
        >>> list(runs(["a", "a", "b"]))
        [('a', 0, 2), ('b', 2, 3)]
    """
    start = 0
    for label, members in groupby(labels):
        end = start + sum(1 for _ in members)
        yield label, start, end
        start = end


def is_breakfast_segmentation(folder: Path, root: Path | None = None) -> bool:
    """Whether a folder holds text files of lines like "1-30 SIL"."""
    if not folder.is_dir():
        return False
    # other folders may hold many thousand files
    folders = [folder, *(folder / dish for dish in ACTIVITIES)]
    file = next((file for each in folders for file in sorted(each.glob("P??_*.txt"))), None)
    return file is not None and _RANGE.fullmatch(read_text(file).partition("\n")[0].strip()) is not None


def breakfast_held_out(folder: Path, root: Path | None = None) -> str | None:
    """The persons of the test part are published."""
    return "test"


def read_breakfast_segmentation(source: LabelSource) -> Annotations:
    """Breakfast's coarse segmentation: files like P03_cam01_P03_tea.txt with lines like "1-30 SIL".

    Frames are counted from 1, and both ends belong to the segment. Splits are by person, as for the clips. SIL (nothing
    is done) is a class, as in published results.

    Raises:
        ConfigError: files are missing or of another form, or none of the videos is there.
    """
    folder = source.path
    files = [
        file
        for file in sorted(folder.rglob("P??_*.txt"))
        if (match := _PERSON.match(file.name))
        and (int(match[1]) in TEST_PERSONS[source.split]) == (source.part == "test")
    ]
    if not files:
        raise ConfigError(
            f"{folder} holds no {source.part} file of split {source.split} called like P03_cam01_P03_tea.txt."
        )
    there = VideoNames(source.root or folder)
    videos, missing, problems = [], [], []
    for file in files:
        path = there.find(file.stem)
        if path is None:
            missing.append(file.stem)
            continue
        spans, wrong = _ranges(file)
        problems += wrong
        num_frames = int(max((span.end for span in spans), default=0))
        videos.append(AnnotatedVideo(path, file.stem, tuple(spans), in_frames=True, num_frames=num_frames))
    _refuse_none(videos, problems, [file.stem for file in files], there, source)
    return Annotations(videos, None, tuple(problems), tuple(missing), is_published=True)


def _ranges(file: Path) -> tuple[list[LabelledSpan], list[RowProblem]]:
    spans, wrong = [], []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        match = _RANGE.fullmatch(line.strip())
        if match is not None and int(match[2]) >= int(match[1]) >= 1:
            spans.append(LabelledSpan(match[3].strip(), int(match[1]) - 1, int(match[2]), number))
        elif line.strip():
            wrong.append(
                RowProblem(number, f'{file.name}: a line like "1-30 SIL" is needed, got {line.strip()[:80]!r}.')
            )
    return spans, wrong


def _names_of_part(folder: Path, source: LabelSource) -> list[str]:
    """The videos of the part that is asked for, without endings."""
    if mstcn_held_out(folder) is None:
        return sorted(file.stem for file in (folder / LABELS_FOLDER).glob("*.txt"))
    splits = folder / SPLITS_FOLDER
    forms = [f"{source.part}.split{source.split}.bundle", f"{source.part}.split{source.split}.txt"]
    file = next((splits / form for form in forms if (splits / form).is_file()), None)
    if file is None:
        there = ", ".join(sorted(path.name for path in splits.iterdir()))
        raise ConfigError(f"{splits} holds no {forms[0]} for data.split = {source.split}. There are: {there}.")
    lines = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    return [re.sub(r"\.(?:txt|npy|avi|mp4)$", "", re.split(r"[\\/]", line)[-1]) for line in lines]


def _mapping(file: Path) -> tuple[str, ...] | None:
    """Classes in the order of their numbers; None where no file says them."""
    if not file.is_file():
        return None
    found: dict[int, str] = {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
        index, _, name = line.strip().partition(" ")
        if not line.strip():
            continue
        if not index.isdecimal() or not name.strip() or int(index) in found:
            raise ConfigError(
                f'{file}, line {number}: a line like "0 background" is needed, got {line.strip()[:80]!r}.'
            )
        found[int(index)] = name.strip()
    return tuple(found[index] for index in sorted(found))


def _refuse_none(
    videos: Sequence[AnnotatedVideo],
    problems: Sequence[RowProblem],
    names: Sequence[str],
    there: VideoNames,
    source: LabelSource,
) -> None:
    if not videos and not problems:
        first = names[0] if names else "none"
        raise ConfigError(
            f"none of the {len(names)} videos of the {source.part} part of {source.path} is in {there.folder} or "
            f"below; the first is {first}. Name the folder of the videos with data.root."
        )
