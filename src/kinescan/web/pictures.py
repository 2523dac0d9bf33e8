"""The page's pictures: a timeline and frames with what moved, as HTML that needs no files."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor

from kinescan.runtime.escaping import escape_html
from kinescan.runtime.quantities import percent
from kinescan.web.analysis import MOST_SHOWN, Analysis

COLOURS = ("#2f7fd1", "#e07b39", "#2a9d6f", "#c2477f", "#8a63d2", "#b58900", "#3aa6b9", "#d1495b")
_WIDTH, _HEIGHT, _LEFT, _ROW = 1000, 190, 8, 22
_ARROW = 0.85
"""Of the distance of two patches: the longest arrow."""


def timeline(analysis: Analysis, title: str = "") -> str:
    """Scores over time as curves, with the events as bars under them, as an SVG with a table for screen readers."""
    shown = np.argsort(-analysis.scores.max(0))[:MOST_SHOWN]
    length = max(analysis.duration, 1e-6)

    def x(seconds: float) -> float:
        return _LEFT + (_WIDTH - 2 * _LEFT) * min(max(seconds / length, 0), 1)

    rows = sorted({event.label for event in analysis.events})
    top, bottom = 12, _HEIGHT - 28
    height = _HEIGHT + _ROW * len(rows)
    parts = [f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _LEFT}" y1="{bottom}" y2="{bottom}"/>']
    for share in (0.5, 1.0):
        y = bottom - share * (bottom - top)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _LEFT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        anchored = f'<text class="tick" text-anchor="end" x="{_WIDTH - _LEFT - 2}" y="{y - 4:.1f}">'
        parts.append(f"{anchored}{percent(share)}</text>")
    for tick in np.linspace(0, length, 6):
        anchor = "start" if tick == 0 else "end" if tick == length else "middle"
        parts.append(
            f'<text class="tick" text-anchor="{anchor}" x="{x(tick):.1f}" y="{bottom + 16}">{tick:.1f} s</text>'
        )
    for place, index in enumerate(shown):
        points = " ".join(
            f"{x(second):.1f},{bottom - score * (bottom - top):.1f}"
            for second, score in zip(analysis.seconds, analysis.scores[:, index], strict=True)
        )
        parts.append(
            f'<polyline fill="none" stroke="{COLOURS[place % len(COLOURS)]}" stroke-width="3" points="{points}"/>'
        )
    by_label = {analysis.labels[index]: COLOURS[place % len(COLOURS)] for place, index in enumerate(shown)}
    for row, label in enumerate(rows):
        y = _HEIGHT + row * _ROW
        for event in analysis.events:
            if event.label == label:
                width = max(4.0, x(event.end) - x(event.start))
                colour = by_label.get(label, "#888888")
                said = escape_html(f"{label}: {event.start:.2f} s to {event.end:.2f} s, {percent(event.score)}")
                parts.append(
                    f'<rect rx="4" x="{x(event.start):.1f}" y="{y}" width="{width:.1f}" height="{_ROW - 6}" '
                    f'fill="{colour}"><title>{said}</title></rect>'
                    f'<text class="bar" x="{x(event.start) + 6:.1f}" y="{y + 13}">{escape_html(label)}</text>'
                )
    legend = "".join(
        f'<span class="ks-key"><i style="background:{COLOURS[place % len(COLOURS)]}"></i>'
        f"{escape_html(analysis.labels[index])} {percent(float(analysis.scores[:, index].max()))}</span>"
        for place, index in enumerate(shown)
    )
    listed = "".join(
        f"<li>{escape_html(event.label)}: {event.start:.2f} s to {event.end:.2f} s</li>" for event in analysis.events
    )
    said = escape_html(f"{title + ': ' if title else ''}{analysis.best}")
    return (
        f'<section class="ks-timeline"><h3>{escape_html(title)} '
        f'<b class="ks-label">{escape_html(analysis.best)}</b></h3>'
        f'<div class="ks-wide" tabindex="0"><svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="Scores over time. {said}">{"".join(parts)}</svg></div>'
        f'<div class="ks-legend">{legend}</div><ul class="ks-events">{listed}</ul></section>'
    )


def frames(analysis: Analysis) -> str:
    """A strip of the sampled frames: what moved, what changed, and how fast the scanner updates."""
    if analysis.maps is None:
        return '<p class="ks-note">This model is not a PKS4, so nothing can be shown of what it looks at.</p>'
    pixels = analysis.frames.permute(0, 2, 3, 1).numpy()
    chosen = np.linspace(0, len(pixels) - 2, min(len(pixels) - 1, MOST_SHOWN)).round().astype(int)
    change = analysis.maps.change / float(analysis.maps.change.quantile(0.995).clamp(min=1e-6))
    rows = [("what moves", "motion"), ("what changes", "change")]
    speed = analysis.update_speed
    if speed is not None:
        low, high = speed.min(), speed.max()
        speed = (speed - low) / (high - low).clamp(min=1e-9)
        rows.append(("update speed (Delta)", "speed"))
    height, width = pixels.shape[1:3]
    cell = 2.1
    figure = Figure(figsize=(cell * len(chosen), cell * height / width * len(rows) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), len(chosen), squeeze=False)
    for column, t in enumerate(chosen):
        for row, (name, kind) in enumerate(rows):
            axes = grid[row, column]
            axes.imshow(_faded(pixels[t]) if kind != "motion" else pixels[t])
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(name, fontsize=9)
            if row == 0:
                axes.set_title(f"{analysis.frame_seconds[t]:.2f} s", fontsize=9)
            if kind == "motion":
                _arrows(axes, analysis.maps.displacement[t], pixels.shape[1:3])
            else:
                _heat(axes, (change if kind == "change" else speed)[t], pixels.shape[1:3], kind)  # type: ignore[index]
    _legend(figure)
    alt = "Sampled frames with arrows where patches move, and heat maps of change and of the scanner's update speed"
    return f'<div class="ks-wide" tabindex="0"><img class="ks-frames" alt="{alt}" src="{_data_url(figure)}"></div>'


def _square(size: tuple[int, int]) -> tuple[float, float, float]:
    """Left, top and side of the part of a frame that the model sees."""
    height, width = size
    side = min(height, width)
    return (width - side) / 2, (height - side) / 2, side


def _arrows(axes: Any, displacement: Tensor, size: tuple[int, int]) -> None:
    """From the middle of each patch, no longer than to the next one, so that none overlaps another."""
    left, top, side = _square(size)
    down, right = displacement.numpy()
    rows, columns = down.shape
    row, column = np.nonzero((down != 0) | (right != 0))
    if not len(row):
        return
    step = side / columns
    dy, dx = down[row, column], right[row, column]
    reach = np.maximum(np.hypot(dx, dy), 1e-9)
    scale = _ARROW * step * np.minimum(1, 0.45 + 0.2 * reach) / reach
    angle = (np.arctan2(dy, dx) / (2 * np.pi)) % 1.0
    colours = hsv_to_rgb(np.stack([angle, np.full_like(angle, 0.9), np.full_like(angle, 1.0)], axis=1))
    # the middle of the arrow is the middle of its patch
    axes.quiver(
        left + (column + 0.5) * step - 0.5,
        top + (row + 0.5) * side / rows - 0.5,
        *(dx * scale, dy * scale),
        color=colours,
        edgecolor="black",
        linewidth=0.4,
        pivot="mid",
        angles="xy",
        scale_units="xy",
        scale=1.0,
        width=0.016,
        headwidth=3.4,
        headlength=3.6,
        headaxislength=3.2,
    )


def _heat(axes: Any, values: Tensor, size: tuple[int, int], kind: str) -> None:
    left, top, side = _square(size)
    fractions = values.clamp(0, 1).numpy()
    extent = (left - 0.5, left + side - 0.5, top + side - 0.5, top - 0.5)
    colours = "inferno" if kind == "change" else "viridis"
    axes.imshow(fractions, cmap=colours, vmin=0, vmax=1, alpha=0.25 + 0.6 * fractions, extent=extent)
    axes.set_xlim(-0.5, size[1] - 0.5)
    axes.set_ylim(size[0] - 0.5, -0.5)


def _legend(figure: Any) -> None:
    """What colours mean, in words, under the strip."""
    names = (("right", 0.0), ("down", 0.25), ("left", 0.5), ("up", 0.75))
    handles = [
        Line2D([], [], marker="s", linestyle="", color=hsv_to_rgb((hue, 0.9, 1.0)), label=f"moves {name}")
        for name, hue in names
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def _faded(pixels: NDArray[Any]) -> NDArray[Any]:
    grey = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
    faded: NDArray[Any] = (0.6 * grey).astype(np.uint8)
    return faded


def _data_url(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def seconds_held(held: Sequence[tuple[float, int]], duration: float) -> str:
    """Which seconds of a video a VLM's compressed state still holds tokens of, as bars.

    Args:
        held: time of a patch, and how many of its tokens are held, on average over layers.
        duration: of the video.
    """
    most = max((count for _, count in held), default=1) or 1
    length = max(duration, 1e-6)
    width = max(2.0, (_WIDTH - 2 * _LEFT) / max(1, len(held)) - 1)
    bars = "".join(
        f'<rect x="{_LEFT + (_WIDTH - 2 * _LEFT - width) * second / length:.1f}" y="{70 - 60 * count / most:.1f}" '
        f'width="{width:.1f}" height="{60 * count / most:.1f}" fill="{COLOURS[0]}">'
        f"<title>{second:.1f} s: {count} tokens</title></rect>"
        for second, count in held
    )
    return (
        f'<svg class="ks-held" viewBox="0 0 {_WIDTH} 90" role="img" aria-label="Seconds whose tokens are still held">'
        f'{bars}<text class="tick" x="{_LEFT}" y="86">0 s</text><text class="tick" text-anchor="end" '
        f'x="{_WIDTH - _LEFT}" y="86">{duration:.0f} s</text></svg>'
    )
