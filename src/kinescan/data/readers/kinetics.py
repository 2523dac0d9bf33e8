import csv
from pathlib import Path
from typing import Any

from kinescan.data.readers.files import find_annotation
from kinescan.data.readers.source import LabelSource, Listing, find_listed
from kinescan.errors import ConfigError
from kinescan.runtime.files import read_text

_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
_NAMES = {"train": ("train",), "test": ("val", "validate", "validation")}


def read_kinetics(source: LabelSource, *, num_classes: int) -> Listing:
    """Kinetics: train.csv and val.csv (or validate.csv) of label,youtube_id,time_start,time_end,split.

    A video's file is called YOUTUBE-ID_START_END with six digits for each time, in class folders or flat. Many videos
    are gone from where they came from: those are left out and counted. "test" is the validation part, as everywhere.
    Classes are those of train.csv, in alphabetical order.

    Args:
        source: the folder that holds both, or annotations in it and videos in `root`.
        num_classes: 400, 600 or 700; names the files.

    Raises:
        ConfigError: a file is missing or has another form, or no video is there.
    """
    file = _find(source.path, _NAMES[source.part], num_classes)
    listed = _read_rows(file)
    if source.part == "train":
        classes = sorted({label for _, label in listed})
    else:
        classes = sorted({label for _, label in _read_rows(_find(source.path, _NAMES["train"], num_classes))})
    return find_listed(listed, tuple(classes), source, annotation=file, suffix=".mp4", leave_out_missing=True)


def _find(folder: Path, names: tuple[str, ...], num_classes: int) -> Path:
    prefixes = ("", f"kinetics_{num_classes}_", f"kinetics{num_classes}_", "kinetics_", f"k{num_classes}_")
    return find_annotation(folder, [f"{prefix}{name}.csv" for prefix in prefixes for name in names])


def _read_rows(file: Path) -> list[tuple[str, str]]:
    """(id, label) of each row."""
    reader = csv.DictReader(read_text(file).splitlines())
    listed = []
    try:
        absent = [column for column in _COLUMNS if column not in (reader.fieldnames or [])]
        if absent:
            raise ConfigError(f"{file} has no column {', '.join(absent)}; a Kinetics csv has {', '.join(_COLUMNS)}.")
        for row in reader:
            listed.append(_read_row(row, f"{file}, line {reader.line_num}"))
    except csv.Error as problem:
        raise ConfigError(
            f"{file}, line {reader.line_num + 1}: not a csv row ({problem}). Correct it, or fetch the file again."
        ) from None
    return listed


def _read_row(row: dict[str, Any], where: str) -> tuple[str, str]:
    """(id, label)."""
    try:
        start, end = (int(float(row[column])) for column in ("time_start", "time_end"))
        label, name = row["label"].strip(), row["youtube_id"].strip()
        if not label or not name or min(start, end) < 0:
            raise ValueError
    except (TypeError, ValueError, OverflowError, AttributeError):
        raise ConfigError(f"{where}: expected {', '.join(_COLUMNS)}, got {str(list(row.values()))[:500]}.") from None
    return f"{name}_{start:06d}_{end:06d}", label
