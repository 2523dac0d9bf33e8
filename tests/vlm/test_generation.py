"""Answers are chosen as transformers' generate chooses them."""

import copy

import pytest
import torch
from tests.vlm.conftest import transformers

from kinescan.errors import ConfigError
from kinescan.vlm import Generation, PixelSettings, ask_together, open_stream
from kinescan.vlm.generation import Sampler

QUESTION = [5, 17, 200, 41, 8]
PIXELS = PixelSettings(min_pixels=64, max_pixels=10_000)


def start(model, **options):
    return open_stream(model, **{"hf_compat": True, "pixels": PIXELS, "budget": 10_000, **options})


@pytest.mark.parametrize("name", ["internvl", "qwen3_vl", "llava_next_video"])
def test_repetition_penalty_equals_generate(name, vlm, video, plain):
    model, frames = vlm(name), video(4)
    with start(model) as stream:
        stream.push(frames)
        greedy = stream.ask(QUESTION, max_new_tokens=12)
        answer = stream.ask(QUESTION, max_new_tokens=12, generation=Generation(repetition_penalty=3.0))
    inputs = plain(stream.family, frames, QUESTION)
    whole = model.generate(**inputs, max_new_tokens=12, do_sample=False, repetition_penalty=3.0)
    said = whole[0, inputs["input_ids"].shape[1] :].tolist()
    assert list(answer.token_ids) == (said[: said.index(304)] if 304 in said else said)
    assert answer.token_ids != greedy.token_ids


def test_the_generation_config_of_the_model_is_followed(vlm, video):
    model = copy.copy(vlm("internvl"))
    model.generation_config = transformers.GenerationConfig(do_sample=True, temperature=5.0, top_k=50, eos_token_id=304)
    with start(model) as stream, start(vlm("internvl")) as greedy:
        stream.push(video(4))
        greedy.push(video(4))
        sampled = stream.ask(QUESTION, max_new_tokens=8)
        assert stream.ask(QUESTION, max_new_tokens=8).token_ids == sampled.token_ids
        assert stream.ask(QUESTION, max_new_tokens=8, generation=Generation(seed=1)).token_ids != sampled.token_ids
        likeliest = stream.ask(QUESTION, max_new_tokens=8, generation=Generation(temperature=0.0)).token_ids
        assert likeliest == greedy.ask(QUESTION, max_new_tokens=8).token_ids != sampled.token_ids


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 1.3, "top_k": 9, "top_p": 0.8},
    ],
    ids=str,
)
def test_probabilities_are_those_of_transformers(given):
    logits = 2 * torch.randn(20, generator=torch.Generator().manual_seed(3))
    settings = Generation(**given).of_model(None)
    sampler = Sampler(settings, ())
    counts = torch.bincount(torch.tensor([sampler.choose(logits) for _ in range(3000)]), minlength=20)
    processors = [transformers.TemperatureLogitsWarper(given["temperature"])]
    processors += [transformers.TopKLogitsWarper(given["top_k"])] if "top_k" in given else []
    processors += [transformers.TopPLogitsWarper(given["top_p"])] if "top_p" in given else []
    scores = logits[None]
    for processor in processors:
        scores = processor(None, scores)
    expected = scores.softmax(-1)[0]
    assert torch.equal(expected > 0, (expected > 0) | (counts > 0))
    assert (counts / 3000 - expected).abs().max() < 0.04


def test_an_answer_ends_at_a_stop_text(vlm, video, tokenizer):
    with start(vlm("internvl"), processor=tokenizer()) as stream:
        stream.push(video(3))
        whole = stream.ask("What?", max_new_tokens=12).text
        stop = whole[4:6]
        settings = Generation(stop=(stop, "never said"))
        answer = stream.ask("What?", max_new_tokens=12, generation=settings)
        assert answer.text == whole[: whole.index(stop)]
        pieces = [token.text for token in stream.ask_stepwise("What?", max_new_tokens=12, generation=settings)]
        assert "".join(pieces) == answer.text
        assert stream.ask("What?", max_new_tokens=12).text == whole


