from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file

from kinescan.errors import CheckpointError, ConfigError
from kinescan.ops.attention_mass import attention_mass
from kinescan.vlm.cache import CompressedState, LayerCache
from kinescan.vlm.policy import (
    POLICIES,
    AccumulatedScores,
    Candidates,
    KeepAll,
    LastQueries,
    RandomSample,
    Recency,
    SinksAndRecency,
    StateKV,
    Uniform,
    make_policy,
)
from kinescan.vlm.snapshot import pack_policy, unpack_policy
from kinescan.vlm.store import CacheShape


def candidates(num_keys, scores=None, history=None, heads=2):
    keys, values = torch.randn(2, heads, num_keys, 4, generator=torch.Generator().manual_seed(0))
    return Candidates(
        positions=torch.arange(num_keys).expand(heads, -1), scores=scores, history=history, keys=keys, values=values
    )


@pytest.mark.parametrize(("case", "budget"), [("h0", 8), ("h1", 16)])
def test_statekv_agrees_with_published_selection(shared, case, budget):
    values = load_file(shared / "fixtures" / "statekv_selection.safetensors")
    q, k, v = (values[f"{case}/{name}"] for name in "qkv")
    output, scores = attention_mass(q, k, v)
    torch.testing.assert_close(output, values[f"{case}/attn_out_f32"].transpose(1, 2), atol=1e-5, rtol=1e-5)
    positions = torch.arange(k.shape[2]).expand(2, -1)
    kept = StateKV().select(Candidates(positions=positions, scores=scores[0]), budget)
    assert torch.equal(kept, values[f"{case}/keep_indices"][0])
    shape = CacheShape(num_layers=1, key_heads=2, head_dim=16, dtype=torch.float32, device=torch.device("cpu"))
    layer = LayerCache(shape, storage="memory", chunk_tokens=8)
    layer.state = CompressedState(keys=k, values=v, positions=positions)
    layer.compress(StateKV(), budget, scores[0])
    assert torch.equal(layer.state.keys, values[f"{case}/kept_keys"])
    assert torch.equal(layer.state.values, values[f"{case}/kept_values"])
    assert torch.equal(layer.state.positions, values[f"{case}/keep_indices"][0])


@pytest.mark.parametrize("name", POLICIES)
def test_selection_is_ascending_of_the_right_size_and_never_more_than_there_is(name):
    policy = make_policy(name)
    scores = torch.rand(2, 40)
    for budget in (1, 5, 39, 40, 100):
        kept = policy.select(candidates(40, scores, torch.rand(2, 40)), budget)
        assert kept.shape == (2, 40 if name == "none" else min(budget, 40))
        assert (kept.diff(dim=1) > 0).all()


def test_statekv_keeps_the_heaviest_of_each_head():
    scores = torch.tensor([[0.3, 0.1, 0.9, 0.2], [0.5, 0.6, 0.1, 0.0]])
    assert StateKV().select(candidates(4, scores), 2).tolist() == [[0, 2], [0, 1]]


def test_recency_and_sinks():
    assert Recency().select(candidates(9), 3).tolist() == [[6, 7, 8]] * 2
    assert SinksAndRecency(sinks=2).select(candidates(9), 4).tolist() == [[0, 1, 7, 8]] * 2


@pytest.mark.parametrize("policy", [Uniform(), RandomSample(seed=3)])
def test_sampling_needs_no_look_at_the_future(policy):
    budget = 16
    held = torch.arange(0)
    for start in range(0, 400, 10):
        held = torch.cat((held, torch.arange(start, start + 10)))
        kept = policy.select(Candidates(positions=held[None]), budget)[0]
        held = held[kept]
    at_once = policy.select(candidates(400, heads=1), budget)[0]
    assert torch.equal(held, at_once)


def test_uniform_leaves_even_gaps_and_random_does_not():
    gaps = Uniform().select(candidates(10_000, heads=1), 100)[0].diff()
    assert 50 < gaps.min() < gaps.max() < 200
    assert len(gaps.unique()) <= 3
    sampled = RandomSample().select(candidates(10_000), 1000)
    assert abs(sampled.double().mean() - 5000) < 300
    assert sampled.diff(dim=1).max() > 40
    assert not torch.equal(sampled[0], sampled[1])
    assert not torch.equal(sampled, RandomSample(seed=1).select(candidates(10_000), 1000))


