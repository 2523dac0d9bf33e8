"""Pictures are written in one way: whole or not at all, and without a word about letters that the font lacks."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from kinescan.errors import ConfigError
from kinescan.runtime.atomic_write import atomic_write


def save_figure(figure: Figure, path: str | Path, *, dpi: int, error: Callable[[str], Exception] = ConfigError) -> None:
    """Writes a figure as a picture; a letter that the font lacks is drawn as a box.

    Args:
        figure: with its canvas.
        path: the file, which ends in the kind of picture, such as .png.
        dpi: dots per inch.
        error: makes the error to raise where the system refuses to write.

    Raises:
        ConfigError: (or what `error` makes) the file cannot be written.
    """
    with warnings.catch_warnings():
        # matplotlib lays its warnings of missing letters at the door of the first caller outside of it: this module
        warnings.filterwarnings("ignore", module=re.escape(__name__), category=UserWarning)
        with atomic_write(path, error=error) as aside:
            figure.savefig(aside, dpi=dpi)
