"""Local correlation: cosines between each patch and displaced patches of the frames around it."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from kinescan.errors import ConfigError, ShapeError
from kinescan.ops.backend import Obstacle, choose_backend, triton_obstacle, without_autocast
from kinescan.ops.local_correlation import dense, numba, reference
from kinescan.ops.local_correlation.operator import Correlate, Settings, register_correlation
from kinescan.runtime.backend_names import Backend
from kinescan.shapes import CorrelationMaps, FrameMaps

__all__ = ["Border", "local_correlation", "local_correlation_step"]

Border = Literal["zeros", "replicate"]
"""What stands for frames outside the clip: zeros, or the clip's first or last frame."""

WIDEST = 255
"""Largest window: it reaches from one end to the other of a frame of 128 x 128 patches."""
_OBSTACLES: Mapping[Backend, Obstacle] = {
    "numba": numba.obstacle,
    "triton": triton_obstacle,
    "dense": dense.obstacle,
    "reference": lambda features: None,
}


def local_correlation(
    features: FrameMaps,
    offsets: tuple[int, ...] = (-2, -1, 0, 1, 2),
    window: int = 9,
    border: Border = "zeros",
    backend: Backend | None = None,
    *,
    epsilon: float = 0.0,
) -> CorrelationMaps:
    """Cosines between each patch and the patches within a window around it in other frames (a local cost volume).

    Features are L2-normalised over channels, so that every value is a cosine. Vectors shorter than 1e-12 count as
    zero: their cosines are 0, and so is their gradient. (With `epsilon` they are short vectors like any other.)

    Args:
        features: [B, T, C, H, W], float32, bfloat16 or float16 (float64 with the reference backend). The half types
            are computed in float32.
        offsets: frames to look at, in frames relative to t; 0 is the frame itself.
        window: side of the square of displacements, in patches; odd.
        border: what stands for frames outside the clip: "zeros", or "replicate" for its first or last frame.
        backend: "numba" (CPU), "triton" (CUDA), "dense" (one product of all patches with all) or "reference"; by
            default the fastest that runs on this device and dtype.
        epsilon: added to the squared length of each vector, which keeps the gradient of short ones small; not negative.

    Returns:
        [B, T, K, window * window, H, W] in [-1, 1] and the dtype of `features`, K = len(offsets); displacement
        (dy, dx) is channel (dy + window // 2) * window + dx + window // 2; zero outside the frame, and outside the
        clip unless `border` is "replicate".

    Raises:
        ShapeError: features are not floating [B, T, C, H, W] or have an empty axis, or window is even.
        ConfigError: offsets are empty, border is unknown, or epsilon is negative.
        BackendError: the backend asked for cannot run here; the message says why and which can.

    Source: PKS4 (arXiv 2604.26461), eq. 15.
    Differs: the paper leaves borders open; we use zeros, as in the published correlation block that it follows.

    Example:
        >>> frames = torch.ones(1, 8, 64, 14, 14)
        >>> maps = local_correlation(frames, offsets=(-1, 0))
        >>> maps.shape
        torch.Size([1, 8, 2, 81, 14, 14])
        >>> centre = 4 * 9 + 4
        >>> [round(maps[0, t, 0, centre, 7, 7].item(), 3) for t in (0, 1)]
        [0.0, 1.0]
    """
    _check_features("features", features, "[B, T, C, H, W]")
    _check_window(window)
    if len(offsets) == 0:
        raise ConfigError("offsets are empty. Name at least one frame offset, such as (0,) or (-2, -1, 0, 1, 2).")
    if border not in get_args(Border):
        raise ConfigError(f"border must be 'zeros' or 'replicate', got {border!r}.")
    _check_epsilon(epsilon)
    chosen = choose_backend("local_correlation", backend, _OBSTACLES, features)
    return _run(
        chosen, features, tuple(offsets), window, replicate=border == "replicate", epsilon=epsilon, first_frame=0
    )


