from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from kinescan.data.interval_summary import ClassLengths
from kinescan.runtime.escaping import escape_plot
from kinescan.runtime.figure import save_figure

MOST_CLASSES = 60


def plot_lengths(classes: Sequence[ClassLengths], path: str | Path) -> None:
    """Writes a picture of how long the intervals of each class last: a row a class, a dot an interval.

    Args:
        classes: with their lengths; of more than 60, those with most intervals.
        path: the file to write, which ends in .png.

    Raises:
        ConfigError: the file cannot be written.
    """
    kept = sorted((entry for entry in classes if entry.seconds), key=lambda entry: -len(entry.seconds))[:MOST_CLASSES]
    figure = Figure(figsize=(8.0, 1.4 + 0.3 * max(len(kept), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, entry in enumerate(kept):
        axes.plot(entry.seconds, [row] * len(entry.seconds), "|", color="tab:blue", alpha=0.5, markersize=10)
        axes.plot([entry.seconds[len(entry.seconds) // 2]], [row], "o", color="black", markersize=4)
    names = [f"{escape_plot(entry.label, length=32)} ({len(entry.seconds)})" for entry in kept]
    axes.set_yticks(range(len(kept)), names, fontsize=8)
    axes.invert_yaxis()
    if kept:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(LogFormatter())
        axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    axes.set_xlabel("seconds (dot: median)")
    axes.grid(visible=True, axis="x", alpha=0.3)
    save_figure(figure, path, dpi=120)
