from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; every module is put back into its own mode at the end.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with in_evaluation(model):
        ...     inside = [module.training for module in model]
        >>> inside, [module.training for module in model]
        ([False, False], [True, False])
    """
    with _in_mode(model, training=False):
        yield


@contextmanager
def in_training(model: nn.Module) -> Iterator[None]:
    """The model in training mode; every module is put back into its own mode at the end.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with in_training(model):
        ...     inside = [module.training for module in model]
        >>> inside, [module.training for module in model]
        ([True, True], [True, False])
    """
    with _in_mode(model, training=True):
        yield


@contextmanager
def _in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode
