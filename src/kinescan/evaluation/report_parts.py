"""What reports of every kind have in common."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from kinescan.data.datasets import Unreadable
from kinescan.errors import ConfigError
from kinescan.evaluation.temporal.detection import DetectionScores
from kinescan.profiling.cost import Cost
from kinescan.profiling.environment import Environment
from kinescan.runtime.addresses import require_local
from kinescan.runtime.escaping import escape_markdown
from kinescan.runtime.files import read_json_object
from kinescan.runtime.precision import Precision
from kinescan.runtime.quantities import percent
from kinescan.runtime.run_folder import REPORT_FILE

logger = logging.getLogger(__name__)

PAGE_FILE = "report.md"
PREDICTIONS_FILE = "predictions.jsonl"
CONFUSION_FILE, RELIABILITY_FILE = "confusion.png", "reliability.png"
"""Of a report of a model that answers for whole videos."""
RESULTS_FILE, TRUTH_FILE, FRAMES_FILE = "results.json", "truth.json", "frames.safetensors"
DECODED_FILE = "results_decoded.json"
CURVE_FILE, TIMELINES = "curve.png", "timelines"
"""Of a report of a model that answers for each frame, as the lines above; the last one is a folder."""
_FILES = (
    *(REPORT_FILE, PAGE_FILE, PREDICTIONS_FILE, CONFUSION_FILE, RELIABILITY_FILE),
    *(RESULTS_FILE, DECODED_FILE, TRUTH_FILE, FRAMES_FILE, CURVE_FILE, TIMELINES),
)
MOST_LISTED = 20
"""How many videos, files or classes the page lists; report.json lists all."""


@dataclass(frozen=True, kw_only=True)
class ReportFields:
    """What the report of a model says beside its numbers, whether it answers for whole videos or for each frame.

    Attributes:
        model: name of the model.
        data: what it was evaluated on, as the user named it.
        environment: hardware, versions, commit.
        seed: of the run that trained it; None when it is not known.
        precision: that the model computed in; empty where that is not known, as of an exported one.
        notes: what one has to know to read the numbers right, a sentence or two each.
        cost: parameters and MACs of one view; None leaves them out.
    """

    model: str
    data: str
    environment: Environment
    seed: int | None = None
    precision: Precision | Literal[""] = ""
    notes: tuple[str, ...] = ()
    cost: Cost | None = None

    def plain_fields(
        self, numbers: Mapping[str, Any], *, num_videos: int, unreadable: Sequence[Unreadable], seconds: float
    ) -> dict[str, Any]:
        """What report.json holds: these fields before and after the numbers.

        Args:
            numbers: of this kind of report, as plain values.
            num_videos: that were scored.
            unreadable: files that could not be read.
            seconds: how long it took.
        """
        return {
            "model": self.model,
            "data": self.data,
            "precision": self.precision or None,
            "num_videos": num_videos,
            "num_unreadable": len(unreadable),
            "notes": list(self.notes),
            **numbers,
            "unreadable": [{"path": str(file.path), "reason": file.reason} for file in unreadable],
            "cost": None if self.cost is None else _plain_cost(self.cost),
            "seconds": round(seconds, 3),
            "seed": self.seed,
            "environment": asdict(self.environment),
        }

    def title_line(self) -> str:
        """The title of the page."""
        return title_line(self.model, self.data)

    def origin_lines(self, seconds: float) -> Iterator[str]:
        """Where it was measured, and how long that took."""
        yield from origin_lines(self.environment, seed=self.seed, precision=self.precision, seconds=seconds)


@contextmanager
def report_folder(folder: Path, plain: Mapping[str, Any], *, same: Sequence[str]) -> Iterator[None]:
    """The folder of a report, made if need be and empty of reports of anything else, while the files are written.

    Args:
        folder: of the reports.
        plain: the report to be written, as report.json holds it.
        same: keys in which two reports agree where the new one replaces the old one; others are set aside.

    Raises:
        ConfigError: the folder or a file in it cannot be written.
    """
    require_local(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _set_aside_others(folder, plain, same=same)
        yield
    except OSError as error:
        raise ConfigError(
            f"the report cannot be written to {folder}: {error.strerror or error}. Choose another output folder."
        ) from error


def title_line(model: str, data: str) -> str:
    """The title of a page."""
    return f"# {escape_markdown(model)} on {escape_markdown(data)}\n"


def plain_detection_scores(detection: Mapping[str, DetectionScores]) -> dict[str, Any]:
    """MAP of intervals as report.json holds it."""
    return {
        name: {"tious": list(found.tious), "map": list(found.mean), "average_map": found.average_map}
        for name, found in detection.items()
    }


def interval_lines(detection: Mapping[str, DetectionScores]) -> Iterator[str]:
    """The table of mAP of intervals over tIoU."""
    yield "\n## Intervals\n\n| tIoU | mAP |\n|---|---:|"
    found = {
        round(tiou, 2): value
        for scores in detection.values()
        for tiou, value in zip(scores.tious, scores.mean, strict=True)
    }
    for tiou, value in sorted(found.items()):
        yield f"| {tiou:g} | {percent(value)} |"


def note_lines(notes: Sequence[str]) -> Iterator[str]:
    """What one has to know beside the numbers."""
    for note in notes:
        yield f"\n**Note.** {escape_markdown(note)}"


def unreadable_lines(unreadable: Sequence[Unreadable], num_scored: int) -> Iterator[str]:
    """The files that could not be read, with the reason of each."""
    if not unreadable:
        return
    total = num_scored + len(unreadable)
    yield f"\n**{len(unreadable)} of {total} files could not be read**; no number here counts them:\n"
    for file in unreadable[:MOST_LISTED]:
        yield f"- {escape_markdown(str(file.path))}: {escape_markdown(file.reason)}"
    if len(unreadable) > MOST_LISTED:
        yield f"- and {len(unreadable) - MOST_LISTED} more, in {REPORT_FILE}"


def listed(labels: Sequence[str]) -> str:
    """Names of classes in a sentence of a page."""
    more = f", and {len(labels) - MOST_LISTED} more" if len(labels) > MOST_LISTED else ""
    return ", ".join(map(escape_markdown, labels[:MOST_LISTED])) + more


def origin_lines(here: Environment, *, seed: int | None, precision: str, seconds: float) -> Iterator[str]:
    """Where it was measured."""
    packages = ", ".join(f"{name} {version}" for name, version in here.packages.items())
    devices = ", ".join(here.accelerators) or "none"
    yield "\n## Where it was measured\n"
    yield f"- kinescan {here.kinescan}, commit {here.commit or 'unknown'}, seed {seed}"
    yield f"- Python {here.python}, {packages}"
    yield f"- {here.cpu}, {here.num_cores} cores, {here.memory_gib} GiB; accelerators: {devices}; {here.system}"
    yield f"- {seconds:.1f} s{f', computed in {precision}' if precision else ''}"


def _set_aside_others(folder: Path, report: Mapping[str, Any], *, same: Sequence[str]) -> None:
    """Moves a report of another model, or of other data, out of the way: to `earlier-1`, `earlier-2`, ...

    Args:
        folder: of the reports.
        report: the one to be written, as plain values.
        same: keys in which two reports agree where the new one replaces the old one.
    """
    try:
        there = read_json_object(folder / REPORT_FILE)
    except ConfigError:
        return
    if all(there.get(key) == report.get(key) for key in same):
        return
    earlier = next(path for number in count(1) if not (path := folder / f"earlier-{number}").exists())
    earlier.mkdir()
    for name in _FILES:
        if (folder / name).exists():
            os.replace(folder / name, earlier / name)
    logger.info("the report that was there, of %s on %s: %s", there.get("model"), there.get("data"), earlier)


def _plain_cost(cost: Cost) -> dict[str, Any]:
    """Parameters and MACs as report.json holds them."""
    return {
        "num_frames": cost.num_frames,
        "image_size": cost.image_size,
        "num_parameters": cost.num_parameters,
        "num_trained": cost.num_trained,
        "macs_without_attention": cost.macs.without_attention,
        "macs_with_attention": cost.macs.with_attention,
        "macs_as_published": cost.macs.published,
    }
