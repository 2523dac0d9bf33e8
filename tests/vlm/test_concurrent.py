"""Calls of streams and plain forwards within one another, for each family: a thread waits inside of a layer."""

import threading

import pytest
import torch

from kinescan.vlm import PixelSettings, families, open_stream

QUESTION = [5, 17, 200, 41, 8]
PIXELS = PixelSettings(min_pixels=64, max_pixels=10_000)
FAMILIES = [
    *("internvl", "internvl_dynamic", "llava_next_video", "llava_onevision", "perception_lm", "qwen2_5_vl", "qwen2_vl"),
    *("qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe", "smolvlm", "video_llama_3"),
]
LONGEST_SECONDS = 60


def start(model, **options):
    return open_stream(model, **{"pixels": PIXELS, "horizon_frames": 40, "budget": 12, **options})


def answer(stream):
    return stream.ask(QUESTION, max_new_tokens=1).logits


def answer_alone(model, frames, **options):
    with start(model, **options) as stream:
        stream.push(frames)
        return answer(stream)


class Held:
    """A call that stands within a layer of a stream's decoder, in another thread, while the block runs."""

    def __init__(self, stream, work):
        self.inside, self.released, self.failed, self.entered = threading.Event(), threading.Event(), [], 0
        self._hook = stream.family.decoder.layers[1].register_forward_pre_hook(self._wait)
        self._thread = threading.Thread(target=self._run, args=(work,))

    def __enter__(self):
        self._thread.start()
        assert self.inside.wait(LONGEST_SECONDS)
        return self

    def __exit__(self, *error):
        self.released.set()
        self._thread.join(LONGEST_SECONDS)
        self._hook.remove()

    def _wait(self, layer, inputs):
        self.entered += 1
        if not self.inside.is_set():
            self.inside.set()
            assert self.released.wait(LONGEST_SECONDS)

    def _run(self, work):
        try:
            work()
        except Exception as error:
            self.failed.append(repr(error))


def test_every_family_is_here():
    assert {name.removesuffix("_dynamic") for name in FAMILIES} == set(families.FAMILIES)


@pytest.mark.parametrize("call", ["push", "ask"])
@pytest.mark.parametrize("name", FAMILIES)
def test_others_run_while_a_stream_is_within_a_layer(name, call, build_fresh, video, plain):
    """A plain forward of the model and a whole second stream: all three give what they give alone."""
    torch.manual_seed(1)
    model, frames = build_fresh(name), video(6)
    alone = answer_alone(model, frames), answer_alone(model, frames, budget=9)
    with start(model) as stream, torch.no_grad():
        inputs = plain(stream.family, frames, QUESTION)
        expected = model(**inputs).logits
        stream.push(frames[:4])
        found = []
        work = (lambda: stream.push(frames[4:])) if call == "push" else (lambda: found.append(answer(stream)))
        with Held(stream, work) as held:
            meanwhile = model(**inputs).logits, answer_alone(model, frames, budget=9)
        assert held.failed == []
        assert torch.equal(meanwhile[0], expected)
        assert torch.equal(meanwhile[1], alone[1])
        if call == "ask":
            assert torch.equal(found[0], answer_alone(model, frames[:4]))
            stream.push(frames[4:])
        assert torch.equal(answer(stream), alone[0])
        assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_second_call_of_one_stream_waits(name, build_fresh, video):
    """Questions, frames and sizes, all from other threads, while frames are on their way."""
    torch.manual_seed(1)
    model, frames = build_fresh(name), video(6)
    said, seen = [], []
    with start(model) as stream:
        stream.push(frames[:2])
        works = (lambda: said.append(answer(stream)), lambda: seen.append(stream.stats.num_frames))
        others = [threading.Thread(target=work) for work in works]
        with Held(stream, lambda: stream.push(frames[2:4])) as held:
            for other in others:
                other.start()
            for other in others:
                other.join(0.2)
            assert (held.entered, said, seen) == (1, [], [])
        assert held.failed == []
        for other in others:
            other.join(LONGEST_SECONDS)
        assert seen == [4]
        assert torch.equal(said[0], answer_alone(model, frames[:4]))
        stream.push(frames[4:])
        assert torch.equal(answer(stream), answer_alone(model, frames))


def test_frames_that_come_while_a_question_is_answered_are_not_lost(vlm, video):
    """A camera's thread pushes, another one asks: neither gets an error, and no frame is missing."""
    model, frames, failed = vlm("internvl"), video(24), []
    with start(model) as stream:
        stream.push(frames[:1])

        def recorded(work):
            try:
                work()
            except Exception as error:
                failed.append(repr(error))

        def push():
            for frame in frames[1:]:
                stream.push(frame)

        def ask():
            for _ in range(4):
                stream.ask(QUESTION, max_new_tokens=3)

        threads = [threading.Thread(target=recorded, args=(work,)) for work in (push, ask, ask)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert stream.stats.num_frames == 24
        assert torch.equal(answer(stream), answer_alone(model, frames))
