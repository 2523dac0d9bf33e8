from pathlib import Path

from kinescan.data.readers.files import find_annotation
from kinescan.data.readers.source import LabelSource, Listing, find_listed
from kinescan.errors import ConfigError
from kinescan.runtime.files import read_text

_MARKS = {"0": "neither", "1": "train", "2": "test"}


def read_hmdb51(source: LabelSource) -> Listing:
    """HMDB-51: CLASS_test_split1.txt (or 2, 3) of each class beside the class folders of avi files.

    A line holds a file's name and 1 (training), 2 (test) or 0 (neither). Classes are in alphabetical order.

    Args:
        source: the folder that holds both, or annotations in it and videos in `root`; splits 1, 2 and 3.

    Raises:
        ConfigError: files are missing or have another form, or no video is there.
    """
    ending = f"_test_split{source.split}.txt"
    folder = find_annotation(source.path, [f"*{ending}"]).parent
    listed: list[tuple[str, str]] = []
    files = sorted(folder.glob(f"*{ending}"))
    for file in files:
        label = file.name.removesuffix(ending)
        listed += [(f"{label}/{stem}", label) for stem in _read_names(file, source.part)]
    classes = tuple(file.name.removesuffix(ending) for file in files)
    return find_listed(listed, classes, source, annotation=folder, suffix=".avi")


def _read_names(file: Path, part: str) -> list[str]:
    """Names without suffix of the files of one part."""
    stems = []
    for line_number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        name, mark = ["", *line.strip().rsplit(None, 1)][-2:]
        if mark not in _MARKS or not name:
            raise ConfigError(f"{file}, line {line_number}: expected a file's name and 0, 1 or 2, got {line!r}.")
        if _MARKS[mark] == part:
            stems.append(name.strip().rpartition(".")[0])
    return stems
