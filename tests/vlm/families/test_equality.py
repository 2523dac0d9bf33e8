"""Each further family beside transformers' own forward and generate."""

import pytest
import torch

from kinescan.errors import ConfigError
from kinescan.vlm import PixelSettings, open_stream

QUESTION = [5, 17, 200, 41, 8]
PIXELS = PixelSettings(min_pixels=64, max_pixels=10_000)


def start(model, **options):
    return open_stream(model, **{"hf_compat": True, "pixels": PIXELS, **options})


def plain_logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits[0, -1]


@pytest.mark.parametrize(("num_frames", "patches_per_step"), [(2, 1), (6, 1), (14, 1), (8, 2)])
def test_unlimited_budget_equals_forward(further_name, num_frames, patches_per_step, vlm, video, plain):
    model, frames = vlm(further_name), video(num_frames)
    for budget in (None, 10_000):
        with start(model, budget=budget, patches_per_step=patches_per_step, chunk_tokens=13) as stream:
            stream.push(frames)
            logits = stream.ask(QUESTION, max_new_tokens=1).logits
        expected = plain_logits(model, plain(stream.family, frames, QUESTION))
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("policy", ["statekv", "recency"])
def test_small_budget_differs(further_name, policy, vlm, video, plain):
    model, frames = vlm(further_name), video(8)
    with start(model, budget=6, policy=policy) as stream:
        stream.push(frames)
        logits = stream.ask(QUESTION, max_new_tokens=1).logits
    assert (logits - plain_logits(model, plain(stream.family, frames, QUESTION))).abs().max() > 1e-2


def test_greedy_answer_equals_generate(further_name, vlm, video, plain):
    model, frames = vlm(further_name), video(6)
    with start(model, budget=10_000) as stream:
        stream.push(frames)
        answer = stream.ask(QUESTION, max_new_tokens=12)
    inputs = plain(stream.family, frames, QUESTION)
    whole = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    said = whole[0, inputs["input_ids"].shape[1] :].tolist()
    said = said[: said.index(304)] if 304 in said else said
    assert list(answer.token_ids) == said
    assert len(set(said)) > 1


def test_qwen2_text_starts_behind_the_largest_position(vlm, video, plain):
    """Which transformers 5 does not do: see the class."""
    model, frames = vlm("qwen2_vl"), video(14)
    logits = []
    for hf_compat in (True, False):
        with start(model, budget=None, hf_compat=hf_compat) as stream:
            stream.push(frames)
            logits.append(stream.ask(QUESTION, max_new_tokens=1).logits)
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@pytest.mark.bad_input
def test_linear_layers_are_refused(vlm):
    with pytest.raises(ConfigError, match="linear_attention"):
        start(vlm("qwen3_5_linear"))
