"""`kinescan eval RESULTS.json`: detected intervals of any model, scored on the truth."""

import logging
from pathlib import Path

from kinescan.data.interval_layouts import find_interval_layout
from kinescan.data.intervals import Interval
from kinescan.errors import ConfigError
from kinescan.evaluation.temporal.activitynet import is_truth, read_results, read_truth
from kinescan.evaluation.temporal.results_report import ResultsReport, score_results
from kinescan.runs.evaluate_frames import EvalSettings, read_test_intervals
from kinescan.runtime.folder_lock import locked
from kinescan.runtime.output_folder import prepare_output

logger = logging.getLogger(__name__)


def evaluate_results(
    results: str | Path,
    *,
    data: str | Path | None,
    output: str | Path | None = None,
    settings: EvalSettings | None = None,
) -> ResultsReport:
    """Scores detected intervals in ActivityNet's format, such as those of somebody else's model.

    Args:
        results: the file, or the lines that an evaluation leaves that was ended early.
        data: the truth: ActivityNet's JSON, for which no video is needed, or any labels with a start and an end.
        output: folder of the report; by default nothing is written.
        settings: which part of the truth.

    Raises:
        ConfigError: no truth is named, a file cannot be read, or they share no video.
    """
    settings = settings or EvalSettings()
    found = read_results(results)
    if data is None:
        raise ConfigError(
            f"{results} holds results; name the truth to score them on: --data TRUTH, a csv of path,start,end,label or "
            "a JSON file in ActivityNet's format."
        )
    folder = None if output is None else prepare_output(output)
    truth = _truth(data, settings)
    sound = {video: tuple(one for one in own if one.end_seconds > one.start_seconds) for video, own in truth.items()}
    num_empty = sum(map(len, truth.values())) - sum(map(len, sound.values()))
    note = (
        f"{num_empty} true intervals end no later than they start; they are left out, as OpenTAD and ActionFormer do."
    )
    report = score_results(sound, found, results=str(results), data=str(data), notes=(note,) if num_empty else ())
    if folder is not None:
        with locked(folder):
            report.save(folder)
        logger.info("report: %s", folder / "report.md")
    return report


def _truth(data: str | Path, settings: EvalSettings) -> dict[str, tuple[Interval, ...]]:
    given = settings.data
    if is_truth(data):
        return read_truth(data, subset=settings.subset)
    if find_interval_layout(data, given.reader, given.root or None) is None:
        raise ConfigError(
            f"{data} holds no labels with a start and an end. Name a csv of path,start,end,label, a JSON file in "
            "ActivityNet's format, or another layout of docs/data.md."
        )
    table = read_test_intervals(data, given, overlaps=True)
    return {video.video_id: video.intervals for video in table.videos}
