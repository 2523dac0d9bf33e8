"""Which backends run here, why others cannot, the choice, and one log line that says it."""

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, get_args

import torch
from torch import Tensor

from kinescan.errors import BackendError
from kinescan.runtime.backend_names import Backend
from kinescan.runtime.error_text import typed_line
from kinescan.runtime.torch_internals import active_transforms, constant_when_compiled

logger = logging.getLogger(__name__)

Obstacle = Callable[[Tensor], str | None]
"""Says why a backend cannot run on a tensor like this one, or None when it can."""

PLAIN: tuple[Backend, ...] = ("dense", "reference", "blockwise")
"""Backends of plain torch operations."""

_plain_only = False
_announced: set[tuple[str, str, str]] = set()


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


def plain_only() -> bool:
    """Whether `plain_torch` holds."""
    return _plain_only


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
    if differentiated_by_transform():
        obstacles = {name: obstacle if name in PLAIN else _no_transform for name, obstacle in obstacles.items()}
    if requested is not None:
        _check_requested(op, requested, obstacles, like)
        chosen = requested
    else:
        allowed = PLAIN if _plain_only else tuple(obstacles)
        chosen = next(name for name, obstacle in obstacles.items() if name in allowed and obstacle(like) is None)
    if not torch.compiler.is_compiling():
        _announce(op, chosen, like)
    return chosen


def without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """A context in which autocast rounds no product on the device of `like`; none where autocast is off, for exporters.

    Example:
        >>> x = torch.ones(2, 2)
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), without_autocast(x):
        ...     (x @ x).dtype
        torch.float32
    """
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def differentiated_by_transform() -> bool:
    """Whether a gradient is taken here by torch.func (grad, vjp, jvp, ...) or in forward mode.

    Kernels that torch knows only through `register_autograd` would give tangents of zero, or torch's own errors.
    """
    return any(name in ("grad", "jvp", "forward") for name in active_transforms())


def transformed() -> bool:
    """Whether anything of torch.func runs here, torch.vmap among them, or a gradient is taken in forward mode."""
    return any(name != "functionalize" for name in active_transforms())


def refuse_second_derivative(backward: Any, op: str, backend: str) -> None:
    """Gives an operator that computes a gradient an error of `kinescan.errors` for the gradient of that gradient.

    Args:
        backward: a `torch.library.custom_op`.
        op: name of the op that users call.
        backend: its backend.

    Raises:
        BackendError: not here, but when the second derivative is computed.
    """

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise BackendError(
            f'{op}: backend {backend!r} has no second derivative. Call it with backend="reference", '
            "or a model that calls it within kinescan.ops.backend.plain_torch()."
        )

    backward.register_autograd(refuse)


def _no_transform(like: Tensor) -> str:
    return (
        "it has first derivatives by backward() and torch.autograd.grad alone, not by torch.func or in forward mode "
        '(use backend="reference", or leave backend out)'
    )


def triton_obstacle(like: Tensor) -> str | None:
    """What keeps Triton's kernels from running on tensors like this one.

    They run on CUDA devices. On a CPU they run in Triton's interpreter alone, which is for tests: slow, and on only
    where TRITON_INTERPRET=1 stood in the environment before the first kernel was used.
    """
    problem = _triton_problem(like.device.type)
    if problem is None and like.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return "it takes float32, bfloat16 and float16"
    return problem


@constant_when_compiled
def _triton_problem(device_type: str) -> str | None:
    if not _triton_is_installed():
        return "triton is not installed (it comes with PyTorch's CUDA build)"
    if device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "it needs a CUDA device"
    return _triton_import_problem() or _triton_launch_problem(device_type)


@functools.cache
def _triton_is_installed() -> bool:
    # looking through the folders of sys.path takes as long as a small op, so it is done once
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _triton_import_problem() -> str | None:
    try:
        importlib.import_module("triton.language")
    except Exception as error:  # whatever a broken installation raises
        return f"triton cannot be imported ({typed_line(error)})"
    return None


@functools.cache
def _triton_launch_problem(device_type: str) -> str | None:
    """What a trivial kernel meets; without a C compiler, say, Triton can be imported but runs nothing."""
    try:
        importlib.import_module("kinescan.ops.triton_probe").launch(device_type)
    except Exception as error:  # whatever compilers, drivers and Triton itself raise
        return f"triton cannot run a kernel here ({typed_line(error)})"
    return None


def _check_requested(op: str, requested: Backend, obstacles: Mapping[Backend, Obstacle], like: Tensor) -> None:
    able = [name for name, obstacle in obstacles.items() if obstacle(like) is None]
    here = f"on {like.device.type} with {str(like.dtype).removeprefix('torch.')}"
    if requested not in obstacles:
        known = ", ".join(obstacles)
        reason = "no such backend" if requested not in get_args(Backend) else f"{op} has no such backend"
        text = f"backend {requested!r}: {reason}; there are: {known}."
        raise BackendError(f"{op}: {text}", reason=text, is_offered=False)
    reason_or_none = obstacles[requested](like)
    if reason_or_none is not None:
        text = f"backend {requested!r} cannot run {here}: {reason_or_none}. These can: {', '.join(able)}."
        raise BackendError(f"{op}: {text}", reason=text)


def _announce(op: str, chosen: str, like: Tensor) -> None:
    # Not the dtype: in one run an op meets several, and the line says nothing new.
    key = (op, chosen, like.device.type)
    if key not in _announced:
        _announced.add(key)
        logger.info("%s runs with the %s backend on %s", *key)
