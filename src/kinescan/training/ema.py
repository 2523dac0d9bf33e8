from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kinescan.runtime.torch_internals import lerp_all_
from kinescan.training.sharding import fill, own_part


class WeightEma:
    """Exponential moving average (EMA) of a model's trained weights: it scores more steadily than they do.

    After step t, ema = d * ema + (1 - d) * weights with d = min(decay, (1 + t) / (10 + t)), so that the start
    values are soon forgotten. Statistics of batch norms are averaged too; weights that are not trained are left alone.

    Args:
        model: whose weights are averaged; they are the EMA of step 0.
        decay: in (0, 1).

    Attributes:
        weights_by_name: the EMA by name; divided between processes as the weights are.

    Source: exponential moving averages as in TensorFlow's `ExponentialMovingAverage` with `num_updates`.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> ema = WeightEma(model, decay=0.5)
        >>> _ = nn.init.ones_(model.weight)
        >>> ema.update(step=100)
        >>> with ema.in_model():
        ...     print(model.weight.item())
        0.5
        >>> model.weight.item()
        1.0
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights = _moving(model)
        self.weights_by_name = {name: tensor.detach().clone() for name, tensor in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights after a step.

        Args:
            step: steps taken, from 1.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        means = [own_part(tensor) for tensor in self.weights_by_name.values()]
        lerp_all_(means, [own_part(weight.detach()) for weight in self._weights.values()], 1 - decay)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """The model with the EMA as its weights; its own are put back at the end."""
        own = self.weights()
        self._fill(self.weights_by_name)
        try:
            yield
        finally:
            self._fill(own)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the model's own weights, of those that are averaged."""
        return {name: tensor.detach().clone() for name, tensor in self._weights.items()}

    def own_weights(self) -> dict[str, Tensor]:
        """The model's own weights themselves, of those that are averaged."""
        return {name: tensor.detach() for name, tensor in self._weights.items()}

    def leave_in_model(self) -> None:
        """Makes the EMA the model's weights for good."""
        self._fill(self.weights_by_name)

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Takes what the model holds for the EMA, and gives it the weights of `weights` instead.

        Raises:
            KeyError: they belong to another model, or to other trained parameters.
        """
        if weights.keys() != self._weights.keys():
            raise KeyError("its averaged weights are others")
        self.weights_by_name = self.weights()
        self._fill(weights)

    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in self._weights.items():
            fill(tensor, values[name])


def _moving(model: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and floating-point buffers by name; the tensors themselves."""
    parameters = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    buffers = {name: tensor for name, tensor in model.named_buffers() if tensor.is_floating_point()}
    return parameters | buffers
