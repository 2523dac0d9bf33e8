"""Pictures of answers that have a time: a timeline for each video, and the curve of delay over false alarms."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from kinescan.evaluation.temporal.scores import OperatingPoint, VideoResult
from kinescan.events.predictions import FramePredictions
from kinescan.runtime.escaping import escape_plot
from kinescan.runtime.figure import save_figure

TRUE, TOLD, MISSED = "#2c7fb8", "#fdae61", "#d7191c"
MOST_LANES = 24
"""Classes that one picture shows: those that are true or told in the video."""
SHORTEST_STRIP = 30.0
"""Seconds in one row of a timeline, at least."""
MOST_STRIPS = 6
MOST_ROWS = 48
"""Lanes of all strips together."""
MANY_SECONDS = 120.0
"""In longer strips, marks are small."""
WIDTH_INCHES, TOP_INCHES, BOTTOM_INCHES, GAP_INCHES = 11.0, 0.4, 0.75, 0.3
MOST_POINTS = 4000
"""Of a score's line in one row."""


def plot_timeline(video: VideoResult, predictions: FramePredictions | None, path: str | Path) -> None:
    """Writes what is true of a video and what was told, as a PNG: a lane for each class, time from left to right.

    Above in each lane the true intervals (missed ones outlined), below the events that were told, with a mark where
    each was told (a cross where that was a false alarm), and the score as a thin line.

    Args:
        video: truth and answer.
        predictions: scores of its frames; None draws no lines.
        path: the file to write.
    """
    labels = [one.label for one in video.intervals] + [one.label for one in video.events]
    every_lane = list(dict.fromkeys(labels))
    lanes = every_lane[:MOST_LANES]
    end = max(video.end_seconds, 1e-3)
    num_strips = max(1, min(MOST_STRIPS, MOST_ROWS // max(1, len(lanes)), math.ceil(end / SHORTEST_STRIP)))
    length = end / num_strips
    lane_inches, height = 0.42 * max(1, len(lanes)), TOP_INCHES + BOTTOM_INCHES - GAP_INCHES
    height += num_strips * (lane_inches + GAP_INCHES)
    # Placed by hand: a layout that is solved takes longer than all the rest.
    figure = Figure(figsize=(WIDTH_INCHES, height))
    FigureCanvasAgg(figure)
    strips = figure.subplots(num_strips, 1, squeeze=False)[:, 0]
    figure.subplots_adjust(
        left=1.85 / WIDTH_INCHES,
        right=1 - 0.2 / WIDTH_INCHES,
        top=1 - TOP_INCHES / height,
        bottom=BOTTOM_INCHES / height,
        hspace=GAP_INCHES / lane_inches,
    )
    for index, axes in enumerate(strips):
        axes.set_xlim(index * length, (index + 1) * length)
        _draw_lanes(axes, video, predictions, lanes)
    strips[-1].set_xlabel("seconds")
    accuracy = "" if video.frame_accuracy is None else f", {100 * video.frame_accuracy:.0f} % of frames right"
    counts = f"{video.alarms.num_missed} of {video.alarms.num_true} missed, {video.alarms.num_false} false alarms"
    cut = f" ({len(lanes)} of {len(every_lane)} classes shown)" if len(every_lane) > len(lanes) else ""
    title = f"{escape_plot(video.video_id, length=60)}: {counts}{accuracy}{cut}"
    figure.text(0.5, 1 - 0.5 * TOP_INCHES / height, title, ha="center", va="center", fontsize=10)
    handles = [
        Patch(facecolor=TRUE, label="true"),
        Patch(facecolor="white", edgecolor=MISSED, linewidth=1.8, label="true, missed"),
        Patch(facecolor=TOLD, label="told as an event"),
        Line2D([], [], color="black", marker="v", linestyle="", label="alarm"),
        Line2D([], [], color=MISSED, marker="x", linestyle="", markeredgewidth=2, label="false alarm"),
        Line2D([], [], color="grey", linewidth=0.8, label="score"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), fontsize=8, frameon=False)
    save_figure(figure, path, dpi=100)


def _draw_lanes(axes: Axes, video: VideoResult, predictions: FramePredictions | None, lanes: Sequence[str]) -> None:
    axes.set_ylim(len(lanes) or 1, 0)
    axes.set_yticks([row + 0.5 for row in range(len(lanes))], [escape_plot(label, length=24) for label in lanes])
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.tick_params(axis="x", labelsize=8)
    for row in range(1, len(lanes)):
        axes.axhline(row, color="lightgrey", linewidth=0.6)
    if not lanes:
        axes.text(0.5, 0.5, "nothing is true and nothing was told", transform=axes.transAxes, ha="center", va="center")
    missed = set(video.alarms.missed)
    false = {(alarm.label, alarm.seconds) for alarm in video.alarms.false}
    left, right = axes.get_xlim()
    for interval in video.intervals:
        if interval.label in lanes and interval.start_seconds <= right and interval.end_seconds >= left:
            top, width = lanes.index(interval.label) + 0.08, interval.end_seconds - interval.start_seconds
            lost = interval in missed
            axes.broken_barh(
                [(interval.start_seconds, width)],
                (top, 0.4),
                facecolor="white" if lost else TRUE,
                edgecolor=MISSED if lost else TRUE,
                linewidth=1.8 if lost else 0.5,
            )
    for event in video.events:
        end = right if event.end_seconds is None else event.end_seconds
        if event.label in lanes and event.start_seconds <= right and end >= left:
            top = lanes.index(event.label) + 0.52
            axes.broken_barh([(event.start_seconds, end - event.start_seconds)], (top, 0.4), facecolor=TOLD)
    for alarm in video.told:
        if alarm.label in lanes and left <= alarm.seconds <= right:
            wrong = (alarm.label, alarm.seconds) in false
            colour, mark, width = (MISSED, "x", 2.0) if wrong else ("black", "v", 0.5)
            height = lanes.index(alarm.label) + 0.72
            size = 5.0 if right - left <= MANY_SECONDS else 3.0
            axes.plot([alarm.seconds], [height], color=colour, marker=mark, markersize=size, markeredgewidth=width)
    if predictions is not None:
        _draw_scores(axes, predictions, lanes)


def _draw_scores(axes: Axes, predictions: FramePredictions, lanes: Sequence[str]) -> None:
    first, behind = np.searchsorted(predictions.seconds, axes.get_xlim())
    step = max(1, (behind - first) // MOST_POINTS)
    starts = np.arange(max(0, first - 1), min(len(predictions.seconds), behind + 1), step)
    if not len(starts):
        return
    for lane, label in enumerate(lanes):
        # the highest of those that share a point: no short peak is lost
        scores = np.maximum.reduceat(predictions.scores[:, predictions.classes.index(label)], starts)
        axes.step(predictions.seconds[starts], lane + 0.95 - 0.9 * scores, where="post", color="grey", linewidth=0.8)


def plot_curve(curve: Sequence[OperatingPoint], path: str | Path) -> None:
    """Writes delay and missed events over false alarms per hour (AMOC) as a PNG; the chosen point is marked.

    Args:
        curve: alarms at many strictnesses of the thresholds.
        path: the file to write.
    """
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    points = sorted(curve, key=lambda point: -point.shift)
    rates = [point.alarms.false_alarms_per_hour for point in points]
    upper.plot(rates, [point.alarms.delay_seconds(0.5) for point in points], ".-", color=TRUE, label="median")
    upper.plot(rates, [point.alarms.delay_seconds(0.9) for point in points], ".--", color=TRUE, label="90th percentile")
    upper.set_ylabel("delay of told events in seconds")
    upper.set_ylim(bottom=0)
    lower.plot(rates, [100 * point.alarms.missed_ratio for point in points], ".-", color=MISSED, label="missed")
    late = [100 * (1 - point.alarms.told_within(0.5)) for point in points]
    lower.plot(rates, late, ".--", color=MISSED, label="not told within 0.5 s")
    lower.set_ylabel("% of true events")
    lower.set_ylim(-2, 102)
    lower.set_xlabel("false alarms per hour")
    lower.set_xscale("symlog", linthresh=1)
    lower.set_xlim(left=0)
    for axes in (upper, lower):
        axes.grid(color="lightgrey", linewidth=0.6)
        for index, point in enumerate(p for p in points if p.shift == 0):
            label = "chosen thresholds" if index == 0 else None
            axes.axvline(point.alarms.false_alarms_per_hour, color="black", linewidth=1.0, linestyle=":", label=label)
        axes.legend(fontsize=8)
    save_figure(figure, path, dpi=110)
