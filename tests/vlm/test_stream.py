import copy
import logging

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, Qwen2Config, Qwen2ForCausalLM

from kinescan.errors import CheckpointError, ConfigError, ShapeError
from kinescan.runtime.transformers_internals import cache_argument
from kinescan.vlm import PixelSettings, load_stream, open_stream
from kinescan.vlm.attention import attend_through
from kinescan.vlm.families.door import pinned_rope
from kinescan.vlm.policy import StateKV

QUESTION = [5, 17, 200, 41, 8]
FREE = StateKV(queries="text", recent_ratio=0.25, decay=0.5)
OTHER_QUESTION = [99, 12, 13]
TOLERANCE = 1e-4
# Frames of the tests are smaller than any real family takes.
PIXELS = PixelSettings(min_pixels=64, max_pixels=10_000)


def start(model, **options):
    return open_stream(model, **{"hf_compat": True, "pixels": PIXELS, **options})


def ask(model, frames, question=QUESTION, **options):
    with start(model, **options) as stream:
        stream.push(frames)
        return stream.ask(question, max_new_tokens=1).logits, stream


def plain_logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits[0, -1]


def assert_same(logits, expected, tolerance=TOLERANCE):
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("storage", ["memory", "offload"])
@pytest.mark.parametrize(("num_frames", "patches_per_step"), [(2, 1), (6, 1), (14, 1), (8, 2), (10, 2)])
def test_unlimited_budget_equals_plain_forward(family_name, num_frames, patches_per_step, storage, vlm, video, plain):
    model, frames = vlm(family_name), video(num_frames)
    for budget in (None, 10_000):
        logits, stream = ask(
            model, frames, budget=budget, patches_per_step=patches_per_step, storage=storage, chunk_tokens=13
        )
        assert_same(logits, plain_logits(model, plain(stream.family, frames, QUESTION)))


@pytest.mark.parametrize("policy", ["statekv", "recency", "sinks_recency", "uniform", "random", "h2o", "snapkv"])
def test_small_budget_differs_and_full_does_not(policy, family_name, vlm, video, plain):
    model, frames = vlm(family_name), video(8)
    logits, stream = ask(model, frames, budget=6, policy=policy)
    expected = plain_logits(model, plain(stream.family, frames, QUESTION))
    assert (logits - expected).abs().max() > 1e-2
    unlimited, _ = ask(model, frames, budget=10_000, policy=policy)
    assert_same(unlimited, expected)
    ignored, _ = ask(model, frames, budget=6, policy="none")
    assert_same(ignored, expected)


def test_qwen3_prompt_of_the_release(vlm, video, plain):
    model, frames = vlm("qwen3_vl"), video(6)
    logits, stream = ask(model, frames, hf_compat=False, budget=None)
    assert_same(logits, plain_logits(model, plain(stream.family, frames, QUESTION)))
    compatible, _ = ask(model, frames, hf_compat=True, budget=None)
    assert (compatible - logits).abs().max() > 1e-3


