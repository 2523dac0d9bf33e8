"""Two kernels: attention with its log-sum-exp, then one more pass over the products for the scores. No atomics."""

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    scale,
    num_queries,
    num_keys,
    group,
    DIM: tl.constexpr,
    WIDE_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of queries of one query head: online softmax over blocks of keys."""
    first = tl.program_id(1) * BLOCK_Q
    head = tl.program_id(0).to(tl.int64)
    key_head = head // group
    rows = first + tl.arange(0, BLOCK_Q)
    dims = tl.arange(0, WIDE_DIM)
    in_rows = rows < num_queries
    in_dims = dims < DIM
    row_offsets = (head * num_queries + rows)[:, None] * DIM + dims[None, :]
    q = tl.load(q_ptr + row_offsets, mask=in_rows[:, None] & in_dims[None, :], other=0.0)
    if WIDEN:
        q = q.to(tl.float32)
    newest = num_keys - num_queries + rows
    highest = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    summed = tl.zeros((BLOCK_Q, WIDE_DIM), tl.float32)
    end = tl.minimum(num_keys, num_keys - num_queries + first + BLOCK_Q)
    for start in range(0, end, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        in_columns = columns < num_keys
        offsets = (key_head * num_keys + columns)[:, None] * DIM + dims[None, :]
        inside = in_columns[:, None] & in_dims[None, :]
        k = tl.load(k_ptr + offsets, mask=inside, other=0.0)
        v = tl.load(v_ptr + offsets, mask=inside, other=0.0)
        if WIDEN:
            k, v = k.to(tl.float32), v.to(tl.float32)
        products = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        products = tl.where(in_columns[None, :] & (columns[None, :] <= newest[:, None]), products, float("-inf"))
        above = tl.maximum(highest, tl.max(products, 1))
        weights = tl.exp(products - above[:, None])
        shrink = tl.exp(highest - above)
        total = total * shrink + tl.sum(weights, 1)
        summed = summed * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        highest = above
    out = summed / total[:, None]
    tl.store(out_ptr + row_offsets, out.to(out_ptr.dtype.element_ty), mask=in_rows[:, None] & in_dims[None, :])
    tl.store(lse_ptr + head * num_queries + rows, highest + tl.log(total), mask=in_rows)


@triton.jit  # type: ignore[untyped-decorator]
def _weigh(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    lse_ptr,
    scores_ptr,
    scale,
    num_queries,
    num_keys,
    first_observed,
    group,
    DIM: tl.constexpr,
    WIDE_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of keys of one key head: the weights that all observed queries of its query heads give them."""
    key_head = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    dims = tl.arange(0, WIDE_DIM)
    in_columns = columns < num_keys
    in_dims = dims < DIM
    offsets = (key_head * num_keys + columns)[:, None] * DIM + dims[None, :]
    k = tl.load(k_ptr + offsets, mask=in_columns[:, None] & in_dims[None, :], other=0.0)
    if WIDEN:
        k = k.to(tl.float32)
    scores = tl.zeros((BLOCK_K,), tl.float32)
    for member in range(0, group):
        head = key_head * group + member
        for start in range(first_observed, num_queries, BLOCK_Q):
            rows = start + tl.arange(0, BLOCK_Q)
            in_rows = rows < num_queries
            row_offsets = (head * num_queries + rows)[:, None] * DIM + dims[None, :]
            q = tl.load(q_ptr + row_offsets, mask=in_rows[:, None] & in_dims[None, :], other=0.0)
            if WIDEN:
                q = q.to(tl.float32)
            lse = tl.load(lse_ptr + head * num_queries + rows, mask=in_rows, other=0.0)
            products = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            newest = num_keys - num_queries + rows
            seen = in_rows[:, None] & (columns[None, :] <= newest[:, None])
            scores += tl.sum(tl.where(seen, tl.exp(products - lse[:, None]), 0.0), 0)
    tl.store(scores_ptr + key_head * num_keys + columns, scores, mask=in_columns)


@torch.no_grad()
def attention_mass(q: Tensor, k: Tensor, v: Tensor, scale: float, observed: int) -> tuple[Tensor, Tensor]:
    """As `reference.attention_mass`, on a GPU.

    Takes q [B, Hq, Q, D], k and v [B, Hkv, L, D], gives [B, Hq, Q, D] and [B, Hkv, L]. Products and sums are
    float32, weights are rounded to the dtype of the values.

    Source: StateKV (arXiv 2605.31598); FlashAttention (arXiv 2205.14135).
    """
    batch, query_heads, num_queries, dim = q.shape
    key_heads, num_keys = k.shape[1:3]
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    output = torch.empty_like(q)
    log_sum_exp = torch.empty(batch, query_heads, num_queries, dtype=torch.float32, device=q.device)
    scores = torch.empty(batch, key_heads, num_keys, dtype=torch.float32, device=q.device)
    group = query_heads // key_heads
    sizes = launch_sizes(dim, q.dtype)
    with torch.cuda.device_of(q):
        _attend[(batch * query_heads, triton.cdiv(num_queries, sizes["BLOCK_Q"]))](
            q, k, v, output, log_sum_exp, scale, num_queries, num_keys, group, **sizes
        )
        _weigh[(batch * key_heads, triton.cdiv(num_keys, sizes["BLOCK_K"]))](
            q, k, log_sum_exp, scores, scale, num_queries, num_keys, num_queries - observed, group, **sizes
        )
    return output, scores


def launch_sizes(dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Constants of both kernels for heads of this size: blocks of which a thread's part fits into its registers."""
    wide_dim = max(16, triton.next_power_of_2(dim))
    if dtype == torch.float32:
        rows, columns, warps = (16, 16, 8) if wide_dim > 128 else (32, 16, 8) if wide_dim > 64 else (32, 32, 4)
    else:
        rows, columns, warps = (32, 32, 4) if wide_dim > 128 else (64, 32 if wide_dim > 64 else 64, 4)
    return {
        # Triton's interpreter multiplies bfloat16 as if it were integers.
        "WIDEN": os.environ.get("TRITON_INTERPRET") == "1",
        # Float32 as three products on tensor cores; without them the products of a block do not fit into registers.
        # AMD's GPUs have float32 products of their own, and Triton refuses tf32x3 there.
        "PRECISION": "ieee" if torch.version.hip else "tf32x3",
        "DIM": dim,
        "WIDE_DIM": wide_dim,
        "BLOCK_Q": rows,
        "BLOCK_K": columns,
        "num_warps": warps,
    }
