"""A full KV cache with a limit: what stays, that nothing changes where nothing has to go, and that memory is flat."""

import pytest
import torch

from kinescan.errors import ConfigError
from kinescan.vlm import Candidates, PixelSettings, load_stream, open_stream
from kinescan.vlm.memory import Remembered, chunk_of, limit_tokens, read_amount
from kinescan.vlm.policy import Merging, Recency, Redundancy, StateKV
from kinescan.vlm.store import CacheShape

QUESTION = [5, 17, 200, 41, 8]
PIXELS = PixelSettings(min_pixels=64, max_pixels=10_000)
POLICIES = ["sinks_recency", "uniform", "h2o", "statekv", "redundancy", "merging"]


def start(model, **options):
    return open_stream(model, **{"pixels": PIXELS, "budget": 20, **options})


def asked(model, frames, **options):
    with start(model, **options) as stream:
        stream.push(frames)
        return stream.ask(QUESTION, max_new_tokens=1).logits


@pytest.mark.parametrize("policy", [None, "none"])
@pytest.mark.parametrize("memory_policy", POLICIES)
def test_nothing_changes_where_nothing_has_to_go(memory_policy, policy, vlm, video):
    model, frames = vlm("qwen3_vl"), video(8)
    options = {"policy": policy} if policy else {}
    expected = asked(model, frames, **options)
    logits = asked(model, frames, memory_budget=5000, memory_policy=memory_policy, **options)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    if memory_policy in ("sinks_recency", "uniform", "redundancy", "merging"):
        assert torch.equal(logits, expected)


@pytest.mark.parametrize(
    ("memory_policy", "storage"), [*((name, "memory") for name in POLICIES), ("h2o", "int8"), ("merging", "offload")]
)
def test_the_cache_never_holds_more(memory_policy, storage, vlm, video):
    limit, most = 64, 0
    with start(vlm("internvl"), memory_budget=limit, memory_policy=memory_policy, storage=storage) as stream:
        for frame in video(40):
            stream.push(frame)
            stats = stream.stats
            assert stats.num_tokens <= limit
            most = max(most, stats.allocated_bytes)
        per_token = stream.cache.shape.bytes_per_token(storage)
        assert most <= (limit + chunk_of(limit, 4096)) * per_token
        assert stats.num_seen_tokens == 40 * 4
        first = stream.ask(QUESTION, max_new_tokens=3)
        assert stream.ask(QUESTION, max_new_tokens=3).token_ids == first.token_ids
        held = stream.cache.layers[0].remembered.everything()[0]
        assert held.shape[1] == stats.num_tokens
        assert (held.diff() > 0).all()


def test_what_stays_is_what_the_policy_ranks_first(vlm, video):
    """And keys and values are those of the whole cache at these positions."""
    model, frames = vlm("internvl"), video(30)
    with start(model) as whole, start(model, memory_budget=40, memory_policy="recency") as limited:
        for frame in frames:
            whole.push(frame)
            limited.push(frame)
        for layer, all_of_it in zip(limited.cache.layers, whole.cache.layers, strict=True):
            positions = layer.remembered.everything()[0]
            newest = positions.shape[1]
            assert torch.equal(positions, torch.arange(120 - newest, 120).expand(2, -1))
            for part in (0, 1):
                found = torch.cat([block[part] for block in layer.full_cache.blocks()], dim=2)
                expected = torch.cat([block[part] for block in all_of_it.full_cache.blocks()], dim=2)
                assert torch.equal(found, expected[:, :, -newest:])


def test_the_opening_and_kept_answers_stay(vlm, video, tokenizer):
    model, frames = vlm("internvl"), video(40)
    with start(model, processor=tokenizer(), memory_budget=200, memory_policy="recency", budget=60) as stream:
        stream.push(frames[:2])
        opening = stream.cache.pinned[0][1]
        assert opening > 3
        stream.ask("What?", max_new_tokens=2, keep=True)
        (start_of_answer, end) = stream.cache.pinned[1]
        for frame in frames[2:]:
            stream.push(frame)
        for layer in stream.cache.layers:
            held = set(layer.remembered.everything()[0][0].tolist())
            assert held >= set(range(opening)) | set(range(start_of_answer, end))
            assert len(held) < 200


@pytest.mark.parametrize("memory_policy", ["uniform", "h2o", "merging"])
def test_a_saved_stream_continues_as_if_it_had_not_been_saved(memory_policy, vlm, video, tmp_path):
    model, frames = vlm("qwen3_vl"), video(40)
    with start(model, memory_budget=64, memory_policy=memory_policy) as stream:
        stream.push(frames[:29])
        stream.save(tmp_path / "one.safetensors")
        with load_stream(tmp_path / "one.safetensors", model) as again:
            for one in (stream, again):
                one.push(frames[29:])
            assert again.stats == stream.stats
            said = [one.ask(QUESTION, max_new_tokens=2).logits for one in (stream, again)]
    assert torch.equal(*said)


