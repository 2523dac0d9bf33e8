"""A frame with what was told of it, and a timeline of the last seconds below."""

from collections import deque
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kinescan.events.told import Told

SHOWN_SECONDS = 30.0
"""How far back the timeline reaches."""
MOST_LANES = 4
"""Classes that the timeline shows, those told of last."""
_LEAST_WIDTH, _MOST_WIDTH = 320, 1280
_LANE_HEIGHT, _AXIS_HEIGHT, _MARGIN = 18, 18, 6
_TEXT_SIZE = 13
_COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2")
"""Told apart by people with any kind of colour vision (Okabe and Ito)."""
_GROUND, _LINE, _LINE_TEXT, _TEXT = "#101418", "#3c444c", "#8c949c", "#e8ecf0"


@dataclass(kw_only=True)
class _Bar:
    label: str
    start: float
    end: float | None
    score: float


class Timeline:
    """What was told so far, as far as it is still shown."""

    def __init__(self) -> None:
        self._bars: dict[str, _Bar] = {}
        self._lanes: deque[str] = deque(maxlen=MOST_LANES)
        self._color_indices: dict[str, int] = {}

    def add(self, told: Told) -> None:
        """Takes the start or the end of an event."""
        event = told.update.event
        self._bars[event.id] = _Bar(
            label=event.label, start=event.start_seconds, end=event.end_seconds, score=event.peak_score
        )
        self._color_indices.setdefault(event.label, len(self._color_indices))
        if event.label not in self._lanes:
            self._lanes.append(event.label)

    def draw(self, pixels: NDArray[np.uint8], seconds: float) -> NDArray[np.uint8]:
        """The frame, at least 320 and at most 1,280 pixels wide, with labels in it and the timeline below it.

        Args:
            pixels: [H, W, 3], RGB.
            seconds: the frame's time, by the clock of the events.

        Returns:
            [H', W', 3], RGB, both sides even; the size depends on that of `pixels` alone.
        """
        self._forget(seconds)
        picture = Image.fromarray(pixels)
        width, height = _size(*picture.size)
        if (width, height) != picture.size:
            shrinks = width < picture.width
            picture = picture.resize((width, height), Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST)
        canvas = Image.new("RGB", (width, height + _strip_height()), _GROUND)
        canvas.paste(picture)
        draw = ImageDraw.Draw(canvas)
        self._draw_labels(draw, width)
        self._draw_strip(draw, width, height, seconds)
        return np.asarray(canvas)

    def _forget(self, seconds: float) -> None:
        old = [name for name, bar in self._bars.items() if bar.end is not None and bar.end < seconds - SHOWN_SECONDS]
        for name in old:
            del self._bars[name]

    def _color(self, label: str) -> str:
        return _COLORS[self._color_indices[label] % len(_COLORS)]

    def _draw_labels(self, draw: ImageDraw.ImageDraw, width: int) -> None:
        y = _MARGIN
        for bar in self._bars.values():
            if bar.end is None:
                text = _fitting(draw, bar.label, width - 4 * _MARGIN)
                left, top, right, bottom = draw.textbbox((2 * _MARGIN, y + 3), text, font=_font())
                draw.rectangle((left - _MARGIN, top - 3, right + _MARGIN, bottom + 3), fill=self._color(bar.label))
                draw.text((2 * _MARGIN, y + 3), text, font=_font(), fill="black")
                y = int(bottom) + 3 + _MARGIN

    def _draw_strip(self, draw: ImageDraw.ImageDraw, width: int, top: int, seconds: float) -> None:
        left, right = _MARGIN, width - _MARGIN
        per_second = (right - left) / SHOWN_SECONDS
        axis = top + _MARGIN + MOST_LANES * _LANE_HEIGHT

        def x_of(time: float) -> float:
            return min(max(right + (time - seconds) * per_second, left), right)

        tick = 5.0 * np.floor(seconds / 5.0)
        while tick > seconds - SHOWN_SECONDS and tick >= 0:
            x = x_of(tick)
            draw.line((x, top + _MARGIN, x, axis), fill=_LINE)
            # the time of the frame itself stands at the right
            if x + 60 < right - 90 and int(tick) % 10 == 0:
                draw.text((x - 2, axis + 1), _clock(tick, 0), font=_font(), fill=_LINE_TEXT)
            tick -= 5.0
        for lane, label in enumerate(self._lanes):
            y = top + _MARGIN + lane * _LANE_HEIGHT
            for bar in self._bars.values():
                if bar.label == label:
                    begin, end = x_of(bar.start), x_of(seconds if bar.end is None else bar.end)
                    draw.rectangle((begin, y + 2, max(end, begin + 1), y + _LANE_HEIGHT - 3), fill=self._color(label))
            # the rim keeps it readable over a bar that reaches to the left
            name = _fitting(draw, label, width // 3)
            draw.text((left + 2, y), name, font=_font(), fill=_TEXT, stroke_width=2, stroke_fill=_GROUND)
        draw.line((right, top + _MARGIN, right, axis), fill=_TEXT)
        now = _clock(seconds, 1)
        draw.text((right - draw.textlength(now, font=_font()), axis + 1), now, font=_font(), fill=_TEXT)


def _strip_height() -> int:
    height = 2 * _MARGIN + MOST_LANES * _LANE_HEIGHT + _AXIS_HEIGHT
    return height + height % 2


def _size(width: int, height: int) -> tuple[int, int]:
    scale = min(max(width, _LEAST_WIDTH), _MOST_WIDTH) / width
    wide, high = (max(2, round(side * scale / 2) * 2) for side in (width, height))
    return wide, high


def _clock(seconds: float, decimals: int) -> str:
    sign, total = ("-", -seconds) if seconds < 0 else ("", seconds)
    minutes, rest = divmod(round(total, decimals), 60)
    hours, minutes = divmod(int(minutes), 60)
    width = 2 if not decimals else 3 + decimals
    return f"{sign}{hours:02d}:{minutes:02d}:{rest:0{width}.{decimals}f}"


def _fitting(draw: ImageDraw.ImageDraw, text: str, width: float) -> str:
    """The text without line ends, cut to a width in pixels."""
    text = " ".join(text.split())[:200]
    if draw.textlength(text, font=_font()) <= width:
        return text
    while text and draw.textlength(text + "…", font=_font()) > width:
        text = text[:-1]
    return text + "…"


@cache
def _font() -> ImageFont.FreeTypeFont:
    # of matplotlib, which is not loaded for it: half a second of each stream's start
    found = find_spec("matplotlib")
    assert found is not None, "kinescan depends on it"
    assert found.origin is not None, "it is a package with files"
    fonts = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(fonts / "DejaVuSans.ttf", _TEXT_SIZE)
