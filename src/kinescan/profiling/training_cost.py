"""What a training step costs: the multiply-accumulates of its forward and backward pass, as they are carried out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kinescan.models.classifier import VideoClassifier
from kinescan.models.mode import training_view
from kinescan.profiling.cost import FORWARD_FORMULAS, CountsFilter, MacCounter, Macs
from kinescan.profiling.parts import watch_parts
from kinescan.runtime.torch_internals import FakeTensorMode

ATTENTION_BACKWARD, SCAN_BACKWARD, CORRELATION_BACKWARD = 2.5, 3, 2
"""Backward over forward passes: attention computes its scores again and four products for two, the scan its states
again and two gradients, the correlation a gradient of each of its two sides."""


def count_training_macs(model: VideoClassifier, *, num_frames: int | None = None) -> Macs:
    """MACs of the forward and backward pass of one clip, counted operation by operation; the optimizer is left out.

    What is frozen gets no gradient: products for its weights are not counted, nor is anything below the first part
    that is trained. What a layer computes again in the backward pass counts again.

    Args:
        model: on any device, also "meta"; it is not changed.
        num_frames: frames of the clip; by default as many as the model's preprocessing takes.

    Returns:
        The sum of all parts; `norms` and `dense_correlation` are of the forward pass alone.

    Example:
        >>> from kinescan.models.zoo import create_model
        >>> from kinescan.profiling.cost import count_cost
        >>> with torch.device("meta"):
        ...     model = create_model("vit_ti16", num_classes=10)
        >>> step, forward = count_training_macs(model), count_cost(model).macs
        >>> round(step.with_attention / forward.with_attention, 2)
        3.05
    """
    frames = model.preprocessing.num_frames if num_frames is None else num_frames
    size = model.config.image_size
    model = training_view(model)
    with watch_parts(model) as parts, torch.enable_grad(), FakeTensorMode():
        counter = MacCounter(parts, {**FORWARD_FORMULAS, **_BACKWARD_FORMULAS})
        step = _Step(model)
        weights = {name: _without_memory(tensor) for name, tensor in (*step.named_parameters(), *step.named_buffers())}
        clip = torch.empty(2, frames, 3, size, size, device="cpu")  # two: batch norms refuse a single value in training
        with _filters_counted(model, counter), counter:
            functional_call(step, weights, (clip,))
    both = sum(counter.macs.values(), Macs())
    return Macs(**{name: value // 2 for name, value in vars(both).items()})


class _Step(nn.Module):
    """A forward and a backward pass, inside which parts that are computed again find the same weights."""

    def __init__(self, model: VideoClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, clip: Tensor) -> None:
        self.model(clip).float().sum().backward()


def _attention(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Macs:
    forward = FORWARD_FORMULAS["aten::_scaled_dot_product_flash_attention_for_cpu"](query, key, value)
    return Macs(attention=round(ATTENTION_BACKWARD * forward.attention))


def _scan(grad_y: Tensor, grad_state: Tensor | None, *inputs: Any) -> Macs:
    return Macs(scan=SCAN_BACKWARD * FORWARD_FORMULAS["kinescan::selective_scan"](*inputs).scan)


def _correlation(grad: Tensor, *inputs: Any) -> Macs:
    forward = FORWARD_FORMULAS["kinescan::local_correlation"](*inputs)
    return Macs(correlation=CORRELATION_BACKWARD * forward.correlation)


_BACKWARD_FORMULAS: Mapping[str, Callable[..., Macs]] = {
    "kinescan::selective_scan_backward": _scan,
    "kinescan::local_correlation_backward": _correlation,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _attention,
}


@contextmanager
def _filters_counted(model: nn.Module, counter: MacCounter) -> Iterator[None]:
    """Filters over time that no operation shows: forward, and once more for each gradient that is asked of them."""

    def count_filter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, CountsFilter)
        gradients = inputs[0].requires_grad + any(parameter.requires_grad for parameter in module.parameters())
        counter.add(Macs(temporal=(1 + gradients) * module.filter_macs(inputs[0])))

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, CountsFilter):
                stack.callback(module.register_forward_pre_hook(count_filter).remove)
        yield


def _without_memory(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, dtype=dtype, device="cpu").requires_grad_(tensor.requires_grad)
