"""Streams whose decoder layers run compiled: nothing is compiled anew, and what comes out is the same."""

import threading

import pytest
import torch
from tests.mentions import mentions

from kinescan.errors import BackendError, ConfigError
from kinescan.vlm import PixelSettings, ask_together, load_stream, open_stream, push_together

QUESTIONS = [[5, 17, 200], [41, 8, 9, 13, 77], [3]]
PIXELS = PixelSettings(min_pixels=64, max_pixels=10_000)


@pytest.fixture
def graphs(monkeypatch):
    """Counts what is compiled; nothing is made of it, so that numbers are those of a run without."""
    torch.compiler.reset()
    found = []

    def counting(module, inputs):
        found.append(module)
        return module.forward

    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_with(function, backend=counting))
    yield found
    torch.compiler.reset()


def start(model, **options):
    return open_stream(model, pixels=PIXELS, horizon_frames=400, **{"budget": 20, **options})


def watched(model, video, num_frames, **options):
    """Logits of answers while frames enter, one by one."""
    found = []
    with start(model, **options) as stream:
        for number, frame in enumerate(video(num_frames)):
            stream.push(frame)
            if number % 10 == 9:
                question = QUESTIONS[number // 10 % len(QUESTIONS)]
                found.append(stream.ask(question, max_new_tokens=4).logits)
    return torch.stack(found)


@pytest.mark.parametrize("name", ["internvl", "qwen3_vl_moe"])
def test_no_frame_and_no_answer_compiles_anew(name, vlm, video, graphs):
    model = vlm(name)
    expected = watched(model, video, 120)
    compiled = []
    with start(model, compiled=True) as stream:
        for number, frame in enumerate(video(120)):
            stream.push(frame)
            if number % 10 == 9:
                question = QUESTIONS[number // 10 % len(QUESTIONS)]
                torch.testing.assert_close(
                    stream.ask(question, max_new_tokens=4).logits, expected[number // 10], atol=0, rtol=0
                )
            compiled.append(len(graphs))
    # the first answers bring their own sizes; over the 100 frames behind them, nothing is compiled
    assert compiled[19] > 0
    assert compiled[19] == compiled[-1]
    # nor by other streams of the model, of another budget, or with a limit
    watched(model, video, 20, compiled=True, budget=12, memory_budget=100)
    assert len(graphs) == compiled[-1]


def test_the_number_of_layers_does_not_matter(graphs, video, build_fresh, vlm):
    expected = watched(vlm("internvl"), video, 20, compiled=True)
    few = len(graphs)
    torch.compiler.reset()
    graphs.clear()
    deep = build_fresh("internvl")
    text = deep.config.text_config
    text.num_hidden_layers, text.layer_types = 10, ["full_attention"] * 10
    layers = deep.model.language_model.layers
    layers.extend(type(layers[0])(text, index).eval() for index in range(len(layers), 10))
    found = watched(deep, video, 20, compiled=True)
    assert len(graphs) == few
    assert found.shape == expected.shape
    torch.testing.assert_close(found, watched(deep, video, 20), atol=0, rtol=0)


def test_streams_together_and_saved(vlm, video, graphs, tmp_path):
    model = vlm("internvl")
    frames = [video(6), video(7)[:6]]
    answers = []
    for compiled in (False, True):
        streams = [start(model, compiled=compiled) for _ in frames]
        push_together(streams, frames)
        answers.append([answer.logits for answer in ask_together(streams, [[5, 6, 7]] * 2, max_new_tokens=3)])
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    streams[0].save(tmp_path / "one.state")
    with load_stream(tmp_path / "one.state", model) as loaded:
        assert loaded.config.compiled
        torch.testing.assert_close(loaded.ask([5, 6, 7], max_new_tokens=1).logits, answers[1][0], atol=1e-5, rtol=1e-5)


def test_threads_do_not_meet(vlm, video, graphs):
    model = vlm("internvl")
    expected = watched(model, video, 20)
    found, workers = {}, []
    for number in range(2):

        def work(number=number):
            found[number] = watched(model, video, 20, compiled=True)

        workers.append(threading.Thread(target=work))
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(found[number], expected) for number in range(2))


def test_the_model_itself_is_left_alone(build_fresh, video):
    model = build_fresh("internvl")
    layers = model.model.language_model.layers
    start(model, compiled=True)
    assert all("forward" not in vars(layer) for layer in layers)


@pytest.mark.bad_input
def test_a_compiler_that_fails_is_an_error_of_ours(vlm, video, monkeypatch):
    torch.compiler.reset()

    def broken(module, inputs):
        raise RuntimeError("no compiler here")

    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_with(function, backend=broken))
    with start(vlm("internvl"), compiled=True) as stream:
        with pytest.raises(BackendError) as raised:
            stream.push(video(1))
        assert mentions(str(raised.value), "compiled")
        assert stream.stats.num_frames == 0


@pytest.mark.bad_input
def test_compiled_is_true_or_false(vlm):
    with pytest.raises(ConfigError, match="compiled"):
        start(vlm("internvl"), compiled="yes")
