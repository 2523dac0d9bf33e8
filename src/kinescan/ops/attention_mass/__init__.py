"""Causal attention that also says how much weight each key received."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kinescan.errors import ConfigError, ShapeError
from kinescan.ops.attention_mass import blockwise, reference
from kinescan.ops.backend import Obstacle, choose_backend, transformed, triton_obstacle, without_autocast
from kinescan.runtime.backend_names import Backend

__all__ = ["attention_mass"]

MAX_TRITON_HEAD_DIM = 256

Queries = Float[Tensor, "B Hq Q D"]
Keys = Float[Tensor, "B Hkv L D"]
Scores = Float[Tensor, "B Hkv L"]


def attention_mass(
    queries: Queries,
    keys: Keys,
    values: Keys,
    scale: float | None = None,
    backend: Backend | None = None,
    *,
    observed: int | None = None,
) -> tuple[Queries, Scores]:
    """Attention output, and per key the softmax weight summed over queries and over the query heads that share it.

    Inference only: there is no gradient. Query head h reads key head h // (Hq // Hkv); keys are never repeated.
    The queries are the newest Q of the L tokens: query i sees keys 0 .. L - Q + i.

    Args:
        queries: [B, Hq, Q, D], float32, bfloat16, float16 or float64.
        keys: [B, Hkv, L, D], L >= Q, Hq a multiple of Hkv; same dtype as the queries.
        values: [B, Hkv, L, D].
        scale: factor of the products before the softmax; D ** -0.5 by default.
        backend: "triton", "blockwise" or "reference"; by default the first that runs here.
        observed: sum the weights of the newest `observed` queries alone; all Q by default.

    Returns:
        output [B, Hq, Q, D] in the dtype of the queries, and scores [B, Hkv, L] in float32 (float64 for float64 input).
        The scores of all keys sums to observed * Hq // Hkv.

    Raises:
        ShapeError: sizes or dtypes do not fit together.
        ConfigError: observed lies outside 1 .. Q, or a gradient is asked for.
        BackendError: the backend asked for cannot run here.

    Source: StateKV (arXiv 2605.31598), the selection score.
    Differs: `observed`, for policies that score by the last queries alone.

    Example:
        >>> queries, tokens = torch.randn(1, 8, 16, 32), torch.randn(1, 2, 100, 32)
        >>> output, scores = attention_mass(queries, tokens, tokens)
        >>> output.shape, scores.shape, round(scores.sum().item())
        (torch.Size([1, 8, 16, 32]), torch.Size([1, 2, 100]), 128)
    """
    _check(queries, keys, values)
    num_queries = queries.shape[2]
    observed = num_queries if observed is None else observed
    if not 1 <= observed <= num_queries:
        raise ConfigError(f"observed must lie in 1 .. {num_queries} (the number of queries), got {observed}.")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (queries, keys, values)):
        raise ConfigError("attention_mass is for inference and has no gradient. Call it under torch.inference_mode().")
    scale = queries.shape[3] ** -0.5 if scale is None else scale
    chosen = choose_backend("attention_mass", backend, _OBSTACLES, queries)
    with without_autocast(queries):
        output, scores = _RUN[chosen](queries, keys, values, scale, observed)
    return output, scores


def _check(queries: Tensor, keys: Tensor, values: Tensor) -> None:
    asked, given = queries.shape, keys.shape
    if len(asked) != 4 or len(given) != 4 or given != values.shape:
        raise ShapeError(
            "attention_mass wants queries [B, Hq, Q, D] and keys and values [B, Hkv, L, D], got "
            f"{_shapes(queries, keys, values)}."
        )
    if asked[0] != given[0] or asked[3] != given[3]:
        raise ShapeError(f"queries and keys must agree in batch and head size, got {_shapes(queries, keys, values)}.")
    if asked[1] % given[1]:
        raise ShapeError(f"the query heads must be a multiple of the key heads, got {_shapes(queries, keys, values)}.")
    if not 1 <= asked[2] <= given[2]:
        raise ShapeError(
            f"the queries are the newest of the keys: 1 <= Q <= L is needed, got {_shapes(queries, keys, values)}."
        )
    if not (queries.dtype == keys.dtype == values.dtype and queries.dtype.is_floating_point):
        raise ShapeError(
            "queries, keys and values must share one floating dtype, got "
            f"{queries.dtype}, {keys.dtype}, {values.dtype}. Convert them first."
        )


def _shapes(queries: Tensor, keys: Tensor, values: Tensor) -> str:
    return f"queries {tuple(queries.shape)}, keys {tuple(keys.shape)}, values {tuple(values.shape)}"


def _never(like: Tensor) -> str | None:
    return None


def _why_not_blockwise(like: Tensor) -> str | None:
    if transformed():
        return 'it writes in place, which torch.func and forward mode cannot follow; use backend="reference"'
    return None


def _why_not_triton(like: Tensor) -> str | None:
    problem = triton_obstacle(like)
    if problem is None and like.shape[-1] > MAX_TRITON_HEAD_DIM:
        return f"heads are larger than {MAX_TRITON_HEAD_DIM}"
    return problem


def _run_triton(*inputs: Any) -> tuple[Tensor, Tensor]:
    # triton is optional, and decides between compiler and interpreter when its kernels are imported
    from kinescan.ops.attention_mass import triton

    result: tuple[Tensor, Tensor] = triton.attention_mass(*inputs)
    return result


_OBSTACLES: Mapping[Backend, Obstacle] = {
    "triton": _why_not_triton,
    "blockwise": _why_not_blockwise,
    "reference": _never,
}
_RUN: Mapping[Backend, Callable[..., tuple[Tensor, Tensor]]] = {
    "triton": _run_triton,
    "blockwise": blockwise.attention_mass,
    "reference": reference.attention_mass,
}
