"""The plot of `training_compute.py`: accuracy against training FLOPs, and against CPU seconds."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

AXES = (("flops", 1e-12, "training compute, TFLOPs (counted)"), ("cpu_seconds", 1.0, "training, CPU seconds"))
"""Field of a point, factor, label."""
Points = Sequence[Mapping[str, float]]


def write(curves: Mapping[str, Mapping[str, Points]], path: Path) -> None:
    """Writes the SVG: a line for each row, the mean of its seeds, with their lowest and highest around it.

    Args:
        curves: row -> seed -> points, PKS4 first.
        path: of the SVG.
    """
    with mpl.rc_context({"svg.hashsalt": "kinescan", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9.6, 3.8), layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (field, factor, label) in zip(panels, AXES, strict=True):
            for row, seeds in curves.items():
                _line(axes, row, list(seeds.values()), field, factor)
            axes.set(xlabel=label, xscale="log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.grid(alpha=0.3)
        panels[0].set(ylabel="accuracy on test clips", ylim=(0, 1.02))
        panels[0].legend(fontsize=7, loc="upper left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def _line(axes: Axes, row: str, seeds: Sequence[Points], field: str, factor: float) -> None:
    """All but the first point, which cost nothing and cannot be shown on a logarithmic axis."""
    columns: list[Any] = list(zip(*(points[1:] for points in seeds), strict=True))
    x = [factor * statistics.mean(point[field] for point in column) for column in columns]
    tests = [[point["test"] for point in column] for column in columns]
    width = 2.6 if row == "PKS4" else 1.2
    (line,) = axes.plot(x, [statistics.mean(values) for values in tests], marker=".", linewidth=width, label=row)
    if len(seeds) > 1:
        axes.fill_between(x, [min(v) for v in tests], [max(v) for v in tests], alpha=0.15, color=line.get_color())
