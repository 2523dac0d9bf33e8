from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinescan.errors import ConfigError
from kinescan.evaluation.comparison import Comparison, compare
from kinescan.evaluation.predictions import VideoPrediction, read_predictions
from kinescan.evaluation.report_parts import FRAMES_FILE, PREDICTIONS_FILE, RESULTS_FILE, TRUTH_FILE
from kinescan.evaluation.temporal.activitynet import read_results, read_truth
from kinescan.evaluation.temporal.comparison import Answers, TemporalComparison, compare_answers
from kinescan.evaluation.temporal.frame_file import read_frame_predictions
from kinescan.evaluation.temporal.report import TASK
from kinescan.evaluation.temporal.results_report import TASK as RESULTS_TASK
from kinescan.events.rules import build_rules
from kinescan.runs.evaluate import HINT, evaluate
from kinescan.runs.folder import model_folder, run_of
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import read_json_object
from kinescan.runtime.launch import world_size
from kinescan.runtime.precision import AskedPrecision
from kinescan.runtime.run_folder import REPORT_FILE, RunFolder
from kinescan.runtime.urls import refuse_url

COMPARISON_FILE = "comparison.json"
COMPARISON_PAGE = "comparison.md"


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """A report, as files hold it.

    Attributes:
        name: the folder, as it was named.
        folder: of the report itself.
        report: report.json.
    """

    name: str
    folder: Path
    report: dict[str, Any]

    @property
    def has_times(self) -> bool:
        """Whether it is of answers with a time."""
        return self.report.get("task") in (TASK, RESULTS_TASK)

    def predictions(self) -> tuple[VideoPrediction, ...]:
        """Of each video, where they are answers for whole videos."""
        return read_predictions(self.folder / PREDICTIONS_FILE)

    def answers(self) -> Answers:
        """Of each video, where they have a time.

        Raises:
            ConfigError: a file of the report is missing or damaged.
        """
        frames = self.report["task"] == TASK
        rules = self.report.get("rules")
        if frames and not isinstance(rules, dict):
            raise ConfigError(f"{self.folder / REPORT_FILE} holds no rules. Write it again: kinescan eval {self.name}")
        return Answers(
            name=self.name,
            truth=read_truth(self.folder / TRUTH_FILE),
            detections=read_results(self.folder / RESULTS_FILE),
            predictions=read_frame_predictions(self.folder / FRAMES_FILE) if frames else (),
            rules=build_rules(rules, where=f"{self.folder / REPORT_FILE}: rules") if isinstance(rules, dict) else None,
            grace_seconds=self.grace_seconds,
        )

    @property
    def grace_seconds(self) -> float:
        """How long after its end an event may still be told.

        Raises:
            ConfigError: the report says something else than a number of seconds.
        """
        seconds = self.report.get("grace_seconds", 0.0)
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < float("inf"):
            raise ConfigError(f"{self.folder / REPORT_FILE}: grace_seconds must be 0 or more, got {seconds!r}.")
        return float(seconds)


