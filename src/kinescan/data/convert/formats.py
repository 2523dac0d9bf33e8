"""The formats that `kinescan data convert` reads, and how a file is recognised."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kinescan.data.convert.boris import is_boris, read_boris
from kinescan.data.convert.cvat import is_cvat, read_cvat
from kinescan.data.convert.elan import is_eaf, is_elan_table, read_eaf, read_elan_table
from kinescan.data.convert.export import Export, ExportFile
from kinescan.data.convert.frame_list import is_frame_list, read_frame_list
from kinescan.data.convert.label_studio import is_label_studio, read_label_studio
from kinescan.data.convert.via import is_via, read_via
from kinescan.data.convert.xml import is_zip
from kinescan.data.readers.files import is_hidden, is_video
from kinescan.errors import ConfigError
from kinescan.runtime.urls import refuse_url
from kinescan.settings import closest

_TABLES = (".csv", ".tsv", ".txt", "")


@dataclass(frozen=True)
class Format:
    """The export of a tool.

    Attributes:
        read: gives what a file holds.
        fits: whether a file is of this format, by its name and content.
        fields: what a label can be made of; the first is the label where nothing else is asked for.
        summary: one line on what it is.
        instead: the field that is the label where the first one is empty.
        has_attributes: labels may be made of named attributes, too.
    """

    read: Callable[[ExportFile], Export]
    fits: Callable[[Path], bool]
    fields: tuple[str, ...]
    summary: str
    instead: str = ""
    has_attributes: bool = False


def _table(fits: Callable[[Path], bool]) -> Callable[[Path], bool]:
    return lambda file: file.suffix.lower() in _TABLES and fits(file)


FORMATS: dict[str, Format] = {
    "label_studio": Format(
        read_label_studio,
        is_label_studio,
        ("label", "control"),
        "Label Studio: JSON, JSON-MIN, CSV or TSV; takes --fps",
        has_attributes=True,
    ),
    "elan": Format(
        read_eaf, is_eaf, ("text", "tier", "participant"), "ELAN: .eaf, one file a recording", instead="tier"
    ),
    "cvat": Format(
        read_cvat,
        is_cvat,
        ("label",),
        "CVAT for video 1.1 (or for images 1.1, of a video): .xml, or the .zip with it",
        has_attributes=True,
    ),
    "via": Format(read_via, _table(is_via), ("label",), "VIA 3: csv of temporal segments", has_attributes=True),
    "boris": Format(
        read_boris,
        _table(is_boris),
        ("behavior", "subject", "modifiers", "category"),
        "BORIS: aggregated events (or tabular events) as csv or tsv",
    ),
    "frame_list": Format(
        read_frame_list,
        _table(is_frame_list),
        ("label",),
        "a csv of path,start_frame,end_frame,label, whose last frame belongs to the interval",
    ),
    "elan_table": Format(
        read_elan_table,
        _table(is_elan_table),
        ("text", "tier", "participant"),
        "ELAN: tab-delimited text, with or without a header",
        instead="tier",
    ),
}
"""Formats by the name that `--format` takes, in the order in which they are tried."""


def find_format(file: Path, name: str = "auto") -> str:
    """The name of a file's format.

    Raises:
        ConfigError: there is no such format, or the file is of none.
    """
    if name in FORMATS:
        return name
    if name != "auto":
        raise ConfigError(f"unknown format {name!r}. {closest(name, ['auto', *FORMATS])}")
    found = next((key for key, known in FORMATS.items() if known.fits(file)), None)
    if found is None:
        raise ConfigError(f"the format of {file} is unknown: {_advice(file)}")
    return found


def export_files(source: Path, name: str = "auto") -> list[tuple[Path, str]]:
    """The files of a label source with their formats: the file itself, or those in a folder that are of some format.

    Raises:
        ConfigError: nothing is there, or a folder holds none, or files of several formats.
    """
    if not source.is_dir():
        refuse_url(source, "Copy what the tool exported to this machine.")
        if not source.exists():
            raise ConfigError(
                f"{source} does not exist. Name the file that the tool exported, or a folder of such files."
            )
        return [(source, find_format(source, name))]
    found = []
    for file in sorted(source.iterdir()):
        if is_hidden(file.name) or not file.is_file() or is_video(file.name):
            continue
        if file.suffix.lower() not in (*_TABLES, ".eaf", ".xml", ".json", ".zip"):
            continue
        try:
            found.append((file, find_format(file, name)))
        except ConfigError:
            # other files may lie beside the exports
            continue
    kinds = sorted({kind for _, kind in found})
    if not found:
        raise ConfigError(f"{source} holds no file of a format that is known: {', '.join(FORMATS)}.")
    if len(kinds) > 1:
        raise ConfigError(f"{source} holds files of several formats: {', '.join(kinds)}. Name one with --format.")
    return found


def _advice(file: Path) -> str:
    if file.suffix.lower() in (".xlsx", ".xls", ".ods") or (file.suffix.lower() != ".zip" and is_zip(file)):
        return "it is a spreadsheet or an archive. Export the table as TSV or CSV."
    if file.suffix.lower() == ".boris":
        return "it is a project of BORIS. Export its aggregated events as TSV."
    return f"{', '.join(f'{name} ({known.summary})' for name, known in FORMATS.items())}."
