"""What this package knows of gcsfs beyond its documentation: how often it asks, and how it tells that it may not.

A release of gcsfs may change it without notice. `tests/runtime/test_gcsfs_internals.py` says which feature of kinescan
breaks then: a store that does not answer is asked six times as often, or a refusal is tried again.
"""

from typing import Any

__all__ = ["ask_once", "is_refusal"]


def ask_once(files: Any) -> None:
    """Lets a file system of gcsfs ask once, and not six times with waits of up to 32 s between them."""
    plain = getattr(type(files)._request, "__wrapped__", None)
    if plain is not None:
        files._request = plain.__get__(files)


def is_refusal(error: BaseException) -> bool:
    """Whether gcsfs tells of status 403, for which it raises a plain error of the system without a number."""
    return type(error) is OSError and error.errno is None and error.__cause__ is None
