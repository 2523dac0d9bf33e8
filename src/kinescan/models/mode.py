"""A model in evaluation or training mode without a flag being set on it: other threads may use it meanwhile."""

from typing import TypeVar

from torch import nn

from kinescan.runtime.torch_internals import view_of_modules

Model = TypeVar("Model", bound=nn.Module)


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
    return view_of_modules(model).eval()


def training_view(model: Model) -> Model:
    """The model in training mode, as modules of its own that hold the model's own tensors; see `evaluation_view`.

    Its buffers are the model's: a forward pass on real tensors changes running means.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> [module.training for module in training_view(model)], model[1].training
        ([True, True], False)
    """
    return view_of_modules(model).train()