def local_correlation_step(
    current: Float[Tensor, "B C H W"],
    context: Float[Tensor, "B K C H W"],
    window: int = 9,
    backend: Backend | None = None,
    *,
    epsilon: float = 0.0,
) -> Float[Tensor, "B K M H W"]:
    """The maps of one frame alone, against frames that the caller kept: what a stream computes per frame.

    Equal to the last frame of `local_correlation` on the frames (context, current) with the offsets -K .. -1. To
    correlate the frame with itself, put it into the context as well; for a frame outside the clip put zeros.

    Args:
        current: [B, C, H, W], the frame that has just come; dtypes as for `local_correlation`.
        context: [B, K, C, H, W], the frames to look at, in the order in which their maps are wanted.
        window: side of the square of displacements, in patches; odd.
        backend: "numba" (CPU), "triton" (CUDA), "dense" (one product of all patches with all) or "reference"; by
            default the fastest that runs on this device and dtype.
        epsilon: added to the squared length of each vector, which keeps the gradient of short ones small; not negative.

    Returns:
        [B, K, window * window, H, W], values and channels as in `local_correlation`.

    Raises:
        ShapeError: current and context do not fit each other, are not floating or have an empty axis, or window is
            even.
        BackendError: the backend asked for cannot run here; the message says why and which can.

    Source: PKS4 (arXiv 2604.26461), eq. 15, for a single t.

    Example:
        >>> maps = local_correlation_step(torch.ones(1, 64, 14, 14), torch.ones(1, 4, 64, 14, 14))
        >>> maps.shape
        torch.Size([1, 4, 81, 14, 14])
    """
    _check_features("context", context, "[B, K, C, H, W]")
    _check_window(window)
    expected = (context.shape[0], *context.shape[2:])
    if tuple(current.shape) != expected:
        raise ShapeError(
            f"current must be [B, C, H, W] = {list(expected)} to go with context {list(context.shape)}, "
            f"got {list(current.shape)}."
        )
    if current.dtype != context.dtype:
        raise ShapeError(f"current is {current.dtype} but context is {context.dtype}. Give both in one dtype.")
    chosen = choose_backend("local_correlation", backend, _OBSTACLES, current)
    _check_epsilon(epsilon)
    num_context = context.shape[1]
    frames = torch.cat([context, current[:, None]], dim=1)
    offsets = tuple(range(-num_context, 0))
    return _run(chosen, frames, offsets, window, replicate=False, epsilon=epsilon, first_frame=num_context)[:, 0]


def _run(
    chosen: Backend,
    features: FrameMaps,
    offsets: tuple[int, ...],
    window: int,
    *,
    replicate: bool,
    epsilon: float,
    first_frame: int,
) -> Float[Tensor, "B _ K M H W"]:
    # Triton's kernels read half types themselves.
    is_half = features.dtype in (torch.bfloat16, torch.float16) and chosen != "triton"
    wide = features.float() if is_half else features
    with without_autocast(wide):
        maps = _FORMS[chosen](wide, offsets, window, replicate=replicate, epsilon=epsilon, first_frame=first_frame)
    return maps.to(features.dtype)


def _correlate_with_triton(features: Tensor, settings: Settings) -> Tensor:
    # triton is optional, and decides between compiler and interpreter when its kernels are imported
    from kinescan.ops.local_correlation import triton

    return triton.correlate(features, settings)


def _correlate_backward_with_triton(grad: Tensor, features: Tensor, settings: Settings) -> Tensor:
    from kinescan.ops.local_correlation import triton

    return triton.correlate_backward(grad, features, settings)


_FORMS: Mapping[Backend, Correlate] = {
    "numba": numba.correlate_clip,
    "dense": dense.correlate_clip,
    "triton": register_correlation("local_correlation_triton", _correlate_with_triton, _correlate_backward_with_triton),
    "reference": reference.correlate_clip,
}


def _check_features(name: str, features: Tensor, axes: str) -> None:
    if features.ndim != 5 or not features.is_floating_point():
        kind = str(features.dtype).removeprefix("torch.")
        raise ShapeError(
            f"{name} must be floating {axes}, got {kind} {list(features.shape)}. "
            "Patch tokens [B, T, N, C] have to be laid out as maps first."
        )
    if 0 in features.shape:
        raise ShapeError(f"{name} {axes} must not have an empty axis, got {list(features.shape)}.")


def _check_window(window: int) -> None:
    if window < 1 or window % 2 == 0:
        near = f"{max(window, 2) - 1} or {max(window, 2) + 1}"
        raise ShapeError(
            f"window must be odd and positive, got {window}. Use {near}: the displacement 0 has to be in the middle."
        )
    if window > WIDEST:
        raise ShapeError(
            f"window must be at most {WIDEST}, got {window}: the result has window * window maps of a frame and offset."
        )


def _check_epsilon(epsilon: float) -> None:
    if not epsilon >= 0:
        raise ConfigError(f"epsilon must not be negative, got {epsilon}. It is added to squared lengths; try 1e-6.")
