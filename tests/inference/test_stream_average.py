import logging
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kinescan.errors import CheckpointError, ConfigError
from kinescan.inference.stream import StreamSession, stream
from kinescan.inference.stream_average import StreamAverage, choose_average
from kinescan.inference.stream_state import load_stream_state, save_stream_state
from kinescan.models.timing import FrameTiming
from kinescan.models.zoo import create_model


def averaged(average, logits, elapsed):
    taken, out = None, []
    for own, seconds in zip(logits, elapsed, strict=True):
        result, taken = average.push(own, seconds, taken)
        out.append(result)
    return torch.stack(out)


def timed(model, frame_seconds=0.25):
    model.timing = FrameTiming(
        median_seconds=frame_seconds, shortest_seconds=frame_seconds, longest_seconds=frame_seconds
    )
    return model


def frames_like(seed, count):
    """Frames of one look, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    look = torch.rand(3, 32, 32, generator=generator) * 200
    return [(look + 20 * torch.rand(3, 32, 32, generator=generator)).byte() for _ in range(count)]


def test_exponential_weighs_frames_by_their_age():
    logits, elapsed = torch.randn(30, 4), (torch.rand(30) + 0.1).tolist()
    found = averaged(StreamAverage(kind="exponential", seconds=1.5), logits, elapsed)
    times = torch.tensor(elapsed, dtype=torch.float64).cumsum(0)
    for t in range(30):
        weights = torch.exp(-(times[t] - times[: t + 1]) / 1.5)
        expected = (weights[:, None] * logits[: t + 1]).sum(0) / weights.sum()
        torch.testing.assert_close(found[t], expected.float())


def test_sliding_is_the_mean_of_the_last_seconds():
    logits = torch.randn(40, 3)
    found = averaged(StreamAverage(kind="sliding", seconds=1.0), logits, [0.1] * 40)
    for t in range(40):
        torch.testing.assert_close(found[t], logits[max(0, t - 9) : t + 1].mean(0))


def test_mean_is_the_mean():
    logits = torch.randn(200, 3)
    found = averaged(StreamAverage(kind="mean", seconds=math.inf), logits, [0.1] * 200)
    torch.testing.assert_close(found[-1], logits.mean(0))


@pytest.mark.parametrize("kind", ["exponential", "sliding"])
def test_an_event_weighs_the_same_late_and_early(kind):
    def weight_after(num_frames):
        logits = torch.zeros(num_frames + 8, 1)
        logits[-8:] = 1.0
        return averaged(StreamAverage(kind=kind, seconds=1.0), logits, [0.25] * len(logits))[-1].item()

    assert weight_after(5_000) == pytest.approx(weight_after(100), abs=1e-6)
    assert weight_after(100) > 0.8


def test_nothing_is_left_of_what_was_hours_ago():
    for kind in ("exponential", "sliding"):
        average = StreamAverage(kind=kind, seconds=1.0)
        _, taken = average.push(torch.tensor([100.0]), 0.1, None)
        result, _ = average.push(torch.tensor([1.0]), 7200.0, taken)
        assert result.tolist() == [1.0]


def test_one_kind_takes_up_what_another_took():
    first, second = StreamAverage(kind="sliding", seconds=2.0), StreamAverage(kind="exponential", seconds=2.0)
    for one, other in ((first, second), (second, first)):
        _, taken = one.push(torch.tensor([2.0]), 0.1, None)
        _, taken = one.push(torch.tensor([4.0]), 0.1, taken)
        result, _ = other.push(torch.tensor([3.0]), 0.1, taken)
        assert result.item() == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [("exponential", 0.0), ("sliding", -1.0), ("sliding", math.nan), ("sliding", math.inf), ("median", 1.0)],
)
def test_a_wrong_average_is_refused(causal_model, kind, seconds):
    with pytest.raises(ConfigError, match="average"):
        stream(causal_model, [], average=kind, average_seconds=seconds)


def test_the_default_is_a_fraction_of_a_training_clip(causal_model, make_model):
    chosen = choose_average(timed(causal_model), None, None)
    assert (chosen.kind, chosen.seconds) == ("exponential", pytest.approx(0.25 * 4 * 0.25))
    assert choose_average(causal_model, "sliding", None).seconds == pytest.approx(0.5 * 4 * 0.25)
    assert choose_average(causal_model, None, 3.0).seconds == 3.0
    assert choose_average(causal_model, "mean", None) is None
    assert choose_average(make_model(causal=True), None, None) == StreamAverage(
        kind="exponential", seconds=1.0, counts_frames=True
    )
    with pytest.raises(ConfigError, match="average_seconds"):
        choose_average(causal_model, "mean", 3.0)


def test_a_model_that_was_trained_to_forget_keeps_its_own(make_model):
    own = make_model(causal=True, average="exponential")
    assert choose_average(own, None, None) is None
    assert choose_average(own, "mean", None).kind == "mean"
    assert choose_average(own, None, 1.0).kind == "exponential"


def test_a_model_that_answers_for_frames_has_nothing_to_average():
    model = create_model(
        "pks4_vit_ti16", labels=["background", "fall"], depth=2, image_size=32, causal=True, output="frames"
    ).eval()
    assert choose_average(model, None, None) is None
    frames = frames_like(0, 3)
    assert torch.equal(list(stream(model, frames))[-1].logits, list(stream(model, frames))[-1].logits)
    with pytest.raises(ConfigError, match="answers"):
        stream(model, frames, average="mean")


def test_a_stream_moves_however_long_it_has_been(make_model):
    # such a model itself remembers no more than a few frames
    model = timed(make_model(causal=True, scanner=False, class_token_route="none", context_frames=2))
    before, after = frames_like(1, 150), frames_like(2, 10)
    fresh = list(stream(model, after))[-1].logits.softmax(0)

    def left(average):
        *_, first = stream(model, before, average=average)
        *_, last = stream(model, before + after, average=average)
        start, end = first.logits.softmax(0), last.logits.softmax(0)
        return ((end - fresh).norm() / (start - fresh).norm()).item()

    assert left("mean") > 0.9
    assert left(None) < 0.05
    assert left("sliding") < 0.3


def test_scores_move_in_bfloat16_too(make_model):
    model = timed(make_model(causal=True, scanner=False))
    exact = torch.stack([p.logits for p in stream(model, frames_like(1, 150) + frames_like(2, 8))])
    with torch.autocast("cpu", torch.bfloat16):
        rough = torch.stack([p.logits for p in stream(model, frames_like(1, 150) + frames_like(2, 8))])
    assert rough.dtype == torch.float32
    # each step of the average shows, though bfloat16 has eight bits
    assert len({tuple(row.tolist()) for row in rough}) == len(rough)
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max()


def test_mean_is_warned_of_once_in_a_long_stream(causal_model, caplog):
    with caplog.at_level(logging.WARNING):
        list(stream(causal_model, frames_like(0, 16), average="mean"))
        assert not [record for record in caplog.records if "mean" in record.getMessage()]
        list(stream(causal_model, frames_like(0, 40), average="mean"))
        list(stream(causal_model, frames_like(0, 40)))
    assert len([record for record in caplog.records if 'average="mean"' in record.getMessage()]) == 1


@pytest.mark.parametrize("average", ["exponential", "sliding"])
def test_the_average_is_part_of_the_saved_state(causal_model, tmp_path, average):
    frames, path = frames_like(3, 9), tmp_path / "state.safetensors"
    expected = list(stream(causal_model, frames, average=average))
    list(stream(causal_model, frames[:5], average=average, state=path))
    rest = list(stream(causal_model, frames[5:], average=average, state=path))
    assert [torch.equal(one.logits, other.logits) for one, other in zip(rest, expected[5:], strict=True)] == [True] * 4


def test_a_state_of_before_loads(causal_model, tmp_path):
    session, path = StreamSession(causal_model), tmp_path / "state.safetensors"
    for frame in frames_like(3, 5):
        session.push(frame)
    save_stream_state(session.state, path, model=causal_model)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors["recent"]
    save_file(tensors, path, metadata=metadata)
    state = load_stream_state(path, model=causal_model)
    prediction = StreamSession(causal_model, state=state).push(frames_like(3, 1)[0])
    assert prediction.frame_index == 5
    mean = StreamSession(causal_model, state=state, average="mean").push(frames_like(3, 1)[0])
    assert not torch.equal(mean.logits, prediction.logits)


@pytest.mark.parametrize("recent", [torch.zeros(1, 3), torch.zeros(0, 6), torch.zeros(6)])
def test_an_average_of_another_model_is_refused(causal_model, recent):
    session = StreamSession(causal_model)
    session.push(frames_like(3, 1)[0])
    session.state.recent = recent
    with pytest.raises(CheckpointError, match="recent"):
        StreamSession(causal_model, state=session.state)


def test_seconds_need_times(causal_model):
    session = StreamSession(causal_model, average_seconds=1.0)
    session.push(frames_like(0, 1)[0])
    with pytest.raises(ConfigError, match="frame 1"):
        session.push(frames_like(0, 1)[0])
    session = StreamSession(causal_model, average_seconds=1.0)
    for time, frame in enumerate(frames_like(0, 3)):
        session.push(frame, seconds=float(time))