@pytest.mark.parametrize("memory_policy", ["uniform", "h2o", "merging"])
def test_a_push_that_fails_leaves_what_was_there(memory_policy, vlm, video, monkeypatch):
    model, frames = vlm("internvl"), video(30)
    options = {"memory_budget": 40, "memory_policy": memory_policy}
    with start(model, **options) as stream:
        for frame in frames[:15]:
            stream.push(frame)
        decode, calls = stream.family.decode, []

        def fails(*args, **given):
            calls.append(1)
            if len(calls) > 9:
                raise RuntimeError("out of memory")
            return decode(*args, **given)

        monkeypatch.setattr(stream.family, "decode", fails)
        with pytest.raises(RuntimeError):
            stream.push(frames[15:])
        monkeypatch.undo()
        assert stream.stats.num_frames == 15
        for frame in frames[15:]:
            stream.push(frame)
        logits = stream.ask(QUESTION, max_new_tokens=1).logits
    with start(model, **options) as other:
        for frame in frames:
            other.push(frame)
        assert torch.equal(logits, other.ask(QUESTION, max_new_tokens=1).logits)


def remembered(heads=1, steps=(), **options):
    empty = torch.empty(heads, 0, dtype=torch.int64)
    fresh = Remembered(positions=empty, patch_indices=empty, counts=empty.float(), **options)
    for step in steps:
        fresh = fresh.with_step(step)
    return fresh


def test_scores_meet_their_tokens():
    """Those that have gone count for nothing."""
    known = remembered(steps=(4, 4), scores=torch.empty(1, 0))
    known = known.with_scores(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1, 4, 7]]))
    assert known.scores.tolist() == [[0, 1, 0, 0, 2, 0, 0, 3]]
    keys = torch.arange(8.0).reshape(1, 1, 8, 1)
    keys, _, known = known.chosen(keys, keys, policy=StateKV(), budget=3, pinned=[])
    assert keys.flatten().tolist() == [1, 4, 7]
    known = known.with_step(2).with_scores(torch.tensor([[5.0, 9.0, 6.0]]), torch.tensor([[1, 3, 9]]))
    assert known.scores.tolist() == [[6, 2, 3, 0, 6]]
    assert known.with_scores(torch.ones(1, 5), None).scores.tolist() == [[7, 3, 4, 1, 7]]


def test_patch_indices_are_counted_from_the_end_of_a_step():
    known = remembered(steps=(3, 4))
    assert known.everything()[1].tolist() == [[3, 2, 1, 4, 3, 2, 1]]


def repeated():
    """Two patches over three frames: one shows the same all the time, one changes."""
    still, first, second, third = torch.eye(4).unbind()
    values = torch.stack([still, first, still, second, still, third])[None]
    patch_indices = torch.tensor([[2, 1, 2, 1, 2, 1]])
    return Candidates(positions=torch.arange(6)[None], keys=values, values=values, patch_indices=patch_indices,
                      counts=torch.ones(1, 6))  # fmt: skip


def test_redundancy_drops_what_equals_its_neighbour_in_time():
    assert Redundancy().select(repeated(), 4).tolist() == [[0, 1, 3, 5]]
    candidates = repeated()
    # a short value counts for less than a change of a long one
    candidates.values[0, 3] *= 0.01
    assert Redundancy().select(candidates, 3).tolist() == [[0, 1, 5]]


def test_merging_leaves_means():
    candidates = repeated()
    values = candidates.values[None].clone()
    values[0, 0, 2] *= 3
    kept = torch.tensor([[0, 1, 5]])
    merged, counts = Merging().merged(candidates, kept, values, torch.tensor([[1.0, 1, 1, 1, 2, 1]]))
    assert counts.gather(1, kept).tolist() == [[4, 2, 1]]
    assert merged[0, 0, 0].tolist() == pytest.approx([(1 + 3 + 2) / 4, 0, 0, 0])
    assert merged[0, 0, 1].tolist() == pytest.approx([0, 0.5, 0.5, 0])
    assert torch.equal(merged[0, 0, 5], values[0, 0, 5])


def test_merging_before_the_first_that_stays_is_into_none():
    candidates = repeated()
    kept = torch.tensor([[2, 3]])
    merged, counts = Merging().merged(candidates, kept, candidates.values[None], torch.ones(1, 6))
    assert counts.gather(1, kept).tolist() == [[2, 2]]
    assert merged[0, 0, 3].tolist() == pytest.approx([0, 0, 0.5, 0.5])


@pytest.mark.parametrize(
    ("given", "num_bytes", "num_tokens"),
    [
        ("4GiB", 4 * 2**30, None),
        ("1.5 mib", 3 * 2**19, None),
        ("500MB", 500_000_000, None),
        ("7 tokens", None, 7),
        (300, None, 300),
        ("12 b", 12, None),
    ],
)
def test_amounts_are_read(given, num_bytes, num_tokens):
    found = read_amount(given)
    assert (found.num_bytes, found.num_tokens) == (num_bytes, num_tokens)


