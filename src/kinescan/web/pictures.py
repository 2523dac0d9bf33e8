"""Small pictures as HTML that needs no files: frames, heat maps, arrows and the keys to their colours."""

import base64
import io

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import hsv_to_rgb, to_hex
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

COLOURS = ("#1f6fc0", "#b4500f", "#1b7a54", "#a8326a", "#6d48c4", "#8a6400", "#1c7484", "#b3303f")
"""White letters can be read on each, and each can be told from a black and from a white page."""
OTHER = "#666666"
DIRECTIONS = (("right", 0.0), ("down", 0.25), ("left", 0.5), ("up", 0.75))
"""Hue of a direction, as a part of the circle."""
_SHOWN_PIXELS = 400
"""Longer side of a frame on the page."""
_ARROW = 0.85
"""Of the distance of two patches: the longest arrow."""


def frame_picture(pixels: NDArray[np.uint8], *, faded: bool = False) -> str:
    """A frame as a data URL, no larger than the page shows it.

    Args:
        pixels: [H, W, 3].
        faded: grey and dark, to draw a heat map over it.
    """
    image = Image.fromarray(pixels)
    image.thumbnail((_SHOWN_PIXELS, _SHOWN_PIXELS))
    if faded:
        image = image.convert("L").point(lambda value: round(0.6 * value))
    return _data_url(image, "jpeg")


def heat_picture(fractions: NDArray[np.floating], colours: str, *, over_frame: bool) -> str:
    """Numbers in [0, 1] as a picture with a pixel for each, as a data URL.

    Args:
        fractions: [rows, columns].
        colours: a colour map of matplotlib.
        over_frame: what is near 0 lets the frame below be seen.
    """
    values = np.clip(np.nan_to_num(fractions), 0, 1)
    rgba = colormaps[colours](values)
    if over_frame:
        rgba[..., 3] = 0.2 + 0.65 * values
    return _data_url(Image.fromarray((255 * rgba).round().astype(np.uint8)), "png")


def arrows(displacement: Tensor, size: tuple[int, int]) -> str:
    """Arrows from the middle of each patch that moves, no longer than to the next one, so that none meets another.

    Args:
        displacement: [2, rows, columns], down and right, in patches; patches cover the square in the frame's middle.
        size: height and width of the frame.
    """
    left, top, side = seen_square(size)
    down, right = displacement.numpy()
    step = side / down.shape[1]
    shapes = []
    for row, column in zip(*np.nonzero((down != 0) | (right != 0)), strict=True):
        dy, dx = float(down[row, column]), float(right[row, column])
        reach = float(np.hypot(dx, dy))
        length = _ARROW * step * min(1.0, 0.5 + 0.18 * reach)
        x, y = left + (column + 0.5) * step, top + (row + 0.5) * side / down.shape[0]
        turn = np.degrees(np.arctan2(dy, dx))
        shapes.append(
            f'<use href="#ks-arrow" fill="{direction_colour(dx, dy)}" '
            f'transform="translate({x:.1f} {y:.1f}) rotate({turn:.0f}) scale({length:.2f})"/>'
        )
    return f'<svg class="ks-over" viewBox="0 0 {size[1]} {size[0]}" aria-hidden="true">{"".join(shapes)}</svg>'


ARROW = (
    '<svg width="0" height="0" aria-hidden="true" style="position:absolute"><defs>'
    '<path id="ks-arrow" d="M-.5 -.13H.05V-.36L.5 0L.05 .36V.13H-.5Z" stroke="#000" stroke-opacity=".75" '
    'stroke-width="1" vector-effect="non-scaling-stroke"/></defs></svg>'
)
"""The shape that all arrows of a page share; it stands before the first of them."""


def direction_colour(dx: float, dy: float) -> str:
    """Colour of a direction in a frame, x to the right and y down.

    Example:
        >>> direction_colour(1, 0), direction_colour(-1, 0)
        ('#ff1919', '#19ffff')
    """
    hue = float(np.arctan2(dy, dx) / (2 * np.pi)) % 1.0
    return to_hex(hsv_to_rgb((hue, 0.9, 1.0)))


def direction_key() -> str:
    """What the colours of arrows mean, in words."""
    marks = "".join(
        f'<span class="ks-key"><i style="background:{to_hex(hsv_to_rgb((hue, 0.9, 1.0)))}"></i>{name}</span>'
        for name, hue in DIRECTIONS
    )
    return f'<span class="ks-keys">moves {marks}</span>'


def heat_key(colours: str, low: str, high: str) -> str:
    """What the colours of a heat map mean: its ends in words or numbers.

    Args:
        colours: a colour map of matplotlib.
        low: what its first colour stands for.
        high: what its last colour stands for.
    """
    stops = ", ".join(to_hex(colormaps[colours](level)) for level in np.linspace(0, 1, 7))
    ramp = f'<i class="ks-ramp" style="background:linear-gradient(90deg, {stops})"></i>'
    return f'<span class="ks-keys">{low} {ramp} {high}</span>'


def seen_square(size: tuple[int, int]) -> tuple[float, float, float]:
    """Left, top and side of the part of a frame that the model sees.

    Args:
        size: height and width of the frame.

    Example:
        >>> seen_square((48, 64))
        (8.0, 0.0, 48)
    """
    height, width = size
    side = min(height, width)
    return (width - side) / 2, (height - side) / 2, side


def _data_url(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, kind.upper(), **({"quality": 82} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()
