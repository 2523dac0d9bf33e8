"""What `torch.autocast` does to dtypes on a CUDA device, on a machine that has none.

A CPU's autocast leaves normalisations, exponentials and sums in bfloat16, where that of CUDA takes them to float32, and
with them the residual stream behind the first LayerNorm. Tensors on "cuda", fake ones too, need a build of torch with
CUDA; so the rules of CUDA replace the CPU's, at the level where torch itself has them: whatever calls
the operation, a backward pass that computes something again among them, gets them.

What both lower to bfloat16 (products, convolutions, attention) stays with torch.

Source: AT_FORALL_FP32, AT_FORALL_FP32_SET_OPT_DTYPE and AT_FORALL_PROMOTE of ATen/autocast_mode.h in torch 2.13, which
`autocast_mode.cpp` registers for CUDA; in words: https://docs.pytorch.org/docs/stable/amp.html#cuda-op-specific-behavior
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kinescan.runtime.torch_internals import (
    argument_names,
    has_cpu_autocast_rule,
    tree_leaves,
    tree_map,
    with_cpu_autocast_kernels,
    without_cpu_autocast,
)

IN_FLOAT32 = (
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt",
    "sinh", "tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus", "layer_norm",
    "native_layer_norm", "rms_norm", "group_norm", "frobenius_norm.dim", "nuclear_norm", "nuclear_norm.dim",
    "cosine_similarity", "poisson_nll_loss", "cosine_embedding_loss", "nll_loss", "nll_loss2d",
    "hinge_embedding_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "margin_ranking_loss",
    "multilabel_margin_loss", "soft_margin_loss", "triplet_margin_loss", "multi_margin_loss",
    "binary_cross_entropy_with_logits", "dist", "pdist", "cdist", "renorm", "logsumexp", "upsample_nearest1d",
    "_upsample_nearest_exact1d", "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_nearest3d",
    "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa",
    "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
)  # fmt: skip
"""Operations whose floating-point inputs are cast to float32."""
TO_FLOAT32 = (
    "prod", "prod.dim_int", "softmax.int", "log_softmax.int", "cumprod", "cumsum", "linalg_vector_norm",
    "linalg_matrix_norm", "linalg_matrix_norm.str_ord", "sum", "sum.dim_IntList",
)  # fmt: skip
"""Operations that are asked for a result in float32 where their caller asks for no dtype."""
IN_THE_WIDEST = (
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put", "tensordot",
    "scatter_add",
)  # fmt: skip
"""Operations whose inputs are cast to the widest dtype among them."""
AS_THEY_ARE = ("cat", "stack", "index_copy")
"""Operations that autocast leaves alone on CUDA and not on a CPU."""

Rule = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


@contextmanager
def cuda_autocast_rules() -> Iterator[None]:
    """Within the block, `torch.autocast("cpu")` casts as it does on CUDA; it holds for the whole process."""
    rules = [(IN_FLOAT32, _in_float32), (TO_FLOAT32, _to_float32), (IN_THE_WIDEST, _in_the_widest), (AS_THEY_ARE, _run)]
    # What a CPU's autocast has a rule for, but for those that it widens, it casts to float32 as well.
    kernels = {
        name: _kernel(name, rule)
        for names, rule in rules
        for name in names
        if names is AS_THEY_ARE or not has_cpu_autocast_rule(name)
    }
    with with_cpu_autocast_kernels(kernels):
        yield


def _kernel(name: str, rule: Rule) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with without_cpu_autocast():
            return rule(operation, args, kwargs)

    return kernel


def _run(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return operation(*args, **kwargs)


def _in_float32(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    args, kwargs = tree_map(lambda value: value.float() if _is_cast(value) else value, (args, kwargs))
    return operation(*args, **kwargs)


def _to_float32(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    names = argument_names(operation)
    is_asked = kwargs.get("dtype") is not None or "dtype" in names[: len(args)]
    if _is_cast(args[0]) and not is_asked:
        kwargs = kwargs | {"dtype": torch.float32}
    return operation(*args, **kwargs)


def _in_the_widest(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if any(_is_cast(value) and value.dtype == torch.float32 for value in tree_leaves((args, kwargs))):
        return _in_float32(operation, args, kwargs)
    return operation(*args, **kwargs)


def _is_cast(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