@pytest.mark.bad_input
@pytest.mark.parametrize("given", [0, -3, True, 2.5, "", "4", "4 apples", "-1GiB", "0 tokens", "nan GiB", [4], b"4GiB"])
def test_other_amounts_are_refused(given, vlm):
    with pytest.raises(ConfigError, match="memory_budget"):
        start(vlm("internvl"), memory_budget=given)


@pytest.mark.bad_input
def test_limits_that_cannot_work_are_refused(vlm, video):
    model = vlm("internvl")
    for options in ({"memory_budget": "3b"}, {"memory_budget": 9, "memory_policy": "none"},
                    {"memory_budget": 9, "memory_policy": "best"}, {"policy": "merging"},
                    {"retrieved_chunks": 0}):  # fmt: skip
        with pytest.raises(ConfigError):
            start(model, **options)
    with start(model, memory_budget=3) as stream, pytest.raises(ConfigError, match="memory_budget"):
        stream.push(video(2))


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["internvl", "qwen3_vl"])
def test_a_limit_that_the_pinned_text_fills_is_refused_at_the_first_frame(name, vlm, video, tokenizer):
    """Not once the cache is full, which may be hours later."""
    taken = []
    frames = video(40).repeat_interleave(2 if name == "qwen3_vl" else 1, 0)
    for limit in range(10, 80):
        with start(vlm(name), processor=tokenizer(), memory_budget=limit) as stream:
            try:
                stream.push(frames[: stream.family.temporal_patch])
            except ConfigError:
                assert stream.stats.num_frames == stream.cache.num_tokens == 0
                assert stream.cache.pinned == []
                continue
            taken.append(limit)
            if len(taken) < 4:
                # what is taken at first is taken to the end
                stream.push(frames)
    assert 20 < taken[0] < 60
    assert taken == list(range(taken[0], 80))


@pytest.mark.bad_input
def test_a_kept_answer_that_would_fill_the_limit_is_refused(vlm, video, tokenizer):
    with start(vlm("internvl"), processor=tokenizer(), memory_budget=90) as stream:
        stream.push(video(2))
        stream.ask("What?", max_new_tokens=8, keep=True)
        pinned, tokens = stream.cache.pinned, stream.cache.num_tokens
        with pytest.raises(ConfigError, match="memory_budget"):
            stream.ask("What is it, and where does it go from here?", max_new_tokens=8, keep=True)
        assert (stream.cache.pinned, stream.cache.num_tokens) == (pinned, tokens)
        stream.push(video(3))


def test_bytes_hold_as_many_tokens_as_they_say():
    shape = CacheShape(num_layers=2, key_heads=2, head_dim=8, dtype=torch.float32, device=torch.device("cpu"))
    whole = shape.bytes_per_token() + 4 * 24
    assert limit_tokens(read_amount(f"{10 * whole}b"), shape.bytes_per_token(), 4) == 10


@pytest.mark.parametrize("storage", ["memory", "offload", "int8"])
def test_retrieval_of_all_chunks_is_exact_and_of_few_is_not(storage, vlm, video):
    model, frames = vlm("internvl"), video(24)
    options = {"storage": storage, "chunk_tokens": 7}
    expected = asked(model, frames, **options)
    assert torch.equal(asked(model, frames, retrieved_chunks=1000, **options), expected)
    few = asked(model, frames, retrieved_chunks=1, **options)
    assert (few - expected).abs().max() > 1e-3


def test_retrieval_finds_the_chunk_that_a_question_asks_for(vlm, video):
    """One chunk's keys are made to match the question's queries alone."""
    with start(vlm("internvl"), chunk_tokens=4, retrieved_chunks=2) as stream:
        stream.push(video(12))
        store = stream.cache.layers[0].full_cache
        queries = torch.randn(1, 4, 3, 16)
        mean = queries.unflatten(1, (2, 2)).mean((0, 2, 3))
        store.chunks[6][0][:] = 50 * mean[None, :, None]
        chosen = store.closest_chunks(queries, 2)
        assert {0, 6, 11} <= set(chosen)
        assert len(chosen) == 4
        answer = stream.ask(QUESTION, max_new_tokens=4)
        assert answer.token_ids
        assert all(layer.chosen is None for layer in stream.cache.layers)


def test_memory_of_a_recency_is_that_of_the_newest():
    known = remembered(steps=(6,))
    keys = torch.randn(1, 1, 6, 2)
    _, _, known = known.chosen(keys, keys, policy=Recency(), budget=2, pinned=[(0, 1)])
    assert known.positions.tolist() == [[0, 5]]
    with pytest.raises(ConfigError, match="pinned"):
        known.with_step(2).chosen(keys[:, :, :4], keys[:, :, :4], policy=Recency(), budget=2, pinned=[(0, 1), (5, 7)])
