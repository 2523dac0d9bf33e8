"""Several streams of one model, pushed and asked as one batch, against each by itself."""

import threading

import pytest
import torch

from kinescan.errors import ConfigError, NonFiniteError
from kinescan.vlm import Generation, PixelSettings, ask_together, open_stream, push_together

QUESTION = [5, 17, 200, 41, 8]
PIXELS = PixelSettings(min_pixels=64, max_pixels=10_000)
OPTIONS = [{"budget": 12}, {"budget": 9, "policy": "h2o"}, {"budget": None, "memory_budget": 60}]


def start(model, index=0, **options):
    return open_stream(model, **{"pixels": PIXELS, "horizon_frames": 40, **OPTIONS[index], **options})


def rows_of(stream):
    """Counts the rows of each batch that the decoder of a stream is given."""
    rows, inner = [], stream.family.decode

    def decode(embedded, *args, **options):
        rows.append(len(embedded))
        return inner(embedded, *args, **options)

    stream.family.decode = decode
    return rows


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl", "llava_onevision", "internvl", "internvl_dynamic"])
def test_together_equals_one_by_one(name, vlm, video):
    model = vlm(name)
    videos = [video(9)[start:] for start in (0, 1, 3)]
    questions = [QUESTION, QUESTION[:3], QUESTION[::-1]]
    alone = []
    for index, frames in enumerate(videos):
        with start(model, index) as stream:
            stream.push(frames)
            alone.append((stream.ask(questions[index], max_new_tokens=5), stream.stats))
    streams = [start(model, index) for index in range(3)]
    rows = rows_of(streams[0])
    for first in range(0, 9, 2):
        push_together(streams, [frames[first : first + 2] if first < len(frames) else None for frames in videos])
    assert max(rows) == 3
    found = ask_together(streams, questions, max_new_tokens=5)
    for stream, answer, (expected, stats) in zip(streams, found, alone, strict=True):
        torch.testing.assert_close(answer.logits, expected.logits, atol=1e-4, rtol=1e-4)
        assert answer.token_ids == expected.token_ids
        assert answer.seen_seconds == expected.seen_seconds
        assert stream.stats == stats
        assert stream.ask(QUESTION, max_new_tokens=1).token_ids


def test_answers_that_end_early_leave_the_others(vlm, video, tokenizer):
    model = vlm("internvl")
    streams = [open_stream(model, tokenizer(), pixels=PIXELS, horizon_frames=40) for _ in range(2)]
    push_together(streams, [video(3), video(4)], seconds=[None, [0.0, 0.5, 1.0, 1.5]])
    whole = ask_together(streams, ["who?", "what?"], max_new_tokens=6, generation=Generation(temperature=0))
    stop = Generation(temperature=0, stop=(whole[0].text[:1],))
    cut, other = ask_together(streams, ["who?", "what?"], max_new_tokens=6, generation=stop)
    alone = streams[1].ask("what?", max_new_tokens=6, generation=stop)
    assert cut.text == "" != whole[0].text
    assert (other.text, other.token_ids) == (alone.text, alone.token_ids)


@pytest.mark.parametrize("where", ["encoder", "decoder", "frames"])
def test_a_failure_in_one_leaves_all_as_they_were(where, vlm, video, monkeypatch):
    streams = [start(vlm("internvl"), index) for index in range(3)]
    push_together(streams, [video(3)] * 3)
    expected = [stream.ask(QUESTION, max_new_tokens=1).logits for stream in streams]
    before = [stream.stats for stream in streams]
    given = [video(2), video(2), video(2, height=32) if where == "frames" else video(2)]

    def fails(*args, **options):
        raise RuntimeError("out of memory")

    if where != "frames":
        monkeypatch.setattr(streams[2 if where == "encoder" else 0].family, where[:2] + "code", fails)
    with pytest.raises(ValueError if where == "frames" else RuntimeError):
        push_together(streams, given)
    monkeypatch.undo()
    assert [stream.stats for stream in streams] == before
    for stream, logits in zip(streams, expected, strict=True):
        assert torch.equal(stream.ask(QUESTION, max_new_tokens=1).logits, logits)


def test_an_answer_that_fails_leaves_all_open(vlm, video, monkeypatch):
    streams = [start(vlm("internvl"), index) for index in range(2)]
    push_together(streams, [video(3)] * 2)
    with pytest.raises(ConfigError):
        ask_together(streams, [QUESTION, []])
    monkeypatch.setattr(streams[1].family, "logits", lambda hidden: hidden * float("nan"))
    with pytest.raises(NonFiniteError):
        ask_together(streams, [QUESTION, QUESTION])
    monkeypatch.undo()
    push_together(streams, [video(2), None])
    assert [stream.stats.num_frames for stream in streams] == [5, 3]


def test_wrong_streams_are_errors(vlm, video, build_fresh):
    first, second = start(vlm("internvl")), start(vlm("internvl"))
    other = start(build_fresh("internvl"))
    closed = start(vlm("internvl"))
    closed.close()
    frames = video(2)
    for streams, given in (
        ([], []),
        ([first, first], [frames, frames]),
        ([first, other], [frames, frames]),
        ([first, closed], [frames, frames]),
        ([first, second], [frames]),
        ([first, second], frames),
        ([first, "second"], [frames, frames]),
    ):
        with pytest.raises(ConfigError):
            push_together(streams, given)
    with pytest.raises(ConfigError):
        push_together([first, second], [frames, frames], seconds=[0.0])
    with pytest.raises(ConfigError):
        ask_together([first, second], [QUESTION, QUESTION])
    assert first.stats.num_frames == second.stats.num_frames == 0


def test_threads_with_the_streams_in_another_order_end(vlm, video):
    model, frames = vlm("internvl"), video(1)
    streams = [start(model) for _ in range(3)]
    orders = [streams, streams[::-1], streams[1:] + streams[:1]]
    failed = []

    def work(order):
        try:
            for _ in range(4):
                push_together(order, [frames] * 3)
                ask_together(order, [QUESTION] * 3, max_new_tokens=2)
        except Exception as error:
            failed.append(repr(error))

    threads = [threading.Thread(target=work, args=(order,), daemon=True) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not failed
    assert not any(thread.is_alive() for thread in threads)
    assert [stream.stats.num_frames for stream in streams] == [12, 12, 12]
