import math
import threading

import torch
from torch import Tensor

CPU_BLOCK_BYTES = 2 * 1024 * 1024
"""Size aimed at for one block of weights: what stays in a core's cache between its two uses."""
GPU_BLOCK_BYTES = 256 * 1024 * 1024
"""The same for other devices, where starting a kernel costs more than the memory of a block."""
MIN_ROWS = 32
"""Fewer rows than this in a block starve the matrix product: then the keys are cut too."""
_kept = threading.local()
"""The workspace that each thread keeps; see `_workspace`."""


def attention_mass(q: Tensor, k: Tensor, v: Tensor, scale: float, observed: int) -> tuple[Tensor, Tensor]:
    """As `reference.attention_mass`, without the full matrix: block after block of queries.

    Takes q [B, Hq, Q, D], k and v [B, Hkv, L, D], gives [B, Hq, Q, D] and [B, Hkv, L]; memory does not grow with Q * L.

    A block of queries is normalised in one go where its whole rows fit into a block. Where they do not
    (a very long state), keys are cut as well: a first pass gives output and log-sum-exp, a second one the scores.

    Source: StateKV (arXiv 2605.31598); online softmax as in FlashAttention (arXiv 2205.14135).
    """
    batch, query_heads, num_queries, dim = q.shape
    key_heads, num_keys = k.shape[1:3]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    group, num_heads = query_heads // key_heads, batch * key_heads
    output = q.new_empty(num_heads, group, num_queries, dim)
    scores = q.new_zeros(num_heads, num_keys, dtype=wide)
    block_bytes, row_bytes = _block_bytes(q), num_keys * wide.itemsize
    heads = max(1, block_bytes // (group * num_queries * row_bytes))
    run = _whole_rows if block_bytes >= MIN_ROWS * row_bytes else _two_passes
    whole = (q.reshape(output.shape), k.flatten(0, 1), v.flatten(0, 1), output, scores)
    # Short calls are counted in operations: where one part is all, nothing is cut.
    parts = zip(*(tensor.split(heads) for tensor in whole), strict=True) if heads < num_heads else (whole,)
    for queries, keys, values, summed, weighed in parts:
        run(queries.type(wide), keys.type(wide), values.type(wide), scale, summed, weighed, num_queries - observed)
    return output.view(q.shape), scores.view(batch, key_heads, num_keys)


def _whole_rows(
    q: Tensor, k: Tensor, v: Tensor, scale: float, output: Tensor, scores: Tensor, first_observed: int
) -> None:
    """Some key heads: q [H, G, Q, D], k and v [H, L, D]; output [H, G, Q, D] and scores [H, L] are written in place.

    One workspace holds products and then, in place, their softmax; the keys' scores are one more product, with a row
    of ones.
    """
    heads, group, num_queries, dim = q.shape
    num_keys = k.shape[1]
    step = min(num_queries, max(1, _block_bytes(q) // (num_keys * q.element_size() * group * heads)))
    workspace = _workspace(heads * group * step * num_keys, q)
    # Added: masked_fill_ goes element by element and takes several times as long.
    hidden = q.new_full((step, step), float("-inf")).triu_(1)
    for start in range(0, num_queries, step):
        newest = min(step, num_queries - start)
        seen = num_keys - num_queries + start + newest
        rows = group * newest
        weights = workspace[: heads * rows * seen].view(heads, rows, seen)
        queries = q[:, :, start : start + newest].reshape(heads, rows, dim)
        torch.baddbmm(weights, queries, k[:, :seen].transpose(1, 2), beta=0, alpha=scale, out=weights)
        weights.view(heads, group, newest, seen)[..., -newest:].add_(hidden[:newest, :newest])
        torch.softmax(weights, -1, out=weights)
        if newest == num_queries and output.dtype == q.dtype:
            torch.bmm(weights, v, out=output.view(heads, rows, dim))
        else:
            output[:, :, start : start + newest] = torch.bmm(weights, v[:, :seen]).view(heads, group, newest, dim)
        if start + newest > first_observed:
            counted = q.new_ones(heads, group, newest)
            if start < first_observed:
                counted[..., : first_observed - start] = 0
            scores[:, None, :seen].baddbmm_(counted.view(heads, 1, rows), weights)


def _two_passes(
    q: Tensor, k: Tensor, v: Tensor, scale: float, output: Tensor, scores: Tensor, first_observed: int
) -> None:
    """As `_whole_rows`, with keys in blocks too."""
    heads, group, num_queries, dim = q.shape
    num_keys = k.shape[1]
    rows = max(1, math.ceil(4 * MIN_ROWS / group))
    columns = max(1, _block_bytes(q) // (rows * group * heads * q.element_size()))
    for start in range(0, num_queries, rows):
        stop = min(start + rows, num_queries)
        seen = num_keys - num_queries + stop
        block = q[:, :, start:stop].reshape(heads, -1, dim) * scale
        shape = (heads, group, stop - start)
        highest = torch.full((heads, block.shape[1], 1), float("-inf"), dtype=q.dtype, device=q.device)
        total, summed = torch.zeros_like(highest), torch.zeros_like(block)
        for left in range(0, seen, columns):
            products = _products(block, k, left, min(left + columns, seen), shape, start, num_queries)
            above = torch.maximum(highest, products.amax(2, keepdim=True))
            weights, shrink = torch.exp(products - above), torch.exp(highest - above)
            total = total * shrink + weights.sum(2, keepdim=True)
            summed = summed * shrink + torch.bmm(weights, v[:, left : left + products.shape[2]])
            highest = above
        output[:, :, start:stop] = (summed / total).view(*shape, dim)
        log_sum_exp = highest + total.log()
        for left in range(0, seen, columns):
            products = _products(block, k, left, min(left + columns, seen), shape, start, num_queries)
            weights = torch.exp(products - log_sum_exp).view(*shape, -1)
            scores[:, left : left + products.shape[2]] += weights[:, :, max(0, first_observed - start) :].sum((1, 2))


def _products(
    block: Tensor, k: Tensor, left: int, right: int, shape: tuple[int, int, int], start: int, num_queries: int
) -> Tensor:
    """Products of a block of queries with keys left .. right, -inf where the key is newer than the query."""
    products = torch.bmm(block, k[:, left:right].transpose(1, 2))
    first_unseen = k.shape[1] - num_queries + start + 1
    if right > first_unseen:
        hidden = torch.ones(shape[2], right - left, dtype=torch.bool, device=k.device).triu(first_unseen - left)
        products.view(*shape, -1).masked_fill_(hidden, float("-inf"))
    return products


def _workspace(numel: int, like: Tensor) -> Tensor:
    """At least `numel` to be overwritten. On a CPU each thread keeps one: fresh pages cost as much as a small call."""
    if not like.is_cpu:
        return like.new_empty(numel)
    kept: Tensor | None = getattr(_kept, "memory", None)
    if kept is None or kept.dtype != like.dtype or kept.numel() < numel:
        with torch.inference_mode(False):
            kept = torch.empty(numel, dtype=like.dtype)
        # what a single row longer than a block takes is not kept
        if kept.nbytes <= CPU_BLOCK_BYTES:
            _kept.memory = kept
    return kept


def _block_bytes(like: Tensor) -> int:
    return CPU_BLOCK_BYTES if like.is_cpu else GPU_BLOCK_BYTES
