"""Curves of a result as an SVG that says which numbers it shows, so that nobody has to draw it again to check it."""

import hashlib
import json
import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from findings import OURS, Curves, words

SIZE_INCHES = (6.4, 3.6)


def draw(curves: Curves, title: str, path: Path) -> None:
    """Writes the curves, ours first and thicker, on axes that fit a wide range."""
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    scale, unit = _scale(curves)
    for name, line in curves.lines.items():
        points = [(x, y * scale) for x, y in zip(curves.sizes, line, strict=True) if y is not None]
        ours = name.startswith(OURS)
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=2.4 if ours else 1.2, label=name)
    if curves.sizes[-1] >= 4 * curves.sizes[0] > 0:
        axes.set_xscale("log", base=2)
        axes.set_xticks(curves.sizes, [f"{size:g}" for size in curves.sizes])
        axes.minorticks_off()
    values = [y for line in curves.lines.values() for y in line if y]
    if min(values) > 0 and max(values) > 8 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    else:
        axes.set_ylim(bottom=0)
    axes.set(xlabel=curves.x_label, ylabel=unit, title=title)
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Text stays text: small files, and words that can be searched.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kinescan"}):
        figure.savefig(path, metadata={"Date": None, "Description": digest(curves, title)})


def digest(curves: Curves, title: str) -> str:
    """Names the numbers that a picture shows."""
    content = [title, curves.x_label, curves.quantity, curves.sizes, dict(curves.lines)]
    return "numbers " + hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def shows(path: Path, curves: Curves, title: str) -> bool:
    """Whether the picture is there and shows these numbers."""
    return path.is_file() and digest(curves, title) in path.read_text(encoding="utf-8")


def _scale(curves: Curves) -> tuple[float, str]:
    largest = max(y for line in curves.lines.values() for y in line if y is not None)
    if curves.quantity.endswith("_seconds"):
        clock = words(curves.quantity.removesuffix("_seconds"))
        for short, long in (("cpu", "CPU time"), ("wall", "wall time"), ("device", "device time")):
            clock = re.sub(rf"\b{short}$", long, clock)
        return (1000, f"{clock}, ms") if largest < 10 else (1, f"{clock}, s")
    if "bytes" in curves.quantity:
        name = words(curves.quantity.replace("_bytes", ""))
        return (2**-30, f"{name}, GiB") if largest >= 2**30 else (2**-20, f"{name}, MiB")
    return 1, "" if curves.quantity == "value" else words(curves.quantity)
