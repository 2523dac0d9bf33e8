"""Streams that overlap, on one model, with each other and with plain forwards in other threads."""

import threading

import pytest
import torch

from kinescan.errors import ConfigError, NonFiniteError
from kinescan.vlm import PixelSettings, open_stream

QUESTION = [5, 17, 200, 41, 8]
PIXELS = PixelSettings(min_pixels=64, max_pixels=10_000)


def start(model, **options):
    return open_stream(model, **{"pixels": PIXELS, "horizon_frames": 40, "budget": 12, **options})


def traces(model):
    """All that a stream could leave in a model, and the very tensors."""
    return {
        name: (
            list(module._forward_hooks),
            list(module._forward_pre_hooks),
            sorted(key for key in vars(module) if key not in ("_parameters", "_buffers", "_modules")),
            getattr(getattr(module, "config", None), "_attn_implementation", None),
            getattr(module, "rope_type", None),
            [id(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())],
        )
        for name, module in model.named_modules()
    }


def answer_alone(model, frames, **options):
    with start(model, **options) as stream:
        stream.push(frames)
        return stream.ask(QUESTION, max_new_tokens=1).logits


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl", "internvl_dynamic"])
@pytest.mark.parametrize(("order", "warm"), [((0, 1), True), ((1, 0), False)])
def test_overlapping_streams_end_in_any_order(name, order, warm, build_fresh, video, plain):
    torch.manual_seed(1)
    model = build_fresh(name)
    frames = video(8)
    first = start(model)
    if warm:
        first.push(frames[:2])
    before = traces(model)
    second = start(model, budget=9)
    for part in frames[2:].split(2) if warm else frames.split(2):
        first.push(part)
    for part in frames.split(2):
        second.push(part)
    said = [stream.ask(QUESTION, max_new_tokens=1).logits for stream in (first, second)]
    for index in order:
        (first, second)[index].close()
    assert traces(model) == before
    assert torch.equal(said[0], answer_alone(model, frames))
    assert torch.equal(said[1], answer_alone(model, frames, budget=9))
    third = start(model)
    third.push(frames)
    with torch.no_grad():
        inputs = plain(third.family, frames, QUESTION)
        assert torch.isfinite(model(**inputs).logits).all()


def test_every_further_family_overlaps(further_name, build_fresh, video):
    """The first stream ends in the middle of the second, and the model itself is as before."""
    torch.manual_seed(1)
    model, frames = build_fresh(further_name), video(6)
    alone = answer_alone(model, frames), answer_alone(model, frames, budget=9)
    before = traces(model)
    first = start(model)
    first.push(frames[:4])
    second = start(model, budget=9)
    second.push(frames[:2])
    first.push(frames[4:])
    said = first.ask(QUESTION, max_new_tokens=1).logits
    first.close()
    second.push(frames[2:])
    assert torch.equal(said, alone[0])
    assert torch.equal(second.ask(QUESTION, max_new_tokens=1).logits, alone[1])
    second.close()
    assert traces(model) == before
    assert torch.equal(answer_alone(model, frames), alone[0])


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl"])
def test_threads_do_not_meet(name, build_fresh, video, plain):
    torch.manual_seed(1)
    model = build_fresh(name)
    frames = video(8)
    inputs = plain(start(model).family, frames, QUESTION)
    with torch.no_grad():
        expected = model(**inputs).logits
    expected_answer = answer_alone(model, frames)
    wrong = []

    def forward():
        with torch.no_grad():
            for _ in range(6):
                wrong.extend(["forward"] * (not torch.equal(model(**inputs).logits, expected)))

    def stream():
        for _ in range(3):
            wrong.extend(["stream"] * (not torch.equal(answer_alone(model, frames), expected_answer)))

    def recorded(work):
        try:
            work()
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=recorded, args=(work,)) for work in (forward, stream, stream)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_calls_of_one_stream_from_threads_follow_one_another(vlm, video):
    model, frames = vlm("internvl"), video(12)
    with start(model) as stream:
        threads = [threading.Thread(target=stream.push, args=(frame,)) for frame in frames]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert stream.stats.num_frames == 12
        assert stream.stats.num_tokens == start_tokens(model, frames)


