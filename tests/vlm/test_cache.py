from types import SimpleNamespace

import pytest
import torch

from kinescan.errors import ConfigError
from kinescan.vlm.attention import attend, attention_of, visible_pairs
from kinescan.vlm.cache import StreamCache
from kinescan.vlm.policy import AccumulatedScores, Recency, StateKV
from kinescan.vlm.store import CacheShape, KeyValueStore

SHAPE = CacheShape(num_layers=2, key_heads=2, head_dim=8, dtype=torch.float32, device=torch.device("cpu"))


def joined(store):
    return [torch.cat(parts, dim=2) for parts in zip(*store.blocks(), strict=True)]


@pytest.mark.parametrize("storage", ["memory", "offload", "int8", "disk"])
@pytest.mark.parametrize("steps", [[1], [5, 5, 5], [4, 17, 3], [40]])
def test_store_gives_back_what_it_was_given(storage, steps):
    store = KeyValueStore(SHAPE, storage=storage, chunk_tokens=5)
    given = [torch.randn(2, 1, 2, count, 8) for count in steps]
    for keys, values in given:
        store.append(keys, values)
    for part, found in enumerate(joined(store)):
        expected = torch.cat([pair[part] for pair in given], dim=2)
        tolerance = expected.abs().amax(-1, keepdim=True) / 127 / 2 * 1.001 if storage == "int8" else torch.zeros(())
        assert ((found - expected).abs() <= tolerance).all()
    assert store.length == sum(steps)
    assert store.num_bytes == sum(steps) * SHAPE.bytes_per_token(storage) // 2
    chunks = -(-sum(steps) // 5)
    assert store.allocated_bytes == chunks * 5 * SHAPE.bytes_per_token(storage) // 2


def test_store_never_copies_what_it_holds():
    store = KeyValueStore(SHAPE, storage="memory", chunk_tokens=4)
    store.append(*torch.randn(2, 1, 2, 6, 8))
    addresses = [part.data_ptr() for chunk in store.chunks for part in chunk]
    for _ in range(5):
        store.append(*torch.randn(2, 1, 2, 3, 8))
    assert [part.data_ptr() for chunk in store.chunks for part in chunk][: len(addresses)] == addresses
    block = next(store.blocks())[0]
    assert block.data_ptr() == addresses[0]


def test_int8_holds_zeros_and_large_numbers():
    store = KeyValueStore(SHAPE, storage="int8", chunk_tokens=4)
    keys = torch.zeros(1, 2, 3, 8)
    keys[0, 0, 0, 0] = 3e4
    store.append(keys, torch.zeros_like(keys))
    found, zeros = joined(store)
    assert torch.equal(zeros, torch.zeros_like(keys))
    torch.testing.assert_close(found, keys)


@pytest.mark.parametrize("splits", [[50], [10, 40], [1, 1, 48], [30, 15, 5]])
def test_attention_over_blocks_equals_attention_over_the_whole(splits):
    queries = torch.randn(1, 6, 7, 8)
    keys, values = torch.randn(2, 1, 2, 50, 8)
    visible = torch.ones(7, 50, dtype=torch.bool).tril(43)
    expected = torch.nn.functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=visible, enable_gqa=True, scale=0.4
    )
    blocks = list(zip(keys.split(splits, dim=2), values.split(splits, dim=2), strict=True))
    torch.testing.assert_close(attend(queries, blocks, 50, 0.4), expected, atol=1e-5, rtol=1e-5)


def test_visible_pairs_counts_the_causal_triangle():
    for num_queries, num_keys in ((1, 1), (3, 3), (4, 9)):
        triangle = torch.ones(num_queries, num_keys).tril(num_keys - num_queries)
        assert visible_pairs(num_queries, num_keys) == triangle.sum()


def fill(cache, count):
    for layer in range(2):
        cache.update(*torch.randn(2, 1, 2, count, 8), layer)


def test_sizes_for_masks_while_streaming_and_answering():
    cache = StreamCache(SHAPE, policy=Recency(), budget=6)
    fill(cache, 10)
    for layer in cache.layers:
        layer.compress(cache.policy, 6, None)
    assert cache.get_seq_length() == cache.get_query_offset() == 10
    assert cache.get_mask_sizes(4) == (6 + 4, 10 - 6)
    cache.answering = True
    assert cache.get_mask_sizes(3) == (13, 0)
    fill(cache, 3)
    assert cache.get_seq_length() == 13
    assert cache.num_tokens == 10
    cache.keep_answer()
    cache.answering = False
    assert (cache.num_tokens, cache.state_tokens) == (13, 9)
    assert cache.layers[0].state.positions[0].tolist() == [4, 5, 6, 7, 8, 9, 10, 11, 12]


def test_history_follows_its_keys():
    cache = StreamCache(SHAPE, policy=AccumulatedScores(recent_ratio=0.0), budget=3)
    layer = cache.layers[0]
    layer.extend_state(*torch.randn(2, 1, 2, 4, 8), 0)
    layer.compress(cache.policy, 3, torch.tensor([[4.0, 1.0, 2.0, 3.0]] * 2))
    assert layer.state.history.tolist() == [[4.0, 2.0, 3.0]] * 2
    layer.extend_state(*torch.randn(2, 1, 2, 1, 8), 4)
    assert layer.state.history.tolist() == [[4.0, 2.0, 3.0, 0.0]] * 2
    layer.compress(cache.policy, 3, torch.tensor([[0.0, 5.0, 0.0, 3.5]] * 2))
    assert layer.state.history.tolist() == [[4.0, 7.0, 3.5]] * 2
    assert layer.state.positions[0].tolist() == [0, 2, 4]


@pytest.mark.parametrize("asked", ["all", "frame", "text"])
def test_scores_come_from_the_queries_that_are_asked(asked):
    """Against plain softmax weights of these queries: 5 of the state, then text, 3 of a frame, text."""
    is_text = torch.tensor([True, False, False, False, True])
    queries, keys = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 10, 8)
    visible = torch.ones(5, 10, dtype=torch.bool).tril(5)
    products = torch.einsum("hgqd,hld->hgql", queries[0].unflatten(0, (2, 2)), keys[0]) * 0.3
    weights = products.masked_fill(~visible, float("-inf")).softmax(-1)
    chosen = {"all": is_text | True, "frame": ~is_text, "text": is_text}[asked]
    cache = StreamCache(SHAPE, policy=StateKV(queries=asked), budget=6)
    cache.is_text = is_text
    cache.update(keys[:, :, :5], keys[:, :, :5], 0)
    cache.update(keys[:, :, 5:], keys[:, :, 5:], 0)
    attention_of(cache)(SimpleNamespace(layer_idx=0), queries, None, None, None, 0.3)
    expected = weights[:, :, chosen].sum((1, 2)).topk(6, dim=1).indices.sort(dim=1).values
    assert torch.equal(cache.layers[0].state.positions, expected)


def test_layers_share_the_budget():
    cache = StreamCache(SHAPE, policy=Recency(), budget=6, budget_ratios=(3, 1))
    for _ in range(2):
        for layer in range(2):
            cache.update(*torch.randn(2, 1, 2, 7, 8), layer)
            attention_of(cache)(SimpleNamespace(layer_idx=layer), torch.randn(1, 4, 7, 8), None, None, None)
    assert [layer.state.positions.shape[1] for layer in cache.layers] == [9, 3]
    assert cache.state_tokens == 9


def test_shares_for_other_layers_are_refused():
    with pytest.raises(ConfigError, match=r"budget_ratios.*2.*3"):
        StreamCache(SHAPE, policy=Recency(), budget=6, budget_ratios=(3, 1, 1))
