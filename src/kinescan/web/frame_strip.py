"""A strip of the sampled frames: what moved, what changed, and how fast the scanner updates."""

from collections.abc import Callable, Sequence

import numpy as np

from kinescan.runtime.escaping import escape_html
from kinescan.web.analysis import MOST_SHOWN, Analysis
from kinescan.web.pictures import ARROW, arrows, direction_key, frame_picture, heat_key, heat_picture, seen_square


def frame_strip(analysis: Analysis, title: str = "") -> str:
    """The strip as HTML.

    Args:
        analysis: of a video.
        title: name of the model; empty where there is one only.
    """
    head = f"<h3>{escape_html(title)}</h3>" if title else ""
    if analysis.maps is None:
        note = "This model is not a PKS4, so nothing can be shown of what it looks at."
        return f'<section class="ks-strip">{head}<p class="ks-note">{note}</p></section>'
    pixels = analysis.frames.permute(0, 2, 3, 1).contiguous().numpy()
    size = pixels.shape[1:3]
    # what moved and changed lies between a frame and the next, so the last one has nothing to show
    chosen = np.linspace(0, len(pixels) - 2, min(len(pixels) - 1, MOST_SHOWN)).round().astype(int)
    maps, speed = analysis.maps, analysis.update_speed
    faded = {t: frame_picture(pixels[t], faded=True) for t in chosen}

    def cells(over: Callable[[int], str], under: Callable[[int], str], kind: str = "") -> str:
        shown = "".join(
            f'<figure><div class="ks-cell"><img alt="" src="{under(t)}">{over(t)}{_unseen(size)}</div>'
            f"<figcaption>{analysis.frame_seconds[t]:.2f} s</figcaption></figure>"
            for t in chosen
        )
        return f'<div class="ks-cells {kind}">{shown}</div>'

    moved = [bool(maps.displacement[t].any()) for t in chosen]
    most = float(maps.change.quantile(0.995).clamp(min=1e-6))
    parts = [
        _part(
            "What moves",
            direction_key(),
            # arrows need room
            cells(lambda t: arrows(maps.displacement[t], size), _plain(pixels), "ks-large") + _stillness(moved),
        ),
        _part(
            "What changes",
            heat_key("inferno", "little", "much"),
            cells(lambda t: _heat((maps.change[t] / most).numpy(), "inferno", size), faded.__getitem__),
        ),
    ]
    if speed is not None:
        low, high = float(speed.min()), float(speed.max())
        scaled = ((speed - low) / max(high - low, 1e-9)).numpy()
        parts.append(
            _part(
                "Where the scanner updates fast (Delta)",
                heat_key("viridis", f"{low:.3g}", f"{high:.3g}"),
                cells(lambda t: _heat(scaled[t], "viridis", size), faded.__getitem__),
            )
        )
    return f'<section class="ks-strip">{head}{ARROW}{"".join(parts)}</section>'


def _part(name: str, key: str, cells: str) -> str:
    return f'<div class="ks-part"><div class="ks-part-head"><h4>{name}</h4>{key}</div>{cells}</div>'


def _stillness(moved: Sequence[bool]) -> str:
    if all(moved):
        return ""
    which = "these frames" if not any(moved) else "frames without arrows"
    return f'<p class="ks-note">In {which}, the model found nothing that moves by the next one.</p>'


def _plain(pixels: np.ndarray) -> Callable[[int], str]:
    return lambda t: frame_picture(pixels[t])


def _heat(fractions: np.ndarray, colours: str, size: tuple[int, int]) -> str:
    """Fractions in [0, 1], one for each patch, as colours over the square that the model sees; `size` in pixels."""
    picture = heat_picture(fractions, colours, over_frame=True)
    left, top, side = seen_square(size)
    position = f"left:{100 * left / size[1]:.2f}%;top:{100 * top / size[0]:.2f}%"
    extent = f"width:{100 * side / size[1]:.2f}%;height:{100 * side / size[0]:.2f}%"
    return f'<img class="ks-heat" alt="" src="{picture}" style="{position};{extent}">'


def _unseen(size: tuple[int, int]) -> str:
    """Shades over the edges that the model does not see."""
    left, top, _ = seen_square(size)
    wide, high = f"width:{100 * left / size[1]:.2f}%", f"height:{100 * top / size[0]:.2f}%"
    if left:
        return f'<i class="ks-unseen" style="left:0;{wide}"></i><i class="ks-unseen" style="right:0;{wide}"></i>'
    if top:
        return f'<i class="ks-unseen" style="top:0;{high}"></i><i class="ks-unseen" style="bottom:0;{high}"></i>'
    return ""