def test_qwen2_5_text_starts_behind_the_largest_position(vlm, video, plain):
    model, frames = vlm("qwen2_5_vl"), video(12)
    logits, stream = ask(model, frames, hf_compat=False, budget=None)
    inputs = plain(stream.family, frames, QUESTION)
    # Six patches of 2 rows x 3 columns, two seconds apart, two positions a second, behind one token of text.
    axes = torch.cartesian_prod(torch.arange(6) * 4, torch.arange(2), torch.arange(3)).T + 1
    text = torch.arange(1 + len(QUESTION)) + 22
    positions = torch.cat((torch.zeros(3, 1, dtype=torch.int64), axes, text.expand(3, -1)), dim=1)
    expected = plain_logits(model, inputs | {"position_ids": positions[:, None]})
    assert_same(logits, expected)
    assert (plain_logits(model, inputs) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("fps", [0.5, 3.0])
def test_qwen2_5_time_follows_the_frame_rate(fps, vlm, video, plain):
    model, frames = vlm("qwen2_5_vl"), video(10)
    logits, stream = ask(model, frames, fps=fps, budget=None)
    inputs = plain(stream.family, frames, QUESTION)
    expected = plain_logits(model, inputs | {"second_per_grid_ts": [2 / fps]})
    assert_same(logits, expected)
    assert (plain_logits(model, inputs) - expected).abs().max() > 1e-3
    given, _ = ask(model, frames, fps=fps, budget=None)
    with start(model, budget=None) as stream:
        stream.push(frames, seconds=[index / fps for index in range(10)])
        assert_same(stream.ask(QUESTION, max_new_tokens=1).logits, given)


def test_dynamic_rope_is_pinned_to_the_horizon(vlm, video, plain):
    model, frames = vlm("internvl_dynamic"), video(20)
    logits, stream = ask(model, frames, budget=None, horizon_frames=20, horizon_text_tokens=len(QUESTION))
    inputs = plain(stream.family, frames, QUESTION)
    assert stream.horizon_positions == inputs["input_ids"].shape[1] > 64
    assert_same(logits, plain_logits(model, inputs))
    # A longer horizon is another set of frequencies, the same in every frame.
    logits, stream = ask(model, frames, budget=None, horizon_frames=40)
    with pinned_rope(model.model.language_model, stream.horizon_positions):
        expected = plain_logits(model, inputs)
    assert_same(logits, expected)
    plain_logits(model, plain(stream.family, video(1), QUESTION))  # takes the frequencies back to their start
    assert (plain_logits(model, inputs) - expected).abs().max() > 1e-3


def test_greedy_answer_equals_generate(family_name, vlm, video, plain):
    model, frames = vlm(family_name), video(6)
    with start(model, budget=10_000) as stream:
        stream.push(frames)
        answer = stream.ask(QUESTION, max_new_tokens=12)
    inputs = plain(stream.family, frames, QUESTION)
    if family_name == "qwen2_5_vl":  # whose generate() continues at other positions than its forward has
        said = []
        for _ in range(12):
            ids = torch.cat((inputs["input_ids"], torch.tensor([said], dtype=torch.int64)), dim=1)
            again = inputs | {"input_ids": ids, "mm_token_type_ids": (ids == 302).int() * 2}
            said.append(int(plain_logits(model, again).argmax()))
    else:
        whole = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        said = whole[0, inputs["input_ids"].shape[1] :].tolist()
    said = said[: said.index(304)] if 304 in said else said
    assert list(answer.token_ids) == said
    assert len(set(said)) > 1


def test_stepwise_gives_the_same_tokens(vlm, video):
    with start(vlm("internvl")) as stream:
        stream.push(video(4))
        answer = stream.ask(QUESTION, max_new_tokens=5)
        tokens = list(stream.ask_stepwise(QUESTION, max_new_tokens=5))
        assert tuple(token.token_id for token in tokens) == answer.token_ids
        torch.testing.assert_close(tokens[0].logits, answer.logits)


def test_first_answer_leaves_no_trace(family_name, vlm, video):
    model, frames = vlm(family_name), video(8)
    expected, _ = ask(model, frames, OTHER_QUESTION, budget=20)
    with start(model, budget=20) as stream:
        stream.push(frames[:6])
        before = stream.stats
        stream.ask(QUESTION, max_new_tokens=4)
        next(stream.ask_stepwise(QUESTION, max_new_tokens=4))  # given up half-way
        after = stream.stats
        assert after.num_tokens == before.num_tokens
        assert after.state_bytes == before.state_bytes
        stream.push(frames[6:])
        logits = stream.ask(OTHER_QUESTION, max_new_tokens=1).logits
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("budget", [None, 10_000])
def test_kept_answer_is_part_of_the_stream(budget, vlm, video, plain):
    model, frames = vlm("internvl"), video(6)
    with start(model, budget=budget, chunk_tokens=16) as stream:
        stream.push(frames[:4])
        first = stream.ask(QUESTION, max_new_tokens=3, keep=True)
        second = stream.ask(OTHER_QUESTION, max_new_tokens=1).logits
        stream.push(frames[4:])
        third = stream.ask(OTHER_QUESTION, max_new_tokens=1).logits
    kept = [*QUESTION, *first.token_ids]
    assert_same(second, plain_logits(model, plain(stream.family, frames[:4], kept + OTHER_QUESTION)))
    ids = torch.tensor([[303] * 16 + kept + [303] * 8 + OTHER_QUESTION])
    inputs = {"input_ids": ids, "pixel_values": stream.family.prepare(frames)}
    assert_same(third, plain_logits(model, inputs))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_lone_frame_is_repeated_in_passing(name, vlm, video, plain):
    model, frames = vlm(name), video(6)
    with start(model) as stream:
        stream.push(frames[:3])
        assert stream.stats.num_frames == 3
        family = stream.family
        logits = stream.ask(QUESTION, max_new_tokens=1).logits
        assert_same(logits, plain_logits(model, plain(family, frames[[0, 1, 2, 2]], QUESTION)))
        stream.push(frames[3])
        stream.push(frames[4:5])
        stream.push(frames[5:])
        logits = stream.ask(QUESTION, max_new_tokens=1).logits
    assert_same(logits, plain_logits(model, plain(family, frames, QUESTION)))


def test_features_may_be_pushed_and_shared(family_name, vlm, video):
    model, frames = vlm(family_name), video(8)
    expected, _ = ask(model, frames, budget=16)
    with start(model, budget=16) as stream, start(model, budget=10_000) as other:
        features = stream.encode(frames)
        for patch in features:
            stream.push(patch)
            other.push([patch])
        logits = stream.ask(QUESTION, max_new_tokens=1).logits
        torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)
        assert (other.ask(QUESTION, max_new_tokens=1).logits - logits).abs().max() > 1e-3
        assert stream.stats.num_frames == other.stats.num_frames == 8


