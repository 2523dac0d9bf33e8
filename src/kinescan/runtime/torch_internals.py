"""Every name of torch that torch calls private and this package uses, and nothing else.

A release of torch may change them without notice. `tests/runtime/test_torch_internals.py` says for each which feature
of kinescan breaks then; the range of versions that was tried is in pyproject.toml.
"""

import functools
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import wait
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = [
    "BatchNorm",
    "CompilationError",
    "FakeTensorMode",
    "TorchDispatchMode",
    "active_transforms",
    "argument_names",
    "compile_shared_layers",
    "constant_when_compiled",
    "ended_worker",
    "exhausted_memory",
    "has_cpu_autocast_rule",
    "held_tensors",
    "lerp_all_",
    "overload_packet",
    "remove_forward_hooks",
    "runs_alone",
    "shared_storage",
    "storage_key",
    "tree_leaves",
    "tree_map",
    "view_of_modules",
    "with_cpu_autocast_kernels",
    "without_cpu_autocast",
]

Model = TypeVar("Model", bound=nn.Module)
Function = TypeVar("Function", bound=Callable[..., Any])

_AUTOCAST_KEY = "AutocastCPU"
_KINDS_OF_INPUTS = 64
_PLAIN = (Tensor, nn.Parameter)
_OWN_DICTS = (
    "_parameters",
    "_buffers",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
"""Of a module, what the view has for itself: hooks that are set on one of the two do not run in the other."""


class CompilationError(RuntimeError):
    """torch.compile has failed."""


@contextmanager
def compile_shared_layers() -> Iterator[None]:
    """Within the block, layers of one class that torch.compile runs share what was compiled, however many they are.

    Whole numbers of a module (a layer's index) become variables of the compiled code where they differ, and code may be
    compiled for more kinds of inputs than the few that torch allows before it gives up.

    Raises:
        CompilationError: code cannot be compiled.
    """
    with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True, recompile_limit=_KINDS_OF_INPUTS):
        try:
            yield
        except torch._dynamo.exc.TorchDynamoException as error:
            raise CompilationError(str(error)) from error


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


def constant_when_compiled(function: Function) -> Function:
    """Marks a function whose answer torch.compile may take for a constant.

    It does what `torch.compiler.assume_constant_result` does, which would load the compiler at import: two seconds of
    every command's start.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_compiled
def active_transforms() -> tuple[str, ...]:
    """What of torch.func runs here ("grad", "jvp", "vmap", "functionalize"), and "forward" for forward mode.

    torch.compile asks while it traces, and compiles anew for other transforms.
    """
    levels = _functorch.get_interpreter_stack() or ()
    names = tuple(level.key().name.lower() for level in levels)
    return (*names, "forward") if forward_ad._current_level >= 0 else names


def runs_alone(tensors: Sequence[Tensor | None]) -> bool:
    """Whether calling the kernel of an operator on a CPU is all that calling the operator would do.

    So it is where no gradient is wanted and nothing watches: no compiler, no transform, no mode, no tracing. The first
    call of an operator of one's own loads torch's compiler, which takes two seconds of every process; where it is
    loaded already, the operator is called.

    Args:
        tensors: its inputs.
    """
    return (
        "torch._dynamo" not in sys.modules
        and not torch.is_grad_enabled()
        and all(tensor is None or (type(tensor) in _PLAIN and tensor.device.type == "cpu") for tensor in tensors)
        and not active_transforms()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
    )


@contextmanager
def with_cpu_autocast_kernels(kernels: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Within the block, autocast on a CPU runs these for the operations of aten that they are named for."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name, kernel in kernels.items():
            with warnings.catch_warnings(action="ignore"):  # that the rule of a CPU is replaced
                library.impl(name, kernel, _AUTOCAST_KEY, allow_override=True)
        yield


def ended_worker(batches: Any, seconds: float = 5.0) -> str | None:
    """Which worker process of a DataLoader's iterator has ended, in one line; None where all of them live.

    Args:
        batches: `iter(loader)`.
        seconds: how long to wait for one. Where the system ends a worker that hands a tensor on, the connection breaks
            before the process counts as ended, and torch passes on whatever that connection raised.
    """
    workers = getattr(batches, "_workers", [])
    try:
        sentinels = wait([worker.sentinel for worker in workers], timeout=seconds) if workers else []
    except RuntimeError:  # torch's handler of the signal of a child that ended; it raises once for each loader
        sentinels = wait([worker.sentinel for worker in workers], timeout=seconds)
    if not sentinels:
        return None
    ended = next(worker for worker in workers if worker.sentinel == sentinels[0])
    ended.join(seconds)
    return f"DataLoader worker (pid {ended.pid}) ended with exit code {ended.exitcode}"


def exhausted_memory(error: RuntimeError) -> str | None:
    """What torch says of a device whose memory is full, in one line; None for every other error.

    CUDA has a type of its own; of Apple's GPUs and of CPUs, only torch's text tells.
    """
    first = str(error).splitlines()[0] if str(error) else ""
    by_text = "MPS backend out of memory" in first or "DefaultCPUAllocator: can't allocate memory" in first
    return first if by_text or isinstance(error, torch.OutOfMemoryError) else None


def argument_names(operation: Any) -> list[str]:
    """Names of what an operation such as torch.ops.aten.sum.dim_IntList takes, in order."""
    return [argument.name for argument in operation._schema.arguments]


def overload_packet(operation: Any) -> Any:
    """The operation without its overload, as torch's registry of FLOP formulas lists it."""
    return operation._overloadpacket