def test_an_answer_says_up_to_where_it_has_seen(vlm, video):
    with start(vlm("internvl")) as stream:
        stream.push(video(3), seconds=[0, 5, 12.5])
        assert stream.ask(QUESTION, max_new_tokens=1).seen_seconds == 12.5 == stream.seen_seconds


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "given",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_p": 2},
        {"top_k": -1},
        {"top_k": 1.5},
        {"seed": None},
        {"seed": -1},
        {"repetition_penalty": 0},
        {"stop": ("",)},
        {"stop": 3},
        {"temperature": True},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(given):
    with pytest.raises(ConfigError, match=next(iter(given))):
        Generation(**given)


FOLLOWED = {
    "do_sample": True,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 3,
    "repetition_penalty": 2.0,
    "stop_strings": ["END"],
    "eos_token_id": 7,
    "max_new_tokens": 3,
}
CHANGES_NO_ANSWER = {
    *("max_length", "early_stopping", "length_penalty", "num_return_sequences", "num_beam_groups", "diversity_penalty"),
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory", "prefill_chunk_size"),
    *("renormalize_logits", "remove_invalid_values", "output_attentions", "output_hidden_states", "output_scores"),
    *("output_logits", "return_dict_in_generate", "pad_token_id", "bos_token_id", "decoder_start_token_id"),
    *("use_mtp", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "speculation_type"),
    *("assistant_confidence_threshold", "prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit"),
    *("assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight", "compile_config", "disable_compile"),
    *("continuous_batching_config", "transformers_version"),
}
"""Of beams that are not searched, of the length with the prompt, of how `generate` computes."""


def test_what_is_not_followed_is_said(vlm, caplog):
    """Every setting that transformers knows: a new one has to be sorted in here."""
    model = copy.copy(vlm("internvl"))
    model.generation_config = stored = transformers.GenerationConfig(do_sample=True)
    names = {name for name in vars(stored) if not name.startswith("_")} - set(FOLLOWED) - CHANGES_NO_ANSWER
    assert {"num_beams", "min_p", "suppress_tokens", "min_new_tokens"} <= names
    for name in names:
        setattr(stored, name, 3)
    start(model)
    said = caplog.text
    assert not [name for name in names if name not in said]
    caplog.clear()
    model.generation_config = transformers.GenerationConfig(**FOLLOWED, use_cache=False, num_beams=1)
    start(model)
    assert not caplog.text


def test_an_answer_is_as_long_as_the_model_says(vlm, video, monkeypatch):
    model = copy.copy(vlm("internvl"))
    monkeypatch.setattr("kinescan.vlm.generation.MAX_NEW_TOKENS", 5)
    for said, given, expected in ((3, None, 3), (3, 4, 4), (None, None, 5)):
        model.generation_config = transformers.GenerationConfig(max_new_tokens=said)
        with start(model) as stream:
            stream.push(video(2))
            assert len(stream.ask(QUESTION, max_new_tokens=given).token_ids) == expected
            assert len(ask_together([stream], [QUESTION], max_new_tokens=given)[0].token_ids) == expected


@pytest.mark.bad_input
@pytest.mark.parametrize("said", ["x", 0, 2.5, True, [3]])
def test_a_length_that_is_none_is_refused(said, vlm, video):
    model = copy.copy(vlm("internvl"))
    model.generation_config = transformers.GenerationConfig()
    model.generation_config.max_new_tokens = said
    with start(model) as stream:
        stream.push(video(2))
        with pytest.raises(ConfigError, match=r"max_new_tokens.*generation_config"):
            stream.ask(QUESTION)
        assert stream.ask(QUESTION, max_new_tokens=1).token_ids


@pytest.mark.bad_input
@pytest.mark.parametrize("generation", [{"temperature": 1.0}, "hot", 1, Generation])
@pytest.mark.parametrize("call", ["ask", "ask_stepwise"])
def test_settings_of_another_type_are_refused(call, generation, vlm, video):
    with start(vlm("internvl")) as stream:
        stream.push(video(2))
        with pytest.raises(ConfigError, match="generation"):
            getattr(stream, call)(QUESTION, generation=generation)
        with pytest.raises(ConfigError, match="keep"):
            getattr(stream, call)(QUESTION, keep="no")
        assert stream.ask(QUESTION, max_new_tokens=1).token_ids


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["temperature", "top_p", "repetition_penalty", "top_k", "seed"])
def test_numbers_that_no_float_holds_are_refused(name):
    with pytest.raises(ConfigError, match=name):
        Generation(**{name: 10**400})
