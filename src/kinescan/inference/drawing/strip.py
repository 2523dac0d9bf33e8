"""The picture of an explanation: the sampled frames, and over them what moved and what changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from kinescan.inference.explain import KinematicMaps
from kinescan.preprocessing import Preprocessing
from kinescan.runtime.escaping import escape_plot
from kinescan.runtime.figure import save_figure

MOST_FRAMES = 8
"""A longer clip shows so many of its frames, evenly spread."""
CELL_INCHES = 1.9
_BESIDE, _ABOVE_BELOW, _GAP = (0.45, 0.1), (0.8, 0.35), 0.05
"""Room left and right of the cells, above and below them, in inches; and between them, of a cell's side."""
MOST_LETTERS = 120
"""A longer title loses its middle."""
ROWS = ("frame", "moved", "changed")
CAPTION = "moved: where each patch is found in the next frame · changed: how far its features are from the next frame's"


def draw_strip(
    clip: Tensor,
    maps: KinematicMaps,
    path: str | Path,
    *,
    preprocessing: Preprocessing,
    title: str,
    seconds: Sequence[float] | None = None,
) -> None:
    """Writes a PNG with a column for each sampled frame: the frame, where things moved, where they changed.

    Arrows point to where a patch is found again in the next sampled frame, and their colour is their direction; patches
    that stay have none. Change is brighter where features differ more from the next frame's, on one scale for the clip.
    The last frame has no next one and shows nothing.

    Args:
        clip: [T, 3, H, W], normalised, as the model saw it.
        maps: of the same clip.
        path: the file to write.
        preprocessing: how the clip was normalised.
        title: above the strip.
        seconds: [T], the frames' times.

    Raises:
        ConfigError: the file cannot be written.
    """
    pixels = _pixels(clip, preprocessing)
    num_frames, side = len(pixels), pixels.shape[1]
    shown = np.linspace(0, num_frames - 1, min(num_frames, MOST_FRAMES)).round().astype(int)
    gap = max(1, round(_GAP * side))
    # one pair of axes for all cells: each pair costs as much as all that is drawn into it
    figure, axes = _empty_figure(len(shown), side, gap)
    figure.suptitle(escape_plot(title, length=MOST_LETTERS), fontsize=11, y=1 - 0.12 / figure.get_figheight(), va="top")
    axes.imshow(_cells(pixels, shown, gap))
    for row, name in enumerate(ROWS):
        axes.text(-2 * gap, row * (side + gap) + side / 2, name, fontsize=11, rotation=90, ha="right", va="center")
    brightest = float(maps.change.quantile(0.995).clamp(min=1e-6))
    for column, t in enumerate(shown):
        left = column * (side + gap)
        when = "" if seconds is None else f"\n{seconds[t]:.2f} s"
        axes.text(left + side / 2, -2 * gap, f"frame {t + 1}{when}", fontsize=9, ha="center", va="bottom")
        if t < num_frames - 1:
            _draw_movement(axes, maps.displacement[t], side, left, side + gap)
            _draw_change(axes, maps.change[t] / brightest, side, left, 2 * (side + gap))
    save_figure(figure, path, dpi=110)


def _empty_figure(num_columns: int, side: int, gap: int) -> tuple[Figure, Any]:
    """A figure and axes over all of its cells, one unit for a pixel, the first cell's top left corner at 0."""
    width, height = (count * (side + gap) - gap for count in (num_columns, len(ROWS)))
    inches = CELL_INCHES / (side + gap)
    whole = (width * inches + sum(_BESIDE), height * inches + sum(_ABOVE_BELOW))
    figure = Figure(figsize=whole)
    FigureCanvasAgg(figure)
    figure.text(0.5, 0.1 / whole[1], CAPTION, fontsize=8, ha="center", va="bottom", wrap=True)
    rectangle = (
        _BESIDE[0] / whole[0],
        _ABOVE_BELOW[1] / whole[1],
        width * inches / whole[0],
        height * inches / whole[1],
    )
    axes = figure.add_axes(rectangle, xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), autoscale_on=False)
    axes.set_axis_off()
    return figure, axes


def _cells(pixels: np.ndarray[Any, Any], shown: np.ndarray[Any, Any], gap: int) -> np.ndarray[Any, Any]:
    """Each shown frame as it is, and below it twice faded; white between them."""
    pitch = pixels.shape[1] + gap
    canvas = np.ones((len(ROWS) * pitch - gap, len(shown) * pitch - gap, 3), dtype=np.float32)
    for column, t in enumerate(shown):
        for row in range(len(ROWS)):
            cell = pixels[t] if row == 0 else _faded(pixels[t])
            canvas[row * pitch : row * pitch + len(cell), column * pitch : column * pitch + len(cell)] = cell
    return canvas


def _draw_movement(axes: Any, displacement: Tensor, side: int, left: int, top: int) -> None:
    """Arrows from the middle of each patch that moved, as far as they lie in the cell; displacement [2, Hp, Wp]."""
    down, right = displacement.numpy()
    rows, columns = down.shape
    step_y, step_x = side / rows, side / columns
    row, column = np.nonzero((down != 0) | (right != 0))
    if not len(row):
        return
    dy, dx = down[row, column] * step_y, right[row, column] * step_x
    angle = (np.arctan2(dy, dx) / (2 * np.pi)) % 1.0
    colours = hsv_to_rgb(np.stack([angle, np.full_like(angle, 0.85), np.full_like(angle, 0.95)], axis=1))
    arrows = axes.quiver(
        left + (column + 0.5) * step_x - 0.5,
        top + (row + 0.5) * step_y - 0.5,
        dx,
        dy,
        color=colours,
        angles="xy",
        scale_units="xy",
        scale=1.0,
        units="x",
        width=0.11 * step_x,
        headwidth=3.6,
        headlength=4.0,
        headaxislength=3.6,
    )
    arrows.set_clip_path(Rectangle((left - 0.5, top - 0.5), side, side, transform=axes.transData))


def _draw_change(axes: Any, change: Tensor, side: int, left: int, top: int) -> None:
    """A heat map over a frame; change [Hp, Wp], 1 for the brightest."""
    fractions = change.clamp(0, 1).numpy()
    extent = (left - 0.5, left + side - 0.5, top + side - 0.5, top - 0.5)
    axes.imshow(
        fractions,
        cmap="inferno",
        vmin=0,
        vmax=1,
        alpha=0.15 + 0.75 * fractions,
        extent=extent,
        interpolation="bilinear",
    )


def _pixels(clip: Tensor, preprocessing: Preprocessing) -> np.ndarray[Any, Any]:
    """[T, 3, H, W] normalised -> [T, H, W, 3] in [0, 1]."""
    mean = torch.tensor(preprocessing.mean)[:, None, None]
    std = torch.tensor(preprocessing.std)[:, None, None]
    pixels: np.ndarray[Any, Any] = (clip.float().cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return pixels


def _faded(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Grey and darker, so that colours stand out on it."""
    grey = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
    faded: np.ndarray[Any, Any] = 0.65 * grey
    return faded