def storage_key(tensor: Tensor) -> int:
    """A number that two tensors share where they share their memory; fake tensors, which have no address, too."""
    key: int = tensor.untyped_storage()._cdata
    return key


def held_tensors(module: nn.Module) -> list[Tensor]:
    """Every tensor that a module itself holds: parameters, buffers and plain attributes, not those of modules below."""
    held = (vars(module), module._parameters, module._buffers)
    return [value for values in held for value in values.values() if isinstance(value, Tensor)]


def remove_forward_hooks(module: nn.Module, name: str) -> None:
    """Takes away the forward hooks that are functions of this name."""
    for key, hook in list(module._forward_hooks.items()):
        if getattr(hook, "__name__", "") == name:
            del module._forward_hooks[key]


def view_of_modules(model: Model) -> Model:
    """The model as modules of its own that hold the model's own tensors; hooks and modes are set apart.

    What `Module.compile` made is left out.
    """
    views: dict[int, Any] = {}
    for module in model.modules():
        views[id(module)] = type(module).__new__(type(module))
    for module in model.modules():
        state = {name: _seen(value, views) for name, value in module.__dict__.items()}
        state["_modules"] = {name: _seen(child, views) for name, child in module._modules.items()}
        for name in _OWN_DICTS:
            if name in state:
                state[name] = state[name].copy()
        # What torch.compile made would call the module that it was made of.
        state["_compiled_call_impl"] = None
        views[id(module)].__dict__.update(state)
    found: Model = _seen(model, views)
    return found


def _seen(value: Any, views: dict[int, Any]) -> Any:
    """The value with views instead of the model's own modules; everything else stays itself."""
    if isinstance(value, nn.Module):
        # A module that torch.compile wrapped stands for the one inside.
        inner = value.__dict__.get("_modules", {}).get("_orig_mod", value)
        return views.get(id(inner), value)
    if isinstance(value, types.MethodType) and id(value.__self__) in views:
        return types.MethodType(value.__func__, views[id(value.__self__)])
    if isinstance(value, functools.partial) and any(id(part) in views for part in value.args):
        return functools.partial(value.func, *(_seen(part, views) for part in value.args), **value.keywords)
    if type(value) in (list, tuple) and any(id(part) in views for part in value):
        return type(value)(_seen(part, views) for part in value)
    return value
