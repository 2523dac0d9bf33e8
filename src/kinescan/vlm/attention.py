"""The attention that a decoder runs while a stream is pushed or asked: put in place for one forward, then taken out."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kinescan.errors import BackendError, ConfigError
from kinescan.ops.attention_mass import attention_mass
from kinescan.runtime.torch_internals import CompilationError, compile_shared_layers
from kinescan.vlm.cache import StreamCache
from kinescan.vlm.families.door import compile_layers, is_compiled, registered_attention
from kinescan.vlm.policy import Policy
from kinescan.vlm.store import Block

Queries = Float[Tensor, "1 Hq Q D"]
AttentionFunction = Callable[..., tuple[Tensor, None]]


@contextmanager
def attend_through(decoder: nn.Module, *caches: StreamCache) -> Iterator[None]:
    """Within the block, `decoder` attends to what `caches` make visible; afterwards it is exactly as before.

    Args:
        decoder: the language model of a transformers VLM; its config names the attention.
        caches: given to the decoder as its cache of keys and values in every call of the block; one for each row of a
            batch.

    Raises:
        ConfigError: inside, when the decoder is given a padded attention mask.
        BackendError: its layers are compiled, and torch.compile fails.

    Source: StateKV (arXiv 2605.31598).
    """
    if is_compiled(decoder):
        with _attend_compiled(*caches):
            yield
        return
    with registered_attention(decoder, attention_of(*caches), refuse_padding):
        yield


class _Running(threading.local):
    """Of each thread: the caches of the forward that it runs."""

    caches: tuple[StreamCache, ...] = ()


_running = _Running()


def compile_stream(model_type: str, decoder: nn.Module) -> None:
    """From now on the layers of a stream's decoder run compiled, each around the attention, which is not.

    What is compiled does not depend on the stream, its layer, how much it has seen or how many tokens a step has. So
    it is compiled once for each model, and for nothing that a later frame or answer brings.
    """
    compile_layers(model_type, decoder, _attention_of_thread, refuse_padding)


@contextmanager
def _attend_compiled(*caches: StreamCache) -> Iterator[None]:
    before, _running.caches = _running.caches, caches
    try:
        with compile_shared_layers():
            yield
    except CompilationError as error:
        raise BackendError(
            f"torch.compile cannot compile the decoder's layers here: {str(error).strip().splitlines()[0]} Install "
            "what it asks for (a C++ compiler, for a CPU), or open the stream without compiled."
        ) from error
    finally:
        _running.caches = before


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attention_of_thread(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    """Attention over the caches of this thread's forward; a name that is the same in all streams."""
    return attention_of(*_running.caches)(module, query, key, value, mask, **given)