def test_cost_of_a_frame_is_constant_and_memory_as_computed(vlm, video):
    model = vlm("llava_onevision")
    tokens, budget, layers = 9, 30, 3
    with start(model, budget=budget, chunk_tokens=16) as stream:
        seen = []
        for frame in video(12):
            before = stream.stats.query_key_pairs if seen else 0
            stream.push(frame)
            stats = stream.stats
            seen.append((stats.query_key_pairs - before, stats.state_tokens, stats.state_bytes, stats.num_tokens))
        assert stats.full_cache_bytes == 12 * tokens * stream.cache.shape.bytes_per_token()
        assert stats.full_cache_bytes == 12 * tokens * 2 * layers * 2 * 16 * 4
        with pytest.warns(DeprecationWarning, match="full_cache_bytes"):
            assert stats.detailed_bytes == stats.full_cache_bytes
        assert stats.allocated_bytes == 7 * 16 * stream.cache.shape.bytes_per_token()
    own = tokens * (tokens + 1) // 2
    assert [pairs for pairs, *_ in seen[:3]] == [layers * (own + tokens * count) for count in (0, 9, 18)]
    assert len(set(seen[4:])) == 8  # only the number of tokens grows
    assert {row[:3] for row in seen[4:]} == {(layers * (own + tokens * budget), budget, seen[4][2])}
    # keys, values in float32, positions in int64, for 2 key heads of size 16
    assert seen[4][2] == layers * budget * 2 * (2 * 16 * 4 + 8)


def test_storage_offload_is_exact_and_int8_close(family_name, vlm, video):
    model, frames = vlm(family_name), video(6)
    expected, _ = ask(model, frames, budget=20)
    offloaded, _ = ask(model, frames, budget=20, storage="offload")
    torch.testing.assert_close(offloaded, expected, atol=1e-6, rtol=1e-6)
    rounded, _ = ask(model, frames, budget=20, storage="int8", chunk_tokens=7)
    distance = (rounded - expected).abs().max()
    assert 0 < distance < 0.1 * expected.std()


@pytest.mark.parametrize(
    ("policy", "storage"), [("statekv", "memory"), ("h2o", "int8"), ("none", "offload"), (FREE, "memory")]
)
def test_saved_stream_goes_on_as_if_never_put_down(policy, storage, family_name, vlm, video, tmp_path):
    model, frames = vlm(family_name), video(9)
    options = {"budget": 15, "policy": policy, "storage": storage, "chunk_tokens": 11, "patches_per_step": 2}
    options |= {"budget_ratios": (2, 1, 1)} if policy == FREE else {}
    expected, whole = ask(model, frames, **options)
    with start(model, **options) as stream:
        stream.push(frames[:5])
        stream.save(tmp_path / "half" / "stream.safetensors")
    with load_stream(tmp_path / "half" / "stream.safetensors", model) as stream:
        assert stream.stats.num_frames == 5
        stream.push(frames[5:])
        logits = stream.ask(QUESTION, max_new_tokens=1).logits
        assert stream.policy == whole.policy
        assert stream.family.pixels == PIXELS
    assert torch.equal(logits, expected)


def test_saved_stream_of_another_model_is_refused(vlm, video, tmp_path):
    with start(vlm("internvl")) as stream:
        stream.push(video(2))
        stream.save(tmp_path / "stream.safetensors")
    with pytest.raises(CheckpointError, match="saved"):
        load_stream(tmp_path / "stream.safetensors", vlm("llava_onevision"))
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors"):
        load_stream(tmp_path / "nothing.safetensors", vlm("internvl"))


