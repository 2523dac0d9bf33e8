"""How labels with a start and an end are laid out, and how a layout is recognised."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from kinescan.data.readers.activitynet import activitynet_held_out, is_activitynet, read_activitynet
from kinescan.data.readers.annotations import Annotations
from kinescan.data.readers.class_folders import find_parts, part_list
from kinescan.data.readers.files import is_video
from kinescan.data.readers.frame_labels import (
    breakfast_held_out,
    is_breakfast_segmentation,
    is_mstcn,
    mstcn_held_out,
    read_breakfast_segmentation,
    read_mstcn,
)
from kinescan.data.readers.interval_lists import is_interval_list, list_held_out, read_interval_list
from kinescan.data.readers.source import LabelSource
from kinescan.data.readers.thumos import is_thumos, read_thumos, thumos_held_out


@dataclass(frozen=True)
class IntervalLayout:
    """How labels with a start and an end are laid out.

    Attributes:
        read: gives its annotations.
        summary: one line on what it is.
        held_out_name: what the part is called that it holds out; None: it has no parts.
        num_splits: divisions into these parts.
    """

    read: Callable[[LabelSource], Annotations]
    summary: str
    held_out_name: Callable[[Path, Path | None], str | None]
    num_splits: int = 1


def find_interval_layout(source: str | Path, reader: str = "auto", root: str | Path | None = None) -> str | None:
    """The name in `INTERVAL_DATASETS` of the labels at a label source; None where it holds labels of whole clips.

    Raises:
        ConfigError: a list at the label source cannot be read.
    """
    if reader in INTERVAL_DATASETS:
        return reader
    if reader != "auto":
        return None
    return next((name for name, fits in _RECOGNISED.items() if fits(Path(source), Path(root) if root else None)), None)


def interval_held_out_name(source: str | Path, reader: str = "auto", root: str | Path | None = None) -> str | None:
    """What the labels at a label source call the part that they hold out; None where there is none.

    Raises:
        ConfigError: they cannot be read.
    """
    name = find_interval_layout(source, reader, root)
    return None if name is None else INTERVAL_DATASETS[name].held_out_name(Path(source), Path(root) if root else None)


def _list_of(source: LabelSource, read: Callable[[LabelSource], Annotations]) -> Annotations:
    """Of a folder with train.csv beside test.csv the one that is asked for, or the list itself."""
    if source.path.is_dir():
        source = replace(source, path=part_list(source.path, source.part), root=source.root or source.path)
    return read(source)


def _list_held_out(path: Path, root: Path | None) -> str | None:
    if not path.is_dir():
        return list_held_out(path, root)
    parts = find_parts(path)
    return None if parts is None or parts.train is None else parts.held_out


def _is_list(path: Path, root: Path | None) -> bool:
    if path.is_dir():
        parts = find_parts(path)
        if parts is None or parts.kind != "lists":
            return False
        path, root = part_list(path, "train"), root or path
    binary = path.suffix.lower() == ".json" or is_video(path.name)
    return path.is_file() and not binary and is_interval_list(path, root)


INTERVAL_DATASETS: dict[str, IntervalLayout] = {
    "intervals": IntervalLayout(
        partial(_list_of, read=read_interval_list), "a csv of path,start,end,label", _list_held_out
    ),
    "activitynet": IntervalLayout(
        read_activitynet, "ActivityNet's JSON: database/VIDEO/annotations, in seconds", activitynet_held_out
    ),
    "mstcn": IntervalLayout(
        read_mstcn,
        "MS-TCN's folders: groundTruth/VIDEO.txt (a label a frame), mapping.txt, splits/train.split1.bundle",
        mstcn_held_out,
        num_splits=100,
    ),
    "thumos14": IntervalLayout(
        read_thumos, "THUMOS'14: CLASS_val.txt and CLASS_test.txt of video, start, end", thumos_held_out
    ),
    "breakfast_segmentation": IntervalLayout(
        read_breakfast_segmentation,
        'Breakfast\'s segmentation: P03_cam01_P03_tea.txt of lines like "1-30 SIL"; 5 splits by person',
        breakfast_held_out,
        num_splits=5,
    ),
}
"""Layouts of labels with a start and an end, by the name that `data.reader` takes."""
_RECOGNISED: dict[str, Callable[[Path, Path | None], bool]] = {
    "intervals": _is_list,
    "activitynet": is_activitynet,
    "mstcn": is_mstcn,
    "thumos14": is_thumos,
    "breakfast_segmentation": is_breakfast_segmentation,
}
"""How `data.reader = "auto"` knows them."""
