"""Work whose client is gone, or that took too long, ends by itself."""

import threading
from collections.abc import Callable
from typing import TypeVar

from kinescan.web.problems import RequestProblem

T = TypeVar("T")

_of_thread = threading.local()


def run_until(given_up: threading.Event, work: Callable[[], T]) -> T:
    """What `work` gives; within it, `check_wanted` looks at this event.

    Args:
        given_up: set when nobody waits for the answer any more.
        work: called in this thread.
    """
    _of_thread.given_up = given_up
    try:
        check_wanted()
        return work()
    finally:
        _of_thread.given_up = None


def check_wanted() -> None:
    """Ends the work of this thread where nobody waits for it; long loops call it in each round.

    Raises:
        RequestProblem: the request was given up.
    """
    given_up = getattr(_of_thread, "given_up", None)
    if given_up is not None and given_up.is_set():
        raise RequestProblem(408, "the request took too long and was broken off.", "too_slow")