def snapshot_of(model):
    modules = dict(model.named_modules())
    rotary = ("rope_type", "attention_scaling", "max_seq_len_cached")
    return {
        "attention": {n: m.config._attn_implementation for n, m in modules.items() if hasattr(m, "config")},
        "functions": dict(AttentionInterface._global_mapping),
        "masks": dict(AttentionMaskInterface._global_mapping),
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in modules.items()},
        "rope": {n: [getattr(m, a, None) for a in rotary] for n, m in modules.items()},
        "rope_deltas": getattr(model.model, "rope_deltas", None),
        "buffers": {n: (id(buffer), buffer.clone()) for n, buffer in model.named_buffers()},
        "weights": {n: weight.clone() for n, weight in model.named_parameters()},
    }


def assert_unchanged(before, after):
    for part in ("attention", "functions", "masks", "hooks", "rope", "rope_deltas"):
        assert after[part] == before[part], part
    assert after["buffers"].keys() == before["buffers"].keys()
    for name, (identity, values) in before["buffers"].items():
        assert after["buffers"][name][0] == identity, name
        assert torch.equal(after["buffers"][name][1], values), name
    for name, values in before["weights"].items():
        assert torch.equal(after["weights"][name], values), name


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl", "internvl_dynamic"])
def test_model_is_exactly_as_it_was(name, build_fresh, video, monkeypatch):
    torch.manual_seed(1)
    model = build_fresh(name)  # no forward yet: at the first, transformers would leave hooks
    before = snapshot_of(model)
    with start(model, budget=10, horizon_frames=40) as stream:
        stream.push(video(6))
        stream.ask(QUESTION, max_new_tokens=3)
        next(stream.ask_stepwise(QUESTION))
    assert_unchanged(before, snapshot_of(model))

    def fail(*args, **options):
        raise RuntimeError("out of memory")

    with start(model, budget=10, horizon_frames=40) as stream:
        stream.push(video(2))
        monkeypatch.setattr("kinescan.vlm.attention.attend", fail)
        monkeypatch.setattr("kinescan.vlm.attention.attention_mass", fail)
        with pytest.raises(RuntimeError, match="memory"):
            stream.push(video(2))
        monkeypatch.undo()
        assert stream.stats.num_frames == 2
        stream.push(video(2))
        assert stream.stats.num_frames == 4
    assert_unchanged(before, snapshot_of(model))


def test_bfloat16_model_streams(vlm, video):
    model = vlm("internvl")
    expected, _ = ask(model, video(6), budget=12)
    logits, stream = ask(copy.deepcopy(model).bfloat16(), video(6), budget=12)
    assert stream.family.cache_shape().dtype == torch.bfloat16
    assert (logits - expected).abs().max() < 0.3 * expected.std()


def test_budget_below_a_frame_is_said_once(vlm, video, caplog):
    with caplog.at_level(logging.WARNING), start(vlm("llava_onevision"), budget=5) as stream:
        stream.push(video(3))
        assert stream.stats.state_tokens == 5
    assert [record.message for record in caplog.records] == [
        "a step has 9 tokens and the budget is 5: the next frame sees only a part of this one"
    ]


def unsupported(vlm, video):
    open_stream(torch.nn.Linear(2, 2))


def unsupported_type(vlm, video):
    config = Qwen2Config(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=1, num_key_value_heads=1)  # fmt: skip
    open_stream(Qwen2ForCausalLM(config).eval())


def sliding(vlm, video):
    model = vlm("internvl")
    text = model.config.text_config
    kinds, text.layer_types = text.layer_types, ["full_attention", "sliding_attention", "linear_attention"]
    try:
        open_stream(model)
    finally:
        text.layer_types = kinds


def training(vlm, video):
    model = vlm("internvl")
    model.train()
    try:
        open_stream(model)
    finally:
        model.eval()


def several_devices(vlm, video):
    model = copy.deepcopy(vlm("internvl"))
    model.lm_head.to("meta")
    open_stream(model)


def weights_elsewhere(vlm, video):
    open_stream(copy.deepcopy(vlm("internvl")).to("meta"))


def sizes_change(vlm, video):
    stream = start(vlm("internvl"))
    stream.push(video(1))
    stream.push(video(1, height=20))


def grid_changes(vlm, video):
    small, large = start(vlm("qwen3_vl")), start(vlm("qwen3_vl"))
    stream = start(vlm("qwen3_vl"))
    stream.push(small.encode(video(2)))
    stream.push(large.encode(video(2, height=32)))


def asked_too_soon(vlm, video):
    start(vlm("internvl")).ask(QUESTION)


