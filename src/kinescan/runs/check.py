import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from kinescan.config import DataConfig, load_recipe, parse_overrides
from kinescan.data.check import DataCheck, check_videos
from kinescan.data.interval_layouts import find_interval_layout, interval_held_out_name
from kinescan.data.interval_listing import read_intervals
from kinescan.data.interval_plot import plot_lengths
from kinescan.data.intervals import IntervalTable
from kinescan.data.listing import VideoList, choose_layout, list_videos
from kinescan.errors import ConfigError
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.counter import Counter
from kinescan.runtime.escaping import to_json
from kinescan.runtime.output_folder import prepare_output
from kinescan.settings import build_settings

logger = logging.getLogger(__name__)


JSON_FILE, TEXT_FILE = "check.json", "check.txt"


def check(
    source: str | Path,
    *,
    test: str | Path | None = None,
    reader: str | None = None,
    split: int | None = None,
    overrides: Sequence[str] = (),
    num_workers: int | None = None,
    decode: bool = True,
    output: str | Path | None = None,
) -> DataCheck:
    """Looks at every file of a data set: unreadable, cut, missing, doubled, in training and in test.

    Args:
        source: a folder with one folder of videos per class, a csv of path,label, the folder of a published data set,
            or a recipe, whose `[data]` is taken.
        test: the same for evaluation; by default the published test part, where there is one.
        reader: how they are laid out, as `data.reader`.
        split: of a published data set, as `data.split`.
        overrides: "dotted.key=value" each, for a recipe; of other label sources, those of `data`.
        num_workers: processes that read files; by default as many as there are cores.
        decode: decode every frame; otherwise damage inside of files does not show.
        output: folder for check.json and check.txt.

    Raises:
        ConfigError: a label source cannot be understood, or the output cannot be written.
    """
    data = data_config(source, overrides, test=test, reader=reader, split=split)
    folder = None if output is None else prepare_output(output)
    parts, same_ids = data_parts(data)
    with Counter("checking", "files") as progress:
        found = check_videos(
            parts,
            same_ids=same_ids,
            num_workers=os.cpu_count() or 1 if num_workers is None else num_workers,
            decode=decode,
            limits=data.limits,
            progress=progress.update,
        )
    if folder is not None:
        try:
            save(found, folder)
        except ConfigError:
            # Hours of reading are not lost to a full disk.
            for line in found.to_text().splitlines():
                logger.warning("%s", line)
            raise
    return found


def data_parts(data: DataConfig) -> tuple[Mapping[str, VideoList | IntervalTable], bool]:
    """The sides of a data set, and whether equal ids mean the same video in all of them."""
    root = data.root or None
    if find_interval_layout(data.train, data.reader, root) is not None:
        read_table = partial(
            read_intervals,
            root=root,
            reader=data.reader,
            split=data.split,
            overlaps=data.overlaps,
            group=data.group,
            limits=data.limits,
            allow_short=data.allow_short,
        )
        tables = {"train": read_table(data.train)}
        if data.test or interval_held_out_name(data.train, data.reader, root):
            tables["test"] = read_table(data.test or data.train, part="test", classes=tables["train"].classes)
        return tables, not data.test
    layout = choose_layout(data.train, data.reader)
    read = partial(list_videos, root=root, reader=data.reader, split=data.split, group=data.group)
    parts = {"train": read(data.train)}
    if data.test or layout.has_parts:
        parts["test"] = read(data.test or data.train, part="test", classes=parts["train"].classes)
    for name, videos in parts.items():
        for note in videos.notes:
            logger.warning("%s: %s", name, note)
    return parts, layout.has_parts


def save(found: DataCheck, folder: str | Path) -> None:
    """Writes check.json and check.txt, and of intervals PART_lengths.png: how long those of each class last.

    Raises:
        ConfigError: one of them cannot be written.
    """
    write_text(Path(folder) / JSON_FILE, to_json(found.to_json(), indent=1) + "\n")
    write_text(Path(folder) / TEXT_FILE, found.to_text() + "\n")
    for part, summary in found.intervals.items():
        plot_lengths(summary.classes, Path(folder) / f"{part}_lengths.png")


def data_config(
    source: str | Path, overrides: Sequence[str], *, test: str | Path | None, reader: str | None, split: int | None
) -> DataConfig:
    """The settings `[data]` of a recipe, or those of a folder or list of videos.

    Args:
        source: a recipe (.toml), or a folder or list of videos.
        overrides: "data.key=value" each; with a recipe, any setting.
        test: held-out videos; None: as the recipe says.
        reader: label reader; None: as the recipe says, or found by the layout.
        split: of the data set; None: as the recipe says, or 1.

    Raises:
        ConfigError: a setting is wrong, or the recipe names no training videos.
    """
    given = {"test": test and str(test), "reader": reader, "split": split}
    said = {name: value for name, value in given.items() if value is not None}
    if Path(source).suffix != ".toml":
        values = parse_overrides(overrides)
        if values.keys() - {"data"}:
            raise ConfigError(f"--set takes only data.* here: {source} is not a recipe. Name a .toml file for others.")
        said.pop("test", None)
        data = build_settings(DataConfig, {**values.get("data", {}), **said}, where="data")
        # as they are: their names may have bytes that no recipe could hold
        return replace(data, train=str(source), test=str(test) if test else data.test)
    data = load_recipe(source, [*overrides, *(f"data.{name}={value}" for name, value in said.items())]).data
    if not data.train:
        raise ConfigError(f"{source} does not set data.train. Add --set data.train=VIDEOS.")
    return data
