"""Pictures of what a model looks at; matplotlib is loaded when the first is drawn."""

from typing import TYPE_CHECKING

from kinescan.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from kinescan.inference.drawing.strip import draw_strip

__all__ = ["draw_strip"]

__getattr__ = lazy_names(__name__, {"kinescan.inference.drawing.strip": ["draw_strip"]})
