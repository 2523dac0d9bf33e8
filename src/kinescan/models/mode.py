"""A model in evaluation or training mode without a flag being set on it: other threads may use it meanwhile."""

import functools
import types
from typing import Any, TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)

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


def evaluation_view(model: Model) -> Model:
    """The model in evaluation mode, as modules of its own that hold the model's own tensors.

    The model itself is not changed, not even for a moment, so that threads can predict with one model while another
    trains it. Hooks that stand on the model run in the view too. What `Module.compile` made runs uncompiled.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> view = evaluation_view(model)
        >>> [module.training for module in view], [module.training for module in model]
        ([False, False], [True, False])
    """
    return _view(model).eval()


def training_view(model: Model) -> Model:
    """The model in training mode, as modules of its own that hold the model's own tensors; see `evaluation_view`.

    Its buffers are the model's: a forward pass on real tensors changes running means.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> [module.training for module in training_view(model)], model[1].training
        ([True, True], False)
    """
    return _view(model).train()


def _view(model: Model) -> Model:
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
    """The value with views in the place of the model's own modules; everything else stays itself."""
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
