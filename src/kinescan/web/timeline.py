"""A timeline under the player, as HTML that fits any width: scores, events, and the scanner's update speed."""

from collections.abc import Sequence

import numpy as np

from kinescan.runtime.escaping import escape_html
from kinescan.runtime.quantities import percent
from kinescan.web.analysis import MOST_SHOWN, Analysis, Interval
from kinescan.web.pictures import COLOURS, OTHER, heat_key, heat_picture

_COLUMNS = 600
"""Of the heat map over time."""


def timeline(analysis: Analysis, title: str = "") -> str:
    """Scores over time as curves, events as bars and Delta as a heat map under them; a list for screen readers.

    Args:
        analysis: of a video.
        title: name of the model.
    """
    shown = _shown(analysis)
    colours = {analysis.labels[index]: COLOURS[number % len(COLOURS)] for number, index in enumerate(shown)}
    best = escape_html(analysis.best)
    listed = "".join(
        f"<li>{escape_html(event.label)}: {event.start:.2f} s to {event.end:.2f} s, {percent(event.score)}</li>"
        for event in analysis.events
    )
    keys = "".join(
        f'<span class="ks-key"><i style="background:{colours[label]}"></i>{escape_html(label)} '
        f"<small>up to {percent(float(analysis.scores[:, index].max()))}</small></span>"
        for index, label in ((index, analysis.labels[index]) for index in shown)
    )
    events = (
        f'<details class="ks-listed"><summary>{_counted(len(analysis.events))}</summary><ul>{listed}</ul></details>'
        if listed
        else '<p class="ks-note">No event was found.</p>'
    )
    return (
        f'<section class="ks-timeline" data-duration="{_length(analysis):.6f}">'
        f'<h3><span class="ks-model">{escape_html(title)}</span> <b class="ks-label">{best}</b> '
        f"<small>{percent(analysis.best_score)} for the whole video</small></h3>"
        f'<div class="ks-keys ks-legend">{keys}</div>'
        f'<div class="ks-body">{_curves(analysis, shown)}{_bars(analysis, colours)}{_speed(analysis)}</div>'
        f"{events}</section>"
    )


def _shown(analysis: Analysis) -> list[int]:
    """The classes that get a curve and a colour: those of events first, then the likeliest at some time."""
    happened = {event.label for event in analysis.events}
    order = [int(index) for index in np.argsort(-analysis.scores.max(0), kind="stable")]
    order.sort(key=lambda index: analysis.labels[index] not in happened)
    return order[: max(MOST_SHOWN, min(len(happened), len(COLOURS)))]


def _length(analysis: Analysis) -> float:
    return max(analysis.duration, 1e-6)


def _counted(number: int) -> str:
    return f"{number} event{'s' * (number != 1)}"


def ticks(seconds: float) -> str:
    """Times along an axis."""
    digits = 2 if seconds < 10 else 1 if seconds < 60 else 0
    marks = []
    for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
        where = {0.0: "ks-first", 1.0: "ks-last"}.get(fraction, "")
        marks.append(
            f'<span class="{where}" style="left:{100 * fraction:g}%">{round(fraction * seconds, digits):g} s</span>'
        )
    return f'<div class="ks-ticks" aria-hidden="true">{"".join(marks)}</div>'


def _curves(analysis: Analysis, shown: Sequence[int]) -> str:
    length = _length(analysis)
    lines = []
    for number, index in enumerate(shown):
        points = " ".join(
            f"{1000 * min(max(second / length, 0), 1):.1f},{100 - 100 * score:.2f}"
            for second, score in zip(analysis.seconds, analysis.scores[:, index], strict=True)
        )
        lines.append(f'<polyline stroke="{COLOURS[number % len(COLOURS)]}" points="{points}"/>')
    grid = "".join(f'<line class="ks-grid" x1="0" x2="1000" y1="{y}" y2="{y}"/>' for y in (0, 50, 100))
    said = f"Time in the video. Best for the whole video: {escape_html(analysis.best)}"
    return (
        f'<div class="ks-plot" tabindex="0" role="slider" aria-valuemin="0" aria-valuemax="{length:.2f}" '
        f'aria-valuenow="0" aria-label="{said}">'
        f'<svg viewBox="0 0 1000 100" preserveAspectRatio="none" aria-hidden="true">{grid}{"".join(lines)}</svg>'
        '<span class="ks-level" style="top:0">100 %</span><span class="ks-level" style="top:50%">50 %</span>'
        f'<i class="ks-cursor"></i></div>{ticks(length)}'
    )


def _bars(analysis: Analysis, colours: dict[str, str]) -> str:
    rows = []
    for label in dict.fromkeys(event.label for event in analysis.events):
        bars = "".join(
            _bar(event, _length(analysis), colours.get(label, OTHER))
            for event in analysis.events
            if event.label == label
        )
        rows.append(f'<span class="ks-row-name">{escape_html(label)}</span><div class="ks-row">{bars}</div>')
    return f'<div class="ks-rows" aria-hidden="true">{"".join(rows)}</div>' if rows else ""


def _bar(event: Interval, length: float, colour: str) -> str:
    left = min(max(event.start / length, 0), 1)
    width = min(max(event.end - event.start, 0) / length, 1 - left)
    said = f"{escape_html(event.label)}: {event.start:.2f} s to {event.end:.2f} s, {percent(event.score)}"
    style = f"left:{100 * left:.2f}%;width:{100 * width:.2f}%;background:{colour}"
    return f'<i class="ks-event" style="{style}" title="{said}"></i>'


def _speed(analysis: Analysis) -> str:
    """The scanner's step sizes as a heat map: a line for each patch, a column for each moment."""
    speed = analysis.speed_over_time
    if speed is None:
        return ""
    lines = speed.flatten(1).T.numpy()  # [patches, S]
    times, length = analysis.speed_seconds, _length(analysis)
    at = (np.arange(_COLUMNS) + 0.5) / _COLUMNS * length
    nearest = np.abs(times[None] - at[:, None]).argmin(1)
    # a single patch that is far off does not make all others dark
    low, high = (float(level) for level in np.quantile(lines, (0.01, 0.99)))
    picture = heat_picture((lines[:, nearest] - low) / max(high - low, 1e-9), "viridis", over_frame=False)
    said = f"Update speed (Delta) of {len(lines)} patches over time, 98 % of it from {low:.3g} to {high:.3g}"
    return (
        f'<div class="ks-part-head"><h4>Update speed of the scanner (Delta) over time</h4>'
        f"{heat_key('viridis', f'{low:.3g}', f'{high:.3g}')}</div>"
        f'<div class="ks-speed"><img alt="{said}" src="{picture}"><i class="ks-cursor"></i></div>'
        f'<p class="ks-note">A line for each of {len(lines)} patches, the top left one first, over the whole video: '
        f"{len(times)} frames. The colours end at the 1st and the 99th percentile.</p>"
    )
