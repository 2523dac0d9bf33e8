"""Every name of torch that torch calls private and this package uses, and nothing else.

A release of torch may change them without notice. `tests/runtime/test_torch_internals.py` says for each which feature
of ours breaks then; the range of versions that was tried stands in pyproject.toml.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = [
    "FakeTensorMode",
    "TorchDispatchMode",
    "active_transforms",
    "has_cpu_autocast_rule",
    "lerp_all_",
    "shared_storage",
    "tree_leaves",
    "tree_map",
    "with_cpu_autocast_kernels",
    "without_cpu_autocast",
]

_AUTOCAST_KEY = "AutocastCPU"


def lerp_all_(tensors: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """Moves each tensor by `weight` of the way to its end, in place, all in one call."""
    torch._foreach_lerp_(list(tensors), list(ends), weight)


def shared_storage(num_bytes: int) -> torch.UntypedStorage:
    """Memory that a worker process fills and the main process reads without a copy."""
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(num_bytes, device="cpu")
    return storage


def has_cpu_autocast_rule(name: str) -> bool:
    """Whether autocast on a CPU treats the operation aten::`name` specially."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", _AUTOCAST_KEY))


def without_cpu_autocast() -> AbstractContextManager[Any]:
    """Within the block, operations skip autocast's rules for a CPU."""
    guard: AbstractContextManager[Any] = torch._C._ExcludeDispatchKeyGuard(
        torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
    )
    return guard


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def active_transforms() -> tuple[str, ...]:
    """What of torch.func runs here ("grad", "jvp", "vmap", "functionalize"), and "forward" for forward mode.

    torch.compile asks while it traces, and compiles anew for other transforms.
    """
    levels = _functorch.get_interpreter_stack() or ()
    names = tuple(level.key().name.lower() for level in levels)
    return (*names, "forward") if forward_ad._current_level >= 0 else names


@contextmanager
def with_cpu_autocast_kernels(kernels: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Within the block, autocast on a CPU runs these for the operations of aten that they are named for."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name, kernel in kernels.items():
            with warnings.catch_warnings(action="ignore"):  # that the rule of a CPU is replaced
                library.impl(name, kernel, _AUTOCAST_KEY, allow_override=True)
        yield
