"""A backend of the local correlation as an operator that torch can differentiate, compile and export."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kinescan.ops.backend import refuse_second_derivative
from kinescan.runtime.torch_internals import runs_alone
from kinescan.shapes import FrameMaps


class Settings(NamedTuple):
    """What a correlation depends on besides the features, as in `reference.correlate_clip`.

    Attributes:
        offsets: frames to look at, relative to each frame.
        window: odd side of the square of displacements.
        replicate: look at the first or last frame instead of one outside the clip.
        first_frame: first frame whose maps are wanted.
        epsilon: added to squared lengths.
    """

    offsets: tuple[int, ...]
    window: int
    replicate: bool
    first_frame: int
    epsilon: float


Forward = Callable[[Tensor, Settings], Tensor]
"""Takes features [B, T, C, H, W], gives maps [B, T - first_frame, K, window * window, H, W] in their dtype."""
Backward = Callable[[Tensor, Tensor, Settings], Tensor]
"""Takes the gradient of the maps and the features, gives that of the features in their dtype."""
Correlate = Callable[..., Float[Tensor, "B _ K M H W"]]


def register_correlation(name: str, forward: Forward, backward: Backward, device_types: str | None = None) -> Correlate:
    """Operators `kinescan::<name>` and `kinescan::<name>_backward` of the two functions, kept apart by the features.

    Returns:
        a function with the arguments of `reference.correlate_clip`; its gradient can be taken once.
    """

    @torch.library.custom_op(f"kinescan::{name}", mutates_args=(), device_types=device_types)
    def correlate(
        features: Tensor, offsets: Sequence[int], window: int, replicate: bool, first_frame: int, epsilon: float
    ) -> Tensor:
        return forward(features, Settings(tuple(offsets), window, replicate, first_frame, epsilon))

    @torch.library.custom_op(f"kinescan::{name}_backward", mutates_args=(), device_types=device_types)
    def correlate_backward(
        grad: Tensor,
        features: Tensor,
        offsets: Sequence[int],
        window: int,
        replicate: bool,
        first_frame: int,
        epsilon: float,
    ) -> Tensor:
        return backward(grad, features, Settings(tuple(offsets), window, replicate, first_frame, epsilon))

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (features,) = ctx.saved_tensors
        return correlate_backward(grad, features, *ctx.settings), None, None, None, None, None

    correlate.register_fake(_fake_maps)
    correlate_backward.register_fake(_fake_gradient)
    correlate.register_autograd(differentiate, setup_context=_keep_for_backward)
    op = name.removesuffix("_triton")
    refuse_second_derivative(correlate_backward, op, "numba" if op == name else "triton")

    def correlate_clip(
        features: FrameMaps,
        offsets: tuple[int, ...],
        window: int,
        *,
        replicate: bool,
        epsilon: float = 0.0,
        first_frame: int = 0,
    ) -> Float[Tensor, "B _ K M H W"]:
        if runs_alone((features,)):
            return forward(features, Settings(offsets, window, replicate, first_frame, epsilon))
        maps: Tensor = correlate(features, list(offsets), window, replicate, first_frame, epsilon)
        return maps

    return correlate_clip


def _fake_maps(
    features: Tensor, offsets: Sequence[int], window: int, replicate: bool, first_frame: int, epsilon: float
) -> Tensor:
    batch, num_frames, _, height, width = features.shape
    return features.new_empty(batch, num_frames - first_frame, len(offsets), window * window, height, width)


def _fake_gradient(grad: Tensor, features: Tensor, *settings: Any) -> Tensor:
    return torch.empty(features.shape, dtype=features.dtype, device=features.device)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, *ctx.settings = inputs
    ctx.save_for_backward(features)
