"""Which backends run here, why others cannot, the choice, and one log line that says it."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

from kinescan.errors import BackendError

logger = logging.getLogger(__name__)

Backend = Literal["reference", "blockwise", "dense", "numba", "triton"]
Obstacle = Callable[[Tensor], str | None]
"""Says why a backend cannot run on a tensor like this one, or None when it can."""

PLAIN: tuple[Backend, ...] = ("dense", "reference", "blockwise")
"""Backends of plain torch operations."""

_plain_only = False
_announced: set[tuple[str, str, str, str]] = set()


@contextmanager
def plain_torch() -> Iterator[None]:
    """Within the block, ops choose backends of plain torch operations, which exporters can take apart.

    A backend that is asked for by name is taken all the same. It holds for the whole process.

    Example:
        >>> able = {"numba": lambda x: None, "reference": lambda x: None}
        >>> with plain_torch():
        ...     choose_backend("op", None, able, torch.ones(1))
        'reference'
    """
    # Not a ContextVar: torch.compile traces through here and guards on a plain global.
    global _plain_only
    before, _plain_only = _plain_only, True
    try:
        yield
    finally:
        _plain_only = before


def choose_backend(op: str, requested: Backend | None, obstacles: Mapping[Backend, Obstacle], like: Tensor) -> Backend:
    """The backend to run `op` with on tensors like `like`.

    Args:
        op: name of the op, for messages.
        requested: a backend by name, or None for the first that runs.
        obstacles: backend -> what keeps it from running; in order of preference.
        like: a tensor whose device and dtype decide.

    Returns:
        `requested`, or the first backend without an obstacle.

    Raises:
        BackendError: the backend asked for is unknown or cannot run here.

    Example:
        >>> choose_backend("op", None, {"numba": lambda x: "not today", "reference": lambda x: None}, torch.ones(1))
        'reference'
    """
    if requested is not None:
        _check_requested(op, requested, obstacles, like)
        chosen = requested
    else:
        allowed = PLAIN if _plain_only else tuple(obstacles)
        chosen = next(name for name, obstacle in obstacles.items() if name in allowed and obstacle(like) is None)
    if not torch.compiler.is_compiling():
        _announce(op, chosen, like)
    return chosen


def _check_requested(op: str, requested: Backend, obstacles: Mapping[Backend, Obstacle], like: Tensor) -> None:
    able = [name for name, obstacle in obstacles.items() if obstacle(like) is None]
    here = f"on {like.device.type} with {str(like.dtype).removeprefix('torch.')}"
    if requested not in obstacles:
        known = ", ".join(obstacles)
        reason = "no such backend" if requested not in get_args(Backend) else f"{op} has no such backend"
        raise BackendError(f"{op}: backend {requested!r}: {reason}; there are: {known}.")
    reason_or_none = obstacles[requested](like)
    if reason_or_none is not None:
        raise BackendError(
            f"{op}: backend {requested!r} cannot run {here}: {reason_or_none}. These can: {', '.join(able)}."
        )


def _announce(op: str, chosen: str, like: Tensor) -> None:
    key = (op, chosen, like.device.type, str(like.dtype))
    if key not in _announced:
        _announced.add(key)
        logger.info("%s runs with the %s backend on %s, %s", *key)