def too_many_frames(vlm, video):
    start(vlm("internvl"), horizon_frames=3).push(video(4))


def too_long_question(vlm, video):
    stream = start(vlm("internvl"), horizon_frames=3, horizon_text_tokens=4)
    stream.push(video(3))
    stream.ask([1] * 5)


def undeclared_horizon(vlm, video):
    start(vlm("internvl_dynamic"))


def batch_of_videos(vlm, video):
    start(vlm("internvl")).push(video(4)[None])


def float_frames(vlm, video):
    start(vlm("internvl")).push(video(4).float())


def padded_batch(vlm, video):
    stream = start(vlm("internvl"))
    decoder = stream.family.decoder
    with attend_through(decoder, stream.cache):
        decoder(
            inputs_embeds=torch.zeros(1, 3, 64),
            attention_mask=torch.tensor([[0, 1, 1]]),
            **{cache_argument(decoder): stream.cache},
        )


def batch_in_decoder(vlm, video):
    stream = start(vlm("internvl"))
    decoder = stream.family.decoder
    with attend_through(decoder, stream.cache), torch.no_grad():
        decoder(inputs_embeds=torch.zeros(2, 3, 64), **{cache_argument(decoder): stream.cache})


def batch_of_questions(vlm, video):
    stream = start(vlm("internvl"))
    stream.push(video(1))
    stream.ask(torch.ones(2, 3, dtype=torch.int64))


def words_without_tokenizer(vlm, video):
    stream = start(vlm("internvl"))
    stream.push(video(1))
    stream.ask("What happens?")


def empty_question(vlm, video):
    stream = start(vlm("internvl"))
    stream.push(video(1))
    stream.ask([])


def closed(vlm, video):
    stream = start(vlm("internvl"))
    stream.close()
    stream.push(video(1))


def answer_in_progress(vlm, video):
    stream = start(vlm("internvl"))
    stream.push(video(1))
    tokens = stream.ask_stepwise(QUESTION)
    next(tokens)
    stream.push(video(1))


def wrong_times(vlm, video):
    start(vlm("internvl")).push(video(3), seconds=[0.0, 2.0, 1.0])


def lone_frame_before_features(vlm, video):
    stream = start(vlm("qwen3_vl"))
    stream.push(video(1))
    stream.push(stream.encode(video(2)))


@pytest.mark.parametrize(
    ("case", "error", "match"),
    [
        (unsupported, ConfigError, "supported"),
        (unsupported_type, ConfigError, "'qwen2'.*internvl"),
        (sliding, ConfigError, "linear_attention, sliding_attention"),
        (training, ConfigError, "training mode"),
        (several_devices, ConfigError, "device"),
        (weights_elsewhere, ConfigError, "meta"),
        (sizes_change, ShapeError, r"frames.*16, 24.*20, 24\)"),
        (grid_changes, ShapeError, "tokens"),
        (asked_too_soon, ConfigError, "nothing"),
        (too_many_frames, ConfigError, "3.*exceeded.*0.*4"),
        (too_long_question, ConfigError, "4.*16.*17"),
        (undeclared_horizon, ConfigError, "declare horizon_frames"),
        (batch_of_videos, ShapeError, "stream"),
        (float_frames, ShapeError, r"must be uint8 \[T, 3, H, W\] in RGB, got float32"),
        (padded_batch, ConfigError, "attention.*1 padded"),
        (batch_in_decoder, ShapeError, "video.*2"),
        (batch_of_questions, ShapeError, "token"),
        (words_without_tokenizer, ConfigError, "tokenizer"),
        (empty_question, ConfigError, "question"),
        (closed, ConfigError, "stream"),
        (answer_in_progress, ConfigError, "progress"),
        (wrong_times, ConfigError, "3 ascending times"),
        (lone_frame_before_features, ConfigError, "another.*1"),
    ],
)
@pytest.mark.bad_input
def test_bad_input_is_named(case, error, match, vlm, video):
    with pytest.raises(error, match=match):
        case(vlm, video)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"budget": 0}, "budget.*1.*0"),
        ({"fps": 0.0}, "fps"),
        ({"policy": "statkv"}, "'statkv'.*'statekv'"),
        ({"storage": "tape"}, "unknown storage 'tape'"),
        ({"opening": "You are a guard."}, "opening"),
    ],
)
def test_bad_settings_are_named(options, match, vlm):
    with pytest.raises(ConfigError, match=match):
        open_stream(vlm("internvl"), **options)