def compare_reports(
    a: str | Path, b: str | Path, *, output: str | Path | None = None
) -> Comparison | TemporalComparison:
    """Scores of A minus those of B, video by video, from the predictions that `kinescan eval` or `train` left.

    Top-1 of answers for whole videos; of answers with a time mAP, delay, missed events and false alarms per hour.

    Args:
        a: a run's folder (its newest report is taken), or a folder with a report.
        b: the run or report whose scores are subtracted.
        output: folder for comparison.json and comparison.md; by default nothing is written.

    Raises:
        ConfigError: there is no report, they are of two kinds or share no video, or the output cannot be written.
    """
    first, second = _read(a), _read(b)
    if first.has_times != second.has_times:
        named = [scored.name for scored in (first, second) if scored.has_times]
        raise ConfigError(
            f"the answers in {named[0]} have a time, and those of the other are for whole videos: no score is of both. "
            "Compare two of one kind."
        )
    notes = _notes(first, second)
    found: Comparison | TemporalComparison
    if first.has_times:
        found = compare_answers(first.answers(), second.answers(), notes=notes)
    else:
        found = compare(first.predictions(), second.predictions(), name_a=first.name, name_b=second.name, notes=notes)
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
    precision: AskedPrecision = "auto",
    num_workers: int | None = None,
    overrides: Sequence[str] = (),
) -> Comparison | TemporalComparison:
    """As `compare_reports`, of the reports that are there; with data or views, of runs that are scored anew first.

    Args:
        a: a run's folder, or a folder with a report.
        b: the run or report whose scores are subtracted.
        data: videos to score both on; see `evaluate`.
        views: frames x clips x crops to score both with.
        output: folder for comparison.json and comparison.md; by default nothing is written.
        device: where to score.
        precision: to score in; see `evaluate`. Other than "auto", both are scored anew.
        num_workers: processes that read videos; see `evaluate`.
        overrides: settings to score both with; see `evaluate`.

    Raises:
        ConfigError: as for `compare_reports` and `evaluate`; or this is one of several processes, or what is to be
            scored anew is not the folder of a run.
    """
    if world_size() > 1:
        raise ConfigError("--compare is work for one process. Score both runs with torchrun, then compare without it.")
    if data is not None or views is not None or overrides or precision != "auto":
        placeless = [run for run in (a, b) if run_of(model_folder(run, hint=HINT)) is None]
        if placeless:
            raise ConfigError(
                f"{placeless[0]} is not a run folder: nowhere to write its new report. Score it first, kinescan eval "
                f"{placeless[0]} --data ... --output REPORT, and compare REPORT."
            )
        for run in (a, b):
            evaluate(
                run,
                data=data,
                views=views,
                device=device,
                precision=precision,
                num_workers=num_workers,
                overrides=overrides,
            )
    return compare_reports(a, b, output=output)


def _read(source: str | Path) -> _Scored:
    """The newest report in a folder."""
    refuse_url(source, "Copy the run's folder to this machine.")
    found = [folder for folder in reversed(RunFolder(Path(source)).report_folders) if _has_report(folder)]
    if not found:
        raise ConfigError(
            f"{source} holds no {REPORT_FILE} with a {PREDICTIONS_FILE}. Score it first: kinescan eval {source}"
        )
    folder = max(found, key=lambda folder: (folder / REPORT_FILE).stat().st_mtime)
    advice = f"Write it again: kinescan eval {source}"
    report = read_json_object(folder / REPORT_FILE, error=lambda text: ConfigError(f"{text} {advice}"))
    notes = report.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise ConfigError(f"{folder / REPORT_FILE}: notes must be texts. {advice}")
    return _Scored(name=str(source), folder=folder, report=report)


def _has_report(folder: Path) -> bool:
    return (folder / REPORT_FILE).is_file() and any(
        (folder / name).is_file() for name in (PREDICTIONS_FILE, RESULTS_FILE)
    )


def _notes(a: _Scored, b: _Scored) -> list[str]:
    """What differs between the two evaluations, and what their reports warn of."""
    notes = []
    precisions = a.report.get("precision"), b.report.get("precision")
    if None not in precisions and precisions[0] != precisions[1]:
        notes.append(
            f"The precisions differ ({precisions[0]} for A, {precisions[1]} for B), and part of the gap may come from "
            "them."
        )
    if a.report.get("views") != b.report.get("views"):
        views = f"{a.report.get('views')} for A, {b.report.get('views')} for B"
        notes.append(f"The views differ ({views}), and part of the gap may come from them.")
    grace = a.grace_seconds, b.grace_seconds
    if grace[0] == grace[1] > 0:
        notes.append(f"Alarms are right until {grace[0]:g} s after an event's end, as in both reports.")
    for letter, scored in (("A", a), ("B", b)):
        if scored.report.get("rules_from"):
            notes.append(f"{letter}: thresholds {scored.report['rules_from']}.")
        if scored.grace_seconds and grace[0] != grace[1]:
            notes.append(f"{letter}: alarms after an event's end count as false here, and not in its report.")
        notes += [f"{letter}: {note}" for note in scored.report.get("notes", [])]
        if scored.report.get("num_unreadable"):
            notes.append(f"{letter}: {scored.report['num_unreadable']} videos could not be read and were not scored.")
    return notes


def _write(folder: Path, found: Comparison | TemporalComparison) -> None:
    advice = "Choose another --output."
    write_text(folder / COMPARISON_FILE, to_json(found.to_json(), indent=1) + "\n", advice=advice)
    write_text(folder / COMPARISON_PAGE, found.to_markdown(), advice=advice)
