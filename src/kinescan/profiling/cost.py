"""What a model costs: parameters and multiply-accumulates (MACs) of one view, part by part.

The forward pass runs on tensors without memory, so that counting the largest model takes a second and no weights.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import flop_registry

from kinescan.errors import ConfigError
from kinescan.models.classifier import VideoClassifier
from kinescan.models.mode import complete_view
from kinescan.profiling.parts import Parts, watch_parts
from kinescan.runtime.torch_internals import FakeTensorMode, TorchDispatchMode, overload_packet

SCAN_MACS = 9
"""Operations of the selective scan for each trajectory, step, channel and state entry."""
NORM_OPERATIONS = 5
"""Operations of a normalisation for each element, as the published counts have them."""
BACKWARD_FACTOR = 3
"""A training step over its forward pass: the backward pass computes two products for each one."""
FLOPS_PER_MAC = 2


@dataclass(frozen=True, kw_only=True)
class Macs:
    """Multiply-accumulates of one view by kind.

    Attributes:
        products: matrix products and convolutions, attention's projections among them.
        attention: attention's own products, queries with keys and weights with values.
        scan: selective scans, 9 * R * T * D * S.
        correlation: local correlations, every offset and displacement of the window.
        temporal: depthwise filters over time, of the class-token route and of the scanner.
        dense_correlation: what the correlations would be as full products of frames; not in any total but `published`.
        norms: normalisations, 5 for each element; not in any total but `published`.
    """

    products: int = 0
    attention: int = 0
    scan: int = 0
    correlation: int = 0
    temporal: int = 0
    dense_correlation: int = 0
    norms: int = 0

    @property
    def with_attention(self) -> int:
        """All that is computed here."""
        return self.without_attention + self.attention

    @property
    def without_attention(self) -> int:
        """All that is computed here but attention's products, as the counters of the field leave them out."""
        return self.products + self.scan + self.correlation + self.temporal

    @property
    def published(self) -> int:
        """As the tables of the PKS4 paper count, to compare with them.

        Attention's products are left out, normalisations count 5 for each element, the correlation counts as full
        products of frames, and filters written as sums of shifted frames do not count.
        """
        return self.products + self.scan + self.dense_correlation + self.norms

    def __add__(self, other: "Macs") -> "Macs":
        return Macs(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """One part of a model.

    Attributes:
        name: the part.
        num_parameters: all of its parameters.
        num_trained: those that are trained.
        macs: of one view.
    """

    name: str
    num_parameters: int
    num_trained: int
    macs: Macs


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model costs for one view.

    Attributes:
        model: its name.
        num_frames: frames of the view.
        image_size: side of a frame in pixels.
        parts: in the order of the data.
    """

    model: str
    num_frames: int
    image_size: int
    parts: tuple[PartCost, ...]

    @property
    def num_parameters(self) -> int:
        """All parameters."""
        return sum(part.num_parameters for part in self.parts)

    @property
    def num_trained(self) -> int:
        """Parameters that are trained."""
        return sum(part.num_trained for part in self.parts)

    @property
    def num_frozen(self) -> int:
        """Parameters that are not trained."""
        return self.num_parameters - self.num_trained

    @property
    def macs(self) -> Macs:
        """Of all parts together."""
        return sum((part.macs for part in self.parts), Macs())


def count_cost(model: VideoClassifier, *, num_frames: int | None = None) -> Cost:
    """Parameters and MACs of one view, by part.

    Args:
        model: on any device, also "meta"; it is not changed.
        num_frames: frames of the view; by default as many as the model's preprocessing takes.

    Raises:
        ConfigError: num_frames is below 1.

    Example:
        >>> from kinescan.models.zoo import create_model
        >>> with torch.device("meta"):
        ...     model = create_model("vit_b16", num_classes=174)
        >>> macs = count_cost(model, num_frames=8).macs
        >>> round(macs.without_attention / 1e9, 2), round(macs.with_attention / 1e9, 2)
        (134.79, 140.51)
    """
    num_frames = model.preprocessing.num_frames if num_frames is None else num_frames
    if num_frames < 1:
        raise ConfigError(f"num_frames must be at least 1, got {num_frames}.")
    model = complete_view(model)
    with watch_parts(model) as parts, torch.no_grad(), FakeTensorMode():
        counter = MacCounter(parts, FORWARD_FORMULAS)
        weights = {name: _like(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        clip = torch.empty(1, num_frames, 3, model.config.image_size, model.config.image_size, device="cpu")
        with _temporal_filters_counted(model, counter), counter:
            functional_call(model, weights, (clip,))
    return Cost(
        model=model.name,
        num_frames=num_frames,
        image_size=model.config.image_size,
        parts=tuple(_part_cost(model, name, parts, counter) for name in parts.names),
    )


def training_flops(macs_per_clip: float, *, num_clips: int, num_epochs: int) -> float:
    """Floating-point operations of a whole training: three forward passes a step, two operations a MAC.

    Args:
        macs_per_clip: MACs of one forward pass of one clip.
        num_clips: clips in an epoch.
        num_epochs: passes over the data.

    Source: PKS4 (arXiv 2604.26461), Table 2: 2.952 EFLOPs for 20 epochs of the 168,913 clips of SSV2.

    Example:
        >>> round(training_flops(145.64e9, num_clips=168_913, num_epochs=20) / 1e18, 3)
        2.952
    """
    return FLOPS_PER_MAC * BACKWARD_FACTOR * macs_per_clip * num_clips * num_epochs


class MacCounter(TorchDispatchMode):
    """Adds up the MACs of every operation for the part that is running.

    Args:
        parts: which one that is.
        formulas: operation -> its MACs, where torch's own counter has none.
    """

    def __init__(self, parts: Parts, formulas: Mapping[str, Callable[..., Macs]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts, self.formulas = parts, formulas
        self.macs: dict[str, Macs] = {}

    def add(self, macs: Macs) -> None:
        """Counts MACs for the part that is running."""
        part = self.parts.current
        self.macs[part] = self.macs.get(part, Macs()) + macs

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = self.formulas.get(func.name().partition(".")[0])
        if formula is not None:
            self.add(formula(*args))
        elif overload_packet(func) in flop_registry:
            flops = flop_registry[overload_packet(func)](*args, **(kwargs or {}), out_val=out)
            self.add(Macs(products=flops // FLOPS_PER_MAC))
        return out


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Macs:
    pairs = math.prod(query.shape[:-1]) * key.shape[-2]
    return Macs(attention=pairs * (key.shape[-1] + value.shape[-1]))


def _norm(features: Tensor, *_: Any) -> Macs:
    return Macs(norms=NORM_OPERATIONS * features.numel())


def _scan(u: Tensor, delta: Tensor, decay: Tensor, *_: Any) -> Macs:
    return Macs(scan=SCAN_MACS * u.numel() * decay.shape[-1])


def _correlation(
    features: Tensor, offsets: tuple[int, ...], window: int, replicate: bool, first_frame: int, *_: Any
) -> Macs:
    batch, num_frames, channels, height, width = features.shape
    patches = batch * (num_frames - first_frame) * len(offsets) * height * width
    return Macs(
        correlation=patches * window**2 * channels,
        dense_correlation=patches * height * width * channels,
    )


FORWARD_FORMULAS: Mapping[str, Callable[..., Macs]] = {
    "kinescan::selective_scan": _scan,
    "kinescan::selective_scan_into": _scan,
    "kinescan::local_correlation": _correlation,
    "aten::native_layer_norm": _norm,
    "aten::native_batch_norm": _norm,
    "aten::native_group_norm": _norm,
    # torch's own counter takes attention on a CPU for nothing.
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
}


@runtime_checkable
class CountsFilter(Protocol):
    """A layer with a filter over time that is written as a sum of shifted frames, which no operation shows.

    A layer of your own that has this method is counted as ours are.
    """

    def filter_macs(self, tokens: Tensor) -> int:
        """MACs of the filter for the first input of the layer's `forward`, of any shape [...]."""


@contextmanager
def _temporal_filters_counted(model: nn.Module, counter: MacCounter) -> Iterator[None]:
    """Hooks on the modules whose filters over time no operation shows."""

    def count_filter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, CountsFilter)
        counter.add(Macs(temporal=module.filter_macs(inputs[0])))

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, CountsFilter):
                stack.callback(module.register_forward_pre_hook(count_filter).remove)
        yield


def _part_cost(model: nn.Module, name: str, parts: Parts, counter: MacCounter) -> PartCost:
    own = [parameter for key, parameter in model.named_parameters() if parts.owner(key) == name]
    return PartCost(
        name=name,
        num_parameters=sum(parameter.numel() for parameter in own),
        num_trained=sum(parameter.numel() for parameter in own if parameter.requires_grad),
        macs=counter.macs.get(name, Macs()),
    )


def _like(tensor: Tensor) -> Tensor:
    """A tensor without memory that every operation with a formula takes: on the CPU, in float32."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, dtype=dtype, device="cpu")
