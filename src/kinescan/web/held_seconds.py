"""Which seconds of a video a VLM's compressed state still holds, as bars."""

from collections.abc import Sequence

from kinescan.web.chat import HeldTokens
from kinescan.web.pictures import COLOURS
from kinescan.web.timeline import ticks

_LEAST = 0.05
"""A moment of which less than this is held counts as forgotten."""


def held_seconds(held: Sequence[HeldTokens], budget: int | None) -> str:
    """Bars over time, as high as the part of a moment's tokens that the next frame may still see.

    Args:
        held: what is held of each moment that was watched.
        budget: keys of the compressed state; None: it has no limit.
    """
    if not held:
        return ""
    end = max(held[-1].end, 1e-6)
    bars, kept = [], 0
    for one in held:
        fraction = min(1.0, one.num_held / max(1, one.num_tokens))
        kept += fraction >= _LEAST
        x, width = 1000 * one.start / end, max(1.5, 1000 * (one.end - one.start) / end - 1.5)
        said = f"{one.start:.1f} s to {one.end:.1f} s: {one.num_held:.0f} of {one.num_tokens} tokens"
        bars.append(
            f'<rect class="ks-slot" x="{x:.1f}" y="0" width="{width:.1f}" height="100"><title>{said}</title></rect>'
            f'<rect x="{x:.1f}" y="{100 - 100 * fraction:.1f}" width="{width:.1f}" height="{100 * fraction:.1f}" '
            f'fill="{COLOURS[0]}"><title>{said}</title></rect>'
        )
    total, seen = sum(one.num_held for one in held), sum(one.num_tokens for one in held)
    limit = "no limit" if budget is None else f"a budget of {budget}"
    said = (
        f"Of {kept} of {len(held)} moments something is held: {total:.0f} of {seen} tokens, with {limit} "
        "(mean over layers and key heads)."
    )
    return (
        '<section class="ks-held"><div class="ks-part-head"><h4>What the compressed state still holds</h4>'
        f'<span class="ks-keys"><span class="ks-key"><i style="background:{COLOURS[0]}"></i>held</span>'
        '<span class="ks-key"><i class="ks-gone"></i>forgotten</span></span></div>'
        f'<svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" aria-label="{said}">{"".join(bars)}</svg>'
        f'{ticks(end)}<p class="ks-note">{said}</p></section>'
    )
