from pathlib import Path

from kinescan.data.readers.files import find_annotation
from kinescan.data.readers.source import LabelSource, Listing, find_listed
from kinescan.errors import ConfigError
from kinescan.runtime.files import read_text


def read_ucf101(source: LabelSource) -> Listing:
    """UCF-101: classInd.txt and trainlist01.txt, testlist01.txt (or 02, 03) beside the class folders of avi files.

    Args:
        source: the folder that holds both, or annotations in it and videos in `root`; splits 1, 2 and 3.

    Raises:
        ConfigError: a file is missing or has another form, a video's folder is not a class, or no video is there.
    """
    classes_file = find_annotation(source.path, ["classInd.txt"])
    numbers: dict[str, int] = {}
    for line_number, line in _lines(classes_file):
        number, name = [*line.split(None, 1), ""][:2]
        if not number.isdecimal() or len(number) > 9 or not name:
            raise ConfigError(f"{classes_file}, line {line_number}: expected number and class, got {line[:200]!r}.")
        if name in numbers or int(number) in numbers.values():
            raise ConfigError(f"{classes_file}, line {line_number}: number or class is there already: {line!r}.")
        numbers[name] = int(number)
    file = find_annotation(source.path, [f"{source.part}list{source.split:02d}.txt"])
    listed = []
    for line_number, line in _lines(file):
        # training lines end with the number of the class
        name, number = [*line.split(None, 1), ""][:2] if source.part == "train" else (line, "")
        label = name.partition("/")[0]
        if label not in numbers or (number and number.lstrip("0") != str(numbers[label])):
            raise ConfigError(f"{file}, line {line_number}: {line!r} does not fit the classes of {classes_file}.")
        listed.append((name.rpartition(".")[0], label))
    classes = tuple(sorted(numbers, key=numbers.__getitem__))
    return find_listed(listed, classes, source, annotation=file, suffix=".avi")


def _lines(file: Path) -> list[tuple[int, str]]:
    """Numbers and texts of the lines that are not empty."""
    stripped = ((line_number, line.strip()) for line_number, line in enumerate(read_text(file).splitlines(), 1))
    return [(line_number, line) for line_number, line in stripped if line]