def test_accumulated_scores_remembers_and_keeps_the_newest():
    scores = torch.tensor([[0.0, 0.2, 0.1, 0.3, 0.0, 0.1]])
    history = torch.tensor([[0.9, 0.0, 0.4, 0.0, 0.0, 0.0]])
    kept = AccumulatedScores(recent_ratio=0.5).select(candidates(6, scores, history, heads=1), 4)
    assert kept.tolist() == [[0, 2, 4, 5]]
    kept = AccumulatedScores(recent_ratio=0.0).select(candidates(6, scores, history, heads=1), 3)
    assert kept.tolist() == [[0, 2, 3]]


def test_last_queries_pool_over_neighbours():
    scores = torch.tensor([[0.0, 0.0, 0.9, 0.0, 0.5, 0.0, 0.0, 0.0]])
    kept = LastQueries(window=1, pooling=3).select(candidates(8, scores, heads=1), 4)
    assert kept.tolist() == [[1, 2, 3, 7]]
    assert LastQueries(window=5).observed(3) == 3
    assert LastQueries(window=5).observed(9) == 5


def test_keep_all_ignores_the_budget():
    assert KeepAll().select(candidates(5), 2).shape == (2, 5)


@pytest.mark.parametrize("policy", [SinksAndRecency(sinks=7), LastQueries(window=3, pooling=5), KeepAll()])
def test_policy_survives_saving(policy):
    assert unpack_policy(pack_policy(policy)) == policy


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: make_policy("h20"), ConfigError, "'h20'.*'h2o'"),
        (lambda: SinksAndRecency(sinks=-1), ConfigError, "sinks.*0"),
        (lambda: AccumulatedScores(recent_ratio=2.0), ConfigError, r"recent_ratio.*\[0, 1\]"),
        (lambda: LastQueries(pooling=4), ConfigError, "pooling odd"),
        (lambda: StateKV().select(candidates(4), 2), ConfigError, "candidates"),
        (lambda: unpack_policy({"name": "gone", "fields": {}}), CheckpointError, "'gone'.*POLICIES"),
    ],
)
@pytest.mark.bad_input
def test_bad_input_is_named(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_policy_of_ones_own_cannot_be_saved_unnamed():
    @dataclass(frozen=True, kw_only=True)
    class Mine(Recency):
        pass

    with pytest.raises(CheckpointError, match="saved"):
        pack_policy(Mine())


def test_what_statekv_leaves_free_is_off_by_default():
    scores, history = torch.rand(2, 40), torch.rand(2, 40)
    plain = StateKV().select(candidates(40, scores), 7)
    assert torch.equal(StateKV().select(candidates(40, scores, history), 7), plain)
    assert not StateKV().accumulates
    assert StateKV().asked == "all"


def test_statekv_with_decay_and_recent_keys_is_h2o_at_its_limit():
    scores, history = torch.rand(2, 40), torch.rand(2, 40)
    free = StateKV(decay=1.0, recent_ratio=0.5)
    given = candidates(40, scores, history)
    assert torch.equal(free.select(given, 10), AccumulatedScores().select(given, 10))
    assert torch.equal(free.remembered(scores, history), AccumulatedScores().remembered(scores, history))
    half = StateKV(decay=0.5)
    assert half.accumulates
    torch.testing.assert_close(half.remembered(scores, history), scores + history / 2)
    assert torch.equal(half.select(given, 10), StateKV().select(candidates(40, scores + history / 2), 10))


@pytest.mark.parametrize(
    "wrong", [{"queries": "frames"}, {"recent_ratio": 1.5}, {"decay": float("nan")}, {"decay": True}]
)
def test_wrong_settings_of_statekv_are_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        StateKV(**wrong)


def test_settings_of_statekv_are_saved():
    policy = StateKV(queries="text", recent_ratio=0.25, decay=0.5)
    assert unpack_policy(pack_policy(policy)) == policy
    assert unpack_policy({"name": "statekv", "fields": {}}) == StateKV()


def test_policy_of_version_0_1_is_used_as_it_says() -> None:
    with pytest.warns(DeprecationWarning, match="needs_patch_indices"):

        class Own(Recency):
            @property
            def needs_places(self) -> bool:
                return True

    assert Own().needs_patch_indices
    with pytest.warns(DeprecationWarning, match="needs_patch_indices"):
        assert not Recency().needs_places
