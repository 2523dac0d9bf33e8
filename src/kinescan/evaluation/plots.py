from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kinescan.evaluation.metrics import ConfusionMatrix, ReliabilityBin
from kinescan.runtime.escaping import escape_plot
from kinescan.runtime.figure import save_figure

MOST_COUNTS = 20
"""Up to so many classes, every cell shows its count."""
MOST_NAMES = 60
"""Up to so many classes, every row and column has its name."""
MOST_LETTERS = 32
"""A longer name loses its middle."""


def plot_confusion(matrix: ConfusionMatrix, labels: Sequence[str], path: str | Path) -> None:
    """Writes the confusion matrix as a PNG: a row for each true class, shaded by the fraction of its videos.

    Args:
        matrix: [K, K].
        labels: the K classes' texts.
        path: the file to write.
    """
    num_classes = len(labels)
    side = min(4.5 + 0.28 * num_classes, 16.0)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    fractions = (matrix.double() / matrix.sum(1, keepdim=True).clamp(min=1)).numpy()
    image = axes.imshow(fractions, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="fraction of the true class", shrink=0.8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if num_classes <= MOST_NAMES:
        names = [escape_plot(label, length=MOST_LETTERS) for label in labels]
        size = 9 if num_classes <= MOST_COUNTS else 7
        axes.set_xticks(range(num_classes), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=size)
        axes.set_yticks(range(num_classes), names, fontsize=size)
    else:
        axes.set_title(f"{num_classes} classes, in the order of the table")
    if num_classes <= MOST_COUNTS:
        for row in range(num_classes):
            for column in range(num_classes):
                count = int(matrix[row, column])
                if count:
                    colour = "white" if fractions[row, column] > 0.55 else "black"
                    axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    save_figure(figure, path, dpi=120)


def plot_reliability(bins: Sequence[ReliabilityBin], path: str | Path) -> None:
    """Writes a reliability diagram as a PNG: accuracy over score, and below it how many videos have such scores.

    Args:
        bins: ranges of scores, ascending.
        path: the file to write.
    """
    figure = Figure(figsize=(4.8, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = [entry for entry in bins if entry.num_videos]
    lows, widths = [entry.low for entry in filled], [entry.high - entry.low for entry in filled]
    upper.plot([0, 1], [0, 1], color="grey", linestyle="--", label="perfect calibration")
    upper.bar(lows, [entry.accuracy for entry in filled], widths, align="edge", alpha=0.6, label="accuracy")
    upper.plot([entry.confidence for entry in filled], [entry.accuracy for entry in filled], "o", color="black", ms=3)
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="fraction of videos that are right")
    upper.legend(loc="upper left", fontsize=8)
    lower.bar(lows, [entry.num_videos for entry in filled], widths, align="edge", color="grey")
    lower.set(xlabel="score of the best class", ylabel="videos")
    save_figure(figure, path, dpi=120)