def attention_of(*caches: StreamCache) -> AttentionFunction:
    """The attention function, as transformers calls it, over what caches make visible, one for each row of a batch."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **unused: Any,
    ) -> tuple[Tensor, None]:
        layer_idx: int = module.layer_idx  # type: ignore[assignment]
        rows = zip(caches, query.split(1), strict=True)
        output = torch.cat([_step(cache, layer_idx, row, scaling) for cache, row in rows])
        return output.transpose(1, 2).contiguous(), None

    return attention


def refuse_padding(*, attention_mask: Tensor | None = None, **unused: Any) -> None:
    """The mask function that belongs to it: none is built (attention is causal by itself), padding is refused.

    Args:
        attention_mask: [B, L], 1 for tokens and 0 for padding; None: no padding.
        **unused: what transformers gives to every mask function.

    Raises:
        ConfigError: there is padding.
    """
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ConfigError(
            f"a stream takes no padded batch, got an attention mask with {int((attention_mask == 0).sum())} padded "
            "tokens. Leave the mask out and give each video its own stream."
        )


def _step(cache: StreamCache, layer_idx: int, queries: Queries, scale: float | None) -> Queries:
    if cache.answering:
        cache.retrieve(layer_idx, queries)
    num_queries, num_keys = queries.shape[2], cache.visible_length(layer_idx)
    cache.query_key_pairs += visible_pairs(num_queries, num_keys)
    layer, scored = cache.layers[layer_idx], cache.scored and not cache.answering
    if cache.budgets is None or cache.answering:
        if not scored:
            return attend(queries, cache.visible(layer_idx), num_keys, scale)
        keys, values = (torch.cat(parts, dim=2) for parts in zip(*cache.visible(layer_idx), strict=True))
        output, received = attention_mass(queries, keys, values, scale)
        layer.add_scores(received[0].float(), of_state=False)
        return output
    policy, budget = cache.policy, cache.budgets[layer_idx]
    observed = policy.observed(num_queries)
    needs_scores = scored or (observed is not None and (policy.accumulates or num_keys > budget))
    scores: Tensor | None = None
    if needs_scores:
        output, received = attention_mass(queries, layer.state.keys, layer.state.values, scale, observed=observed)
        if scored:
            layer.add_scores(received[0].float(), of_state=True)
        if observed is not None:
            scores = _of_those_asked(policy, cache.is_text, received[0].float(), queries, layer.state.keys, scale)
    else:
        output = attend(queries, cache.visible(layer_idx), num_keys, scale)
    layer.compress(policy, budget, scores)
    return output


def _of_those_asked(
    policy: Policy, is_text: Tensor | None, scores: Tensor, queries: Queries, keys: Tensor, scale: float | None
) -> Tensor:
    """The part of the scores [Hkv, L] of all queries that comes from those that the policy asks."""
    if policy.asked == "all" or is_text is None or not 0 < int(is_text.sum()) < len(is_text):
        return scores
    # Text is a few tokens: their part is computed by itself, and what is left is the frame's.
    text = _scores_of_some(queries, keys, is_text.nonzero().flatten(), scale)
    return text if policy.asked == "text" else (scores - text).clamp_(min=0)


def _scores_of_some(queries: Queries, keys: Tensor, chosen: Tensor, scale: float | None) -> Tensor:
    """[Hkv, L] float32: softmax weights of the chosen ones of the newest queries, summed over them and their heads."""
    num_queries, (key_heads, num_keys) = queries.shape[2], keys.shape[1:3]
    scale = queries.shape[3] ** -0.5 if scale is None else scale
    rows = queries[0, :, chosen].float().unflatten(0, (key_heads, -1))  # [Hkv, G, q, D]
    products = scale * torch.einsum("hgqd,hld->hgql", rows, keys[0].float())
    newest = num_keys - num_queries + chosen
    hidden = torch.arange(num_keys, device=keys.device) > newest[:, None]
    return products.masked_fill(hidden, float("-inf")).softmax(-1).sum((1, 2))


def visible_pairs(num_queries: int, num_keys: int) -> int:
    """How many (query, key) pairs causal attention of the newest `num_queries` of `num_keys` tokens computes.

    Example:
        >>> visible_pairs(2, 5)
        9
    """
    return num_queries * (num_keys - num_queries) + num_queries * (num_queries + 1) // 2


def attend(queries: Queries, blocks: Iterable[Block], num_keys: int, scale: float | None = None) -> Queries:
    """Causal attention of the newest tokens over keys and values that come in blocks.

    One block goes through PyTorch's fused attention, more are merged by their log-sum-exp in float32, so that the
    whole is never unpacked at once. Query heads are laid along the queries: keys are not repeated.

    Args:
        queries: [1, Hq, Q, D]; the newest Q of the tokens.
        blocks: keys and values [1, Hkv, L_i, D], in the order of tokens.
        num_keys: the sum of L_i.
        scale: factor of the products; D ** -0.5 by default.

    Returns:
        [1, Hq, Q, D] in the dtype of the queries.

    Source: FlashAttention (arXiv 2205.14135), the merging of blocks.

    Example:
        >>> keys = torch.randn(1, 2, 10, 8)
        >>> attend(torch.randn(1, 4, 3, 8), [(keys, keys)], 10).shape
        torch.Size([1, 4, 3, 8])
    """
    scale = queries.shape[3] ** -0.5 if scale is None else scale
    _, query_heads, num_queries, dim = queries.shape
    merged: tuple[Tensor, Tensor, Tensor] | None = None
    first = 0
    for keys, values in blocks:
        rows = queries.reshape(1, keys.shape[1], -1, dim)
        visible = _visible(num_queries, num_keys, first, keys.shape[2], queries.device)
        if visible is not None:
            visible = visible.repeat(query_heads // keys.shape[1], 1)
        if keys.shape[2] == num_keys:
            output = functional.scaled_dot_product_attention(rows, keys, values, attn_mask=visible, scale=scale)
            return output.reshape(queries.shape)
        merged = _merge(merged, rows.float() * scale, keys.float(), values.float(), visible)
        first += keys.shape[2]
    assert merged is not None, "there are no blocks"
    assert first == num_keys, "blocks do not add up to num_keys"
    return (merged[0] / merged[1]).reshape(queries.shape).to(queries.dtype)


def _visible(num_queries: int, num_keys: int, first: int, count: int, device: torch.device) -> Tensor | None:
    """[Q, count]: which of the keys first .. first + count each query sees; None for all."""
    oldest = num_keys - num_queries
    if first + count <= oldest + 1:
        return None
    return torch.ones(num_queries, count, dtype=torch.bool, device=device).tril(oldest - first)


def _merge(
    merged: tuple[Tensor, Tensor, Tensor] | None, rows: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Adds a block to (weighted sum of values, sum of weights, highest product), all per query row."""
    products = torch.matmul(rows, keys.transpose(-1, -2))
    if visible is not None:
        products = products.masked_fill(~visible, float("-inf"))
    highest = products.amax(-1, keepdim=True)
    if merged is not None:
        highest = torch.maximum(highest, merged[2])
    weights = torch.exp(products - highest)
    summed, total = torch.matmul(weights, values), weights.sum(-1, keepdim=True)
    if merged is not None:
        shrink = torch.exp(merged[2] - highest)
        summed, total = summed + merged[0] * shrink, total + merged[1] * shrink
    return summed, total, highest
