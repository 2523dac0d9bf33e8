"""The files of a study's result: JSON, page, tables for a spreadsheet and for LaTeX, learning curves."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import escape_latex, to_json
from kinescan.studies.job import RunRecord
from kinescan.studies.plots import plot_curves
from kinescan.studies.result import Cell, StudyResult, heading, shown_difference, shown_spread

RESULT_FILE, PAGE_FILE = "study.json", "study.md"
TABLE_FILE, RUNS_FILE, LATEX_FILE, CURVES_FILE = "study.csv", "runs.csv", "study.tex", "curves.png"
_OF_RUNS = (
    *("row", "data", "seed", "status", "seconds", "cpu_seconds", "train_seconds", "training_flops", "epochs"),
    *("best_epoch", "steps", "num_training", "num_parameters", "num_trained", "macs", "code", "folder"),
)


def save_result(result: StudyResult) -> None:
    """Writes study.json, study.md, study.csv, runs.csv, study.tex and curves.png into the study's folder.

    Raises:
        ConfigError: the folder cannot be written.
    """
    folder = result.output
    write_text(folder / RESULT_FILE, to_json(result.to_json(), indent=1) + "\n")
    write_text(folder / PAGE_FILE, result.to_markdown())
    write_text(folder / TABLE_FILE, to_csv(result))
    write_text(folder / RUNS_FILE, runs_to_csv(result.runs))
    write_text(folder / LATEX_FILE, to_latex(result))
    if result.runs:
        plot_curves(result, folder / CURVES_FILE)


def to_csv(result: StudyResult) -> str:
    """A line for each row, data set and score; numbers as they are, an empty field for what is not known."""
    header = ["row", "data", "metric", "mean", "standard_deviation", "n"]
    header += ["difference", "difference_low", "difference_high", "difference_n", "base"]
    return _csv(header, (_csv_row(cell, result.study.base_row) for cell in result.cells()))


def _csv_row(cell: Cell, base: str) -> list[Any]:
    found, difference = cell.spread, cell.difference
    numbers = [None, None, 0] if found is None else [found.mean, found.standard_deviation, found.n]
    paired = [None] * 4 if difference is None else [difference.mean, difference.low, difference.high, difference.n]
    return [cell.row, cell.data, cell.metric, *numbers, *paired, base]


def runs_to_csv(runs: Sequence[RunRecord]) -> str:
    """A line for each run, with all of its scores."""
    scores = list(dict.fromkeys(name for run in runs for name in run.scores))
    rows = ([*(getattr(run, name) for name in _OF_RUNS), *(run.scores.get(name) for name in scores)] for run in runs)
    return _csv([*_OF_RUNS, *scores], rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(["" if value is None or _is_nan(value) else value for value in row])
    return text.getvalue()


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def to_latex(result: StudyResult) -> str:
    """The table for a paper (booktabs): a block for each data set."""
    metrics, rows = result.metrics, result.study.rows
    extra = result.extra_columns
    header = ["", *(heading(metric) for metric in metrics), "$n$", *(["difference"] if len(rows) > 1 else []), *extra]
    lines = ["% needs \\usepackage{booktabs}", f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", "\\toprule"]
    lines.append(" & ".join(name if name == "$n$" else escape_latex(name) for name in header) + " \\\\")
    for data in result.data:
        lines.append("\\midrule")
        if data:
            lines.append(f"\\multicolumn{{{len(header)}}}{{l}}{{\\emph{{{escape_latex(data)}}}}} \\\\")
        for row in rows:
            cells = [result.cell(row.name, data, metric) for metric in metrics]
            shown = [escape_latex(row.name), *(_math(shown_spread(cell)) for cell in cells)]
            shown.append(str(cells[0].spread.n if cells[0].spread else 0))
            if len(rows) > 1:
                shown.append(_math(shown_difference(cells[0])) if row.name != result.study.base_row else "base")
            shown += [escape_latex(str(row.columns.get(name, ""))) for name in extra]
            lines.append(" & ".join(shown) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _math(text: str) -> str:
    signs = text.replace("±", r"\pm").replace(" to ", r"\text{ to }")
    return "--" if text == "-" else f"${signs}$"
