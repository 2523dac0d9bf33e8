"""Whether the system gives out a file at all, apart from what the file holds."""

import os
import stat
from pathlib import Path

from kinescan.data.stored import is_plain, why_missing

_CHUNK = 2**20
_MOST_CHUNKS = 64


def is_gone(path: str | Path) -> bool:
    """Whether a file is not there, or the system cannot read it: not a matter of what it holds.

    Only files that could not be decoded are asked about, so that reading the first 64 MiB of one costs little.

    Example:
        >>> is_gone("nowhere.mp4"), is_gone(__file__)
        (True, False)
    """
    if not is_plain(path):
        return why_missing(path) is not None
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            # a named pipe would be waited for without end
            return False
        with open(path, "rb") as file:
            for _ in range(_MOST_CHUNKS):
                if not file.read(_CHUNK):
                    break
    except (OSError, ValueError):
        return True
    return False
