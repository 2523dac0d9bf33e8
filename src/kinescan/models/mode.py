"""A model in evaluation or training mode without a flag being set on it: other threads may use it meanwhile."""

from typing import TypeVar

from torch import nn

from kinescan.runtime.torch_internals import BatchNorm, view_of_modules

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


def complete_view(model: Model) -> Model:
    """As `evaluation_view`, computing every patch of every frame also where the model skips those that stand still.

    For exports and counts, which need the same work for every frame.
    """
    view = evaluation_view(model)
    if getattr(view, "skip_unchanged", None) is not None:
        view.skip_unchanged = None  # type: ignore[assignment]
    return view


def training_view(model: Model) -> Model:
    """The model in training mode, as modules of its own that hold the model's own tensors; see `evaluation_view`.

    Its buffers are the model's: a forward pass on real tensors changes running means.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> [module.training for module in training_view(model)], model[1].training
        ([True, True], False)
    """
    return train_mode(view_of_modules(model))


def train_mode(model: Model) -> Model:
    """The model itself in training mode, but for batch norms that are not trained: those stay in evaluation mode.

    A norm whose weight and bias are frozen belongs to a frozen part, whose running mean and variance must not change
    either. A norm without weights counts as frozen where the smallest part around it that has parameters is.

    Example:
        >>> model = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
        >>> _ = model.requires_grad_(False)
        >>> [module.training for module in train_mode(model)]
        [True, False]
    """
    model.train()
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm) and not _is_trained(model, name):
            module.eval()
    return model


def _is_trained(model: nn.Module, name: str) -> bool:
    """Whether the part of this name is trained; one without parameters is judged by what is around it."""
    parameters = list(model.get_submodule(name).parameters())
    if parameters or not name:
        return any(parameter.requires_grad for parameter in parameters) or not parameters
    return _is_trained(model, name.rpartition(".")[0])
