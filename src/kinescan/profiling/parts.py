"""Which part of a model is running: what is counted or timed meanwhile belongs to it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

from torch import nn

from kinescan.models.classifier import VideoClassifier

BACKBONE = "backbone"
"""What belongs to no other part."""
STEM, UPPER = "stem", "blocks after"
"""Of a backbone with a temporal module in its middle: what comes before it, and what comes after."""
MODULE_PARTS = ("kinematic.correlation", "kinematic.variation", "scanner")
PARTS = ("difference", "class_token_routes", *MODULE_PARTS, "tuner", "head")
"""Modules of a classifier that are parts by themselves, where it has them."""


@runtime_checkable
class CalledByMethods(Protocol):
    """A part of a model whose methods are called, and not the module itself."""

    def wrapped(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> AbstractContextManager[None]:
        """For the length of a block, what `wrap` makes of each method is called in its stead."""


class Parts:
    """The parts of a model, and which of them runs.

    Args:
        model: its parameters are told apart by their names.

    Attributes:
        names: in the order of the data, as far as they have one.
        current: the part that runs.
        on_switch: called before each change of `current`.
    """

    def __init__(self, model: VideoClassifier) -> None:
        self._own = tuple(name for name in PARTS if _called_modules(model, name))
        self.has_module = any(name in self._own for name in MODULE_PARTS)
        self._stem = frozenset(model.stem_parameters()) if self.has_module else frozenset()
        first, last = (STEM, UPPER) if self.has_module else (BACKBONE, BACKBONE)
        before = tuple(name for name in ("difference", "class_token_routes") if name in self._own)
        behind = tuple(name for name in ("tuner", "head") if name in self._own)
        middle = tuple(name for name in MODULE_PARTS if name in self._own)
        self.names = (first, *before, *middle, last, *behind) if self.has_module else (first, *before, *behind)
        self.current = self._rest = first
        self._last, self._last_of_module = last, middle[-1] if middle else None
        self.on_switch: Callable[[], None] = lambda: None

    def owner(self, parameter_name: str) -> str:
        """The part that a parameter belongs to."""
        part = next((name for name in self._own if parameter_name.startswith(f"{name}.")), None)
        if part is not None:
            return part
        return STEM if parameter_name in self._stem else self._last

    def enter(self, name: str) -> None:
        """A part begins."""
        self.on_switch()
        self.current = name

    def leave(self) -> None:
        """A part ends."""
        self.on_switch()
        if self.current == self._last_of_module:
            self._rest = self._last
        self.current = self._rest


@contextmanager
def watch_parts(model: VideoClassifier) -> Iterator[Parts]:
    """The parts of a model with `current` kept up to date in one forward pass; the model is left as it was.

    Args:
        model: called once inside.
    """
    parts = Parts(model)

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: parts.enter(name)

    def leave(*_: Any) -> None:
        parts.leave()

    def inside(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
            def run(*inputs: Any) -> Any:
                parts.enter(name)
                try:
                    return method(*inputs)
                finally:
                    parts.leave()

            return run

        return wrap

    with ExitStack() as stack:
        for name in parts.names:
            for module in _called_modules(model, name):
                if isinstance(module, CalledByMethods):
                    stack.enter_context(module.wrapped(inside(name)))
                    continue
                stack.callback(module.register_forward_pre_hook(enter(name)).remove)
                stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield parts


def _called_modules(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules that are called for a part of this name; none when the model does not have it."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return []
    return list(module) if isinstance(module, nn.ModuleList) else [module]
