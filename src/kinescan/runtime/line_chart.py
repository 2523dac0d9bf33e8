"""A chart of lines as SVG that stands in a page and needs no files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib.ticker import MaxNLocator

from kinescan.runtime.escaping import escape_html

COLOURS = ("#2f7fd1", "#c2611f", "#1f8a5f", "#b83b75", "#7a55d0", "#97700a")
"""Each can be told from a black and from a white page."""
_WIDTH, _HEIGHT, _RIGHT, _TOP, _BOTTOM = 420, 250, 12, 12, 40
_LEAST_LEFT, _LETTER_WIDTH = 52, 7
_LEAST_RANGE = 0.01
"""Of the largest value: a line that changes less is shown as one that hardly changes, with short numbers beside it."""
_MOST_POINTS = 400


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: in the key.
        points: x and y; those that are not finite are left out.
        is_marked: each point has a mark; for few points, which a line does not show.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    is_marked: bool = False


def line_chart(title: str, lines: Sequence[Line], *, x_label: str) -> str:
    """The chart as HTML; an empty text where no line has a point.

    Args:
        title: what is shown over x.
        lines: up to six.
        x_label: what x is.

    Example:
        >>> line_chart("loss", [Line("training", ((1, 2.0), (2, 1.5)))], x_label="step").count("<polyline")
        1
    """
    shown = [(line, points) for line in lines if (points := _shown(line.points))]
    if not shown:
        return ""
    xs = [x for _, points in shown for x, _ in points]
    ys = [y for _, points in shown for _, y in points]
    x_ticks, y_ticks = _ticks(min(xs), max(xs), whole=True), _ticks(*_widened(min(ys), max(ys)))
    left = max(_LEAST_LEFT, 14 + _LETTER_WIDTH * max(len(_number(tick)) for tick in y_ticks))
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-12)
    y_low, y_high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def to_pixels(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high - x_low > 1e-9 else 0.5
        up = (y - y_low) / (y_high - y_low) if y_high > y_low else 0.5
        return left + across * (_WIDTH - left - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in y_ticks:
        y = to_pixels(x_low, tick)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text text-anchor="end" x="{left - 6}" y="{y + 4:.1f}">{_number(tick)}</text>')
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            parts.append(
                f'<text text-anchor="middle" x="{to_pixels(tick, y_low)[0]:.1f}" y="{_HEIGHT - 22}">{tick:g}</text>'
            )
    parts.append(f'<text text-anchor="middle" x="{_WIDTH / 2}" y="{_HEIGHT - 5}">{escape_html(x_label)}</text>')
    for (line, points), colour in zip(shown, COLOURS, strict=False):
        pixels = [to_pixels(x, y) for x, y in points]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{joined}"/>')
        if line.is_marked or len(points) == 1:
            parts += [f'<circle fill="{colour}" r="3" cx="{x:.1f}" cy="{y:.1f}"/>' for x, y in pixels]
    keys = "".join(
        f'<span class="key"><i style="background:{colour}"></i>{escape_html(line.name)}</span>'
        for (line, _), colour in zip(shown, COLOURS, strict=False)
        if line.name != title
    )
    said = f"{title} over {x_label}: " + "; ".join(f"{line.name} ends at {p[-1][1]:.4g}" for line, p in shown)
    return (
        f'<figure class="chart"><figcaption>{escape_html(title)} {keys}</figcaption><svg viewBox="0 0 {_WIDTH} '
        f'{_HEIGHT}" role="img" aria-label="{escape_html(said)}">{"".join(parts)}</svg></figure>'
    )


def _shown(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Finite points; of many, means of neighbours."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    size = math.ceil(len(finite) / _MOST_POINTS)
    if size <= 1:
        return finite
    parts = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts]


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range that is wide enough for numbers of few digits at its ticks."""
    missing = _LEAST_RANGE * max(abs(low), abs(high)) - (high - low)
    return (low - missing / 2, high + missing / 2) if missing > 0 else (low, high)


def _number(tick: float) -> str:
    # what is left of a sum of steps at zero
    return f"{0.0 if abs(tick) < 1e-12 else tick:.4g}"


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    return [float(tick) for tick in MaxNLocator(5, integer=whole).tick_values(low, high)]
