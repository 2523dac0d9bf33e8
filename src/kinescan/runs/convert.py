import csv
import io
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinescan.data.convert.conversion import Conversion, ConvertOptions, convert_export, row_path
from kinescan.data.interval_listing import read_intervals
from kinescan.data.intervals import RowProblem
from kinescan.errors import ConfigError
from kinescan.runtime.atomic_write import write_text
from kinescan.settings import build_settings

logger = logging.getLogger(__name__)

HEADER = ("path", "start", "end", "label")


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    """What was written, and what was not.

    Attributes:
        output: the list.
        conversion: what came out of the export.
        problems: what is wrong, as text: rows that are not in the list, and rows in it that their video contradicts.
    """

    output: Path
    conversion: Conversion
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        found = self.conversion
        return {
            "output": str(self.output),
            "format": found.format,
            "videos": found.num_videos,
            "intervals": found.labels.total(),
            "labels": dict(sorted(found.labels.items())),
            "problems": list(self.problems),
            "notes": list(found.notes),
            "not_found": list(found.not_found),
        }


def convert(source: str | Path, output: str | Path, *, overwrite: bool = False, **values: Any) -> ConvertReport:
    """Writes what an annotation tool exported as a list of path,start,end,label.

    Args:
        source: the export, or a folder of exports of one tool.
        output: the list to write.
        overwrite: replace a list that is there.
        **values: fields of `ConvertOptions`.

    Raises:
        ConfigError: the export cannot be understood, or the list is there already or cannot be written.
    """
    target = Path(output)
    if target.exists() and (not overwrite or os.path.samefile(target, source)):
        advice = "Name another one" if not overwrite else "It is the export itself: name another one"
        raise ConfigError(f"{target} is there already. {advice}{'' if overwrite else ', or add --overwrite'}.")
    options = _options(values)
    found = convert_export(source, options)
    rows = [(row_path(row.path, target), _seconds(row.start), _seconds(row.end), row.label) for row in found.rows]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([HEADER, *rows])
    write_text(target, text.getvalue())
    problems = [f"{file}, {problem}" for file, problem in found.problems]
    if rows and not found.not_found:
        problems += [f"{target}, {problem}" for problem in _contradicted(target)]
    for note in found.notes:
        logger.warning("%s: %s", source, note)
    if found.not_found:
        logger.warning(
            "%d of the %d videos are not found, such as %s: they are in the list by their names. Name their folder "
            "with --videos, or put the list beside them",
            *(len(found.not_found), found.num_videos, found.not_found[0]),
        )
    return ConvertReport(output=target, conversion=found, problems=tuple(dict.fromkeys(problems)))


def _options(values: Mapping[str, Any]) -> ConvertOptions:
    options = build_settings(ConvertOptions, values)
    for name, given in (("--fps", options.frame_rate), ("--point", options.least_seconds)):
        if not 0 <= given <= 100_000:
            raise ConfigError(f"{name} must be a positive number, got {given:g}.")
    return options


def _contradicted(target: Path) -> tuple[RowProblem, ...]:
    """Rows that reach beyond their videos."""
    return read_intervals(target, overlaps=True).problems


def _seconds(time: float | None) -> str:
    return "" if time is None else f"{time:.6f}".rstrip("0").rstrip(".")
