"""The picture of an explanation: the sampled frames, and over them what moved and what changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from kinescan.inference.explain import KinematicMaps
from kinescan.preprocessing import Preprocessing
from kinescan.runtime.escaping import escape_plot
from kinescan.runtime.figure import save_figure

MOST_FRAMES = 8
"""A longer clip shows so many of its frames, evenly spread."""
CELL_INCHES = 1.9
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
    num_frames = len(pixels)
    shown = np.linspace(0, num_frames - 1, min(num_frames, MOST_FRAMES)).round().astype(int)
    figure = Figure(figsize=(CELL_INCHES * len(shown) + 0.6, CELL_INCHES * len(ROWS) + 0.75), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(escape_plot(title, length=MOST_LETTERS), fontsize=11)
    figure.supxlabel(CAPTION, fontsize=8)
    grid = figure.subplots(len(ROWS), len(shown), squeeze=False)
    brightest = float(maps.change.quantile(0.995).clamp(min=1e-6))
    for column, t in enumerate(shown):
        for row, name in enumerate(ROWS):
            axes = grid[row, column]
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(name, fontsize=11)
            axes.imshow(pixels[t] if row == 0 else _faded(pixels[t]))
        when = "" if seconds is None else f"\n{seconds[t]:.2f} s"
        grid[0, column].set_title(f"frame {t + 1}{when}", fontsize=9)
        if t < num_frames - 1:
            _draw_movement(grid[1, column], maps.displacement[t], pixels.shape[1])
            _draw_change(grid[2, column], maps.change[t] / brightest, pixels.shape[1])
    save_figure(figure, path, dpi=110)


def _draw_movement(axes: Any, displacement: Tensor, side: int) -> None:
    """Arrows in pixels from the middle of each patch that moved; displacement [2, Hp, Wp] in patches."""
    down, right = displacement.numpy()
    rows, columns = down.shape
    step_y, step_x = side / rows, side / columns
    row, column = np.nonzero((down != 0) | (right != 0))
    if not len(row):
        return
    dy, dx = down[row, column] * step_y, right[row, column] * step_x
    angle = (np.arctan2(dy, dx) / (2 * np.pi)) % 1.0
    colours = hsv_to_rgb(np.stack([angle, np.full_like(angle, 0.85), np.full_like(angle, 0.95)], axis=1))
    axes.quiver(
        (column + 0.5) * step_x - 0.5,
        (row + 0.5) * step_y - 0.5,
        dx,
        dy,
        color=colours,
        angles="xy",
        scale_units="xy",
        scale=1.0,
        width=0.11 / columns,
        headwidth=3.6,
        headlength=4.0,
        headaxislength=3.6,
        clip_on=True,
    )
    axes.set_xlim(-0.5, side - 0.5)
    axes.set_ylim(side - 0.5, -0.5)


def _draw_change(axes: Any, change: Tensor, side: int) -> None:
    """A heat map over the frame; change [Hp, Wp], 1 for the brightest."""
    fractions = change.clamp(0, 1).numpy()
    extent = (-0.5, side - 0.5, side - 0.5, -0.5)
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
