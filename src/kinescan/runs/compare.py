from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinescan.errors import ConfigError
from kinescan.evaluation.comparison import Comparison, compare
from kinescan.evaluation.predictions import PREDICTIONS_FILE, VideoPrediction, read_predictions
from kinescan.runs.evaluate import HINT, evaluate
from kinescan.runs.folder import model_folder, run_of
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import read_json_object
from kinescan.runtime.launch import world_size
from kinescan.runtime.run_folder import REPORT_FILE, RunFolder

COMPARISON_FILE = "comparison.json"
COMPARISON_PAGE = "comparison.md"


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """A report with the prediction for each video, as files hold them.

    Attributes:
        name: the folder, as it was named.
        predictions: of each video.
        report: report.json.
    """

    name: str
    predictions: tuple[VideoPrediction, ...]
    report: dict[str, Any]


def compare_reports(a: str | Path, b: str | Path, *, output: str | Path | None = None) -> Comparison:
    """Top-1 of A minus top-1 of B, video by video, from the predictions that `kinescan eval` or `train` left.

    Args:
        a: a run's folder (its newest report is taken), or a folder with a report.
        b: the other.
        output: folder for comparison.json and comparison.md; by default nothing is written.

    Raises:
        ConfigError: there is no report, no shared video, or the output cannot be written.
    """
    first, second = _read(a), _read(b)
    found = compare(
        first.predictions, second.predictions, name_a=first.name, name_b=second.name, notes=_notes(first, second)
    )
    if output is not None:
        _write(Path(output), found)
    return found


def compare_runs(
    a: str,
    b: str,
    *,
    data: str | Path | None = None,
    views: str | None = None,
    output: str | Path | None = None,
    device: str = "auto",
    num_workers: int = 0,
) -> Comparison:
    """As `compare_reports`, of the reports that are there; with data or views, of runs that are scored anew first.

    Args:
        a: a run's folder, or a folder with a report.
        b: the other.
        data: videos to score both on; see `evaluate`.
        views: frames x clips x crops to score both with.
        output: folder for comparison.json and comparison.md; by default nothing is written.
        device: where to score.
        num_workers: processes that read videos.

    Raises:
        ConfigError: as for `compare_reports` and `evaluate`; or this is one of several processes, or what is to be
            scored anew is not the folder of a run.
    """
    if world_size() > 1:
        raise ConfigError("--compare is work for one process. Score both runs with torchrun, then compare without it.")
    if data is not None or views is not None:
        placeless = [run for run in (a, b) if run_of(model_folder(run, hint=HINT)) is None]
        if placeless:
            raise ConfigError(
                f"{placeless[0]} is not a run folder: nowhere to write its new report. Score it first, kinescan eval "
                f"{placeless[0]} --data ... --output REPORT, and compare REPORT."
            )
        for run in (a, b):
            evaluate(run, data=data, views=views, device=device, num_workers=num_workers)
    return compare_reports(a, b, output=output)


def _read(source: str | Path) -> _Scored:
    """The newest report in a folder."""
    found = [folder for folder in reversed(RunFolder(Path(source)).report_folders) if _has_report(folder)]
    if not found:
        raise ConfigError(
            f"{source} holds no {REPORT_FILE} with a {PREDICTIONS_FILE}. Score it first: kinescan eval {source}"
        )
    folder = max(found, key=lambda folder: (folder / PREDICTIONS_FILE).stat().st_mtime)
    advice = f"Write it again: kinescan eval {source}"
    report = read_json_object(folder / REPORT_FILE, error=lambda text: ConfigError(f"{text} {advice}"))
    notes = report.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise ConfigError(f"{folder / REPORT_FILE}: notes must be texts. {advice}")
    return _Scored(name=str(source), predictions=read_predictions(folder / PREDICTIONS_FILE), report=report)


def _has_report(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (REPORT_FILE, PREDICTIONS_FILE))


def _notes(a: _Scored, b: _Scored) -> list[str]:
    """What differs between the two evaluations, and what their reports warn of."""
    notes = []
    if a.report.get("views") != b.report.get("views"):
        views = f"{a.report.get('views')} for A, {b.report.get('views')} for B"
        notes.append(f"The views differ ({views}), and part of the gap may come from them.")
    for letter, scored in (("A", a), ("B", b)):
        notes += [f"{letter}: {note}" for note in scored.report.get("notes", [])]
        if scored.report.get("num_unreadable"):
            notes.append(f"{letter}: {scored.report['num_unreadable']} videos could not be read and were not scored.")
    return notes


def _write(folder: Path, found: Comparison) -> None:
    advice = "Choose another --output."
    write_text(folder / COMPARISON_FILE, to_json(found.to_json(), indent=1) + "\n", advice=advice)
    write_text(folder / COMPARISON_PAGE, found.to_markdown(), advice=advice)
