"""Learning curves of a study's rows, side by side."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kinescan.runtime.escaping import escape_plot
from kinescan.runtime.figure import save_figure
from kinescan.studies.curves import Curves, read_curves
from kinescan.studies.result import ALL_DATA, StudyResult, heading

_STYLES = ("-", "--", ":", "-.")
_NUM_COLOURS = 10
_MOST_ROWS = 40
"""More rows than this are not told apart by eye."""


def plot_curves(result: StudyResult, path: str | Path) -> None:
    """Writes the learning curves as a picture: for each data set the losses, and the score that the table compares.

    A line is the mean over the seeds, and the band reaches from the lowest to the highest seed. Dashed losses are those
    of the videos that the best checkpoint is chosen on.

    Args:
        result: of the study.
        path: the file to write.

    Raises:
        ConfigError: the file cannot be written.
    """
    data = [name for name in result.data if name != ALL_DATA]
    figure = Figure(figsize=(11, 3.6 * len(data) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(data), 2, squeeze=False)
    metric = result.metrics[0]
    for line, name in enumerate(data):
        losses, scores = axes[line]
        for index, row in enumerate(result.study.rows[:_MOST_ROWS]):
            curves = [read_curves(run.folder) for run in result.runs if (run.row, run.data) == (row.name, name)]
            colour = f"C{index % _NUM_COLOURS}"
            style = _STYLES[index // _NUM_COLOURS % len(_STYLES)]
            label = escape_plot(row.name)
            _draw(losses, _series(curves, "epochs", "loss"), colour=colour, linestyle=style)
            _draw(losses, _series(curves, "evaluations", "loss"), colour=colour, linestyle="--")
            _draw(
                scores, _series(curves, "evaluations", metric), colour=colour, linestyle=style, label=label, scale=100.0
            )
        _finish(losses, escape_plot(name), "loss (dashed: of the videos to choose on)")
        _finish(scores, escape_plot(name), heading(metric))
        if scores.get_legend_handles_labels()[0]:
            scores.legend(fontsize="small")
    save_figure(figure, path, dpi=110)


def _series(
    curves: Sequence[Curves], kind: Literal["epochs", "evaluations"], name: str
) -> Iterator[tuple[int, list[float]]]:
    """Epoch -> the values of the runs that have one there."""
    parts: list[dict[int, dict[str, float]]] = [getattr(curve, kind) for curve in curves]
    for epoch in sorted({epoch for part in parts for epoch in part}):
        values = [part[epoch][name] for part in parts if name in part.get(epoch, {})]
        if values:
            yield epoch, values


def _draw(
    axes: Any, series: Iterator[tuple[int, list[float]]], *, colour: str, scale: float = 1.0, **look: Any
) -> None:
    points = list(series)
    if not points:
        return
    epochs = [epoch for epoch, _ in points]
    # a single evaluation is a point, which a line does not show
    marker = {"marker": "o", "markersize": 3.0} if len(points) <= 20 else {}
    axes.plot(epochs, [scale * mean(values) for _, values in points], color=colour, **marker, **look)
    if any(len(values) > 1 for _, values in points):
        low, high = ([scale * pick(values) for _, values in points] for pick in (min, max))
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)


def _finish(axes: Any, title: str, label: str) -> None:
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.xaxis.get_major_locator().set_params(integer=True)