def start_tokens(model, frames):
    with start(model) as stream:
        stream.push(frames)
        return stream.stats.num_tokens


@pytest.mark.parametrize("policy", ["h2o", "none"])
@pytest.mark.parametrize("where", ["encoder", "decoder", "nan_encoder", "nan_decoder", "interrupt"])
def test_a_push_that_fails_leaves_the_stream_as_it_was(where, policy, family_name, vlm, video, monkeypatch):
    model, frames = vlm(family_name), video(8)
    expected = answer_alone(model, frames, policy=policy)
    with start(model, policy=policy) as stream:
        stream.push(frames[:3])
        before = stream.stats
        calls = []
        encode, decode = stream.family.encode, stream.family.decode

        def fails(self_or_frames, *args, **options):
            calls.append(1)
            inner = encode if "encoder" in where else decode
            if len(calls) < 2:
                return inner(self_or_frames, *args, **options)
            if where == "interrupt":
                raise KeyboardInterrupt
            if not where.startswith("nan"):
                inner(self_or_frames, *args, **options)
                raise RuntimeError("out of memory")
            given = inner(self_or_frames, *args, **options)
            if where == "nan_decoder":
                return given * float("nan")
            given.tokens[0, 0] = float("inf")
            return given

        monkeypatch.setattr(stream.family, "encode" if "encoder" in where else "decode", fails)
        error = {"nan": NonFiniteError, "int": KeyboardInterrupt}.get(where[:3], RuntimeError)
        with pytest.raises(error):
            stream.push(frames[3:8])
        monkeypatch.undo()
        assert stream.stats == before
        stream.push(frames[3:])
        assert stream.stats.num_frames == 8
        assert torch.equal(stream.ask(QUESTION, max_new_tokens=1).logits, expected)


def test_every_further_family_keeps_in_step_where_its_encoder_fails(further_name, vlm, video, monkeypatch):
    """In the middle of a push: frames before the failure were seen already, and are taken back."""
    model, frames = vlm(further_name), video(8)
    expected = answer_alone(model, frames)
    with start(model) as stream:
        stream.push(frames[:2])
        before, encode, calls = stream.stats, stream.family.encode, []

        def fails(given):
            calls.append(1)
            if len(calls) == 2:
                raise RuntimeError("out of memory")
            return encode(given)

        monkeypatch.setattr(stream.family, "encode", fails)
        with pytest.raises(RuntimeError, match="memory"):
            stream.push(frames[2:])
        assert len(calls) == 2
        assert stream.stats == before
        monkeypatch.undo()
        stream.push(frames[2:])
        assert torch.equal(stream.ask(QUESTION, max_new_tokens=1).logits, expected)


def test_nan_features_and_scores_are_errors(vlm, video, monkeypatch):
    with start(vlm("internvl")) as stream:
        features = stream.encode(video(2))
        features[1].tokens[0, 3] = float("nan")
        with pytest.raises(NonFiniteError, match="features"):
            stream.push(features)
        assert stream.stats.num_frames == 0
        stream.push(features[:1])
        monkeypatch.setattr(stream.family, "logits", lambda hidden: hidden * float("nan"))
        with pytest.raises(NonFiniteError, match="scores"):
            stream.ask(QUESTION)
        monkeypatch.undo()
        assert stream.ask(QUESTION, max_new_tokens=1).token_ids


def test_an_answer_after_close_is_an_error(vlm, video):
    with start(vlm("internvl")) as stream:
        stream.push(video(2))
        tokens = stream.ask_stepwise(QUESTION)
        next(tokens)
        unbegun = start(vlm("internvl"))
        unbegun.push(video(2))
        later = unbegun.ask_stepwise(QUESTION)
        unbegun.close()
    for answer in (tokens, later):
        with pytest.raises(ConfigError, match="closed"):
            list(answer)
