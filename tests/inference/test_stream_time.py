"""Streams by time: the rate of the source, and clocks that are wrong."""

import logging
import time

import pytest
import torch

from kinescan.data.video import write_video
from kinescan.inference.stream import stream
from kinescan.models.timing import FrameTiming

FRAME_SECONDS = 0.16


@pytest.fixture
def timed_model(causal_model):
    causal_model.timing = FrameTiming(
        median_seconds=FRAME_SECONDS, shortest_seconds=FRAME_SECONDS, longest_seconds=FRAME_SECONDS
    )
    return causal_model


def scene(seconds):
    """[3, 64, 64] uint8: a texture that moves steadily; the same at the same time whatever the rate."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    shift = 9.0 * seconds
    waves = [torch.sin((columns + shift) / (4 + k)) * torch.cos((rows + (k - 1) * shift) / (5 + k)) for k in range(3)]
    return (127 + 100 * torch.stack(waves)).byte()


def shown(times):
    return [(scene(time), time) for time in times]


def steady(rate, seconds=6.0, start=0.0):
    return [start + k / rate for k in range(round(seconds * rate))]


def varying(seconds=6.0):
    generator = torch.Generator().manual_seed(0)
    times = (torch.rand(400, generator=generator) * 0.05 + 0.005).cumsum(0)
    return [0.0, *times[times < seconds].tolist()]


def at_turns(predictions):
    return torch.stack([prediction.logits for prediction in predictions])


@pytest.mark.parametrize(
    "times", [steady(12.5), steady(50.0), steady(100.0), varying()], ids=["12", "50", "100", "vfr"]
)
def test_the_rate_of_the_source_does_not_matter(timed_model, times):
    expected = at_turns(stream(timed_model, shown(steady(25.0))))
    found = at_turns(stream(timed_model, shown(times)))
    assert abs(len(found) - len(expected)) <= 1
    count = min(len(found), len(expected))
    assert (found[:count] - expected[:count]).abs().max() < 0.05
    # by count, it does
    by_count = at_turns(stream(timed_model, shown(times), every=4))
    count = min(len(by_count), len(expected))
    assert (by_count[:count] - expected[:count]).abs().max() > 0.05


def test_files_are_taken_by_their_times(timed_model, tmp_path):
    found = {}
    for rate in (12.5, 25.0, 50.0):
        # without loss, so that a frame is the same in every file
        path = tmp_path / f"{rate:g}.mkv"
        write_video(path, torch.stack([scene(time) for time in steady(rate)]), fps=rate, codec="ffv1")
        predictions = list(stream(timed_model, path))
        assert [p.seconds for p in predictions] == pytest.approx([FRAME_SECONDS * k for k in range(len(predictions))])
        found[rate] = at_turns(predictions)[:37]
    assert (found[12.5] - found[25.0]).abs().max() < 0.05
    assert (found[50.0] - found[25.0]).abs().max() < 0.05


def test_a_file_of_varying_rate_and_one_with_a_jump(timed_model, tmp_path):
    expected = at_turns(stream(timed_model, shown(steady(25.0))))
    times = torch.tensor(varying(), dtype=torch.float64)
    pixels = torch.stack([scene(time) for time in times.tolist()])
    write_video(tmp_path / "vfr.mkv", pixels, fps=40, codec="ffv1", pts_seconds=times)
    found = at_turns(stream(timed_model, tmp_path / "vfr.mkv"))
    count = min(len(found), len(expected))
    assert (found[:count] - expected[:count]).abs().max() < 0.05
    jumping = torch.where(times < 3.0, times, times + 7200.0)
    write_video(tmp_path / "jump.mkv", pixels, fps=40, codec="ffv1", pts_seconds=jumping)
    predictions = list(stream(timed_model, tmp_path / "jump.mkv"))
    assert abs(len(predictions) - len(found)) <= 2


def test_a_slower_source_is_repeated_and_named_once(timed_model, caplog):
    with caplog.at_level(logging.WARNING):
        predictions = list(stream(timed_model, shown(steady(2.0))))
    assert len(predictions) == 1 + int(5.5 / FRAME_SECONDS)
    assert len({p.frame_index for p in predictions}) == 12
    assert len([r for r in caplog.records if "repeated" in r.getMessage()]) == 1


def test_every_takes_frames_by_count(timed_model):
    predictions = list(stream(timed_model, shown(steady(25.0)), every=7))
    assert [p.frame_index for p in predictions] == list(range(0, 150, 7))


@pytest.mark.parametrize("has_times", [True, False])
def test_what_is_assumed_is_said_once(causal_model, timed_model, has_times, caplog):
    frames = shown(steady(25.0, seconds=1.0))
    if has_times:
        causal_model.timing = None
    else:
        frames = [pixels for pixels, _ in frames]
    with caplog.at_level(logging.WARNING):
        predictions = list(stream(causal_model, frames))
    assert [p.frame_index for p in predictions] == list(range(25))
    assert len(caplog.records) == 1
    assert ("every" if has_times else "0.16") in caplog.text


@pytest.mark.parametrize("jump", [3.0, 7200.0])
def test_a_gap_begins_the_stream_anew(timed_model, jump, caplog):
    before, after = steady(25.0, seconds=2.0), steady(25.0, seconds=2.0, start=2.0 + jump)
    with caplog.at_level(logging.WARNING):
        predictions = list(stream(timed_model, shown(before + after)))
    late = [p for p in predictions if p.seconds >= 2.0 + jump]
    assert len(predictions) < 30
    assert torch.equal(at_turns(late), at_turns(stream(timed_model, shown(after))))
    assert sum("anew" in record.getMessage() for record in caplog.records) == 1


def test_a_pause_shorter_than_a_clip_is_bridged(timed_model):
    times = [time for time in steady(25.0, seconds=4.0) if not 1.5 < time < 3.3]
    predictions = list(stream(timed_model, shown(times)))
    assert len(predictions) == 25


@pytest.mark.parametrize("wrong", ["stops", "back", "repeats", "nan", "none"])
def test_clocks_that_are_wrong_neither_stop_nor_stretch_the_stream(timed_model, wrong):
    right = steady(25.0, seconds=4.0)
    told = {
        "stops": [min(time, 2.0) for time in right],
        "back": [time if time < 2.0 else time - 1.5 for time in right],
        "repeats": [time if time < 2.0 else time - 2.0 for time in right],
        "nan": [time if k % 9 else float("nan") for k, time in enumerate(right)],
        "none": [time if k % 9 else None for k, time in enumerate(right)],
    }[wrong]
    if told[0] is None or told[0] != told[0]:
        told[0] = 0.0
    frames = [(scene(time), seconds) for time, seconds in zip(right, told, strict=True)]
    predictions = list(stream(timed_model, frames))
    assert 24 <= len(predictions) <= 26
    seconds = [p.seconds for p in predictions]
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(right[-1], abs=0.5)


def test_size_and_rate_may_change_on_the_way(timed_model):
    small = [(pixels[:, ::2, ::2], time) for pixels, time in shown(steady(50.0, seconds=2.0, start=2.0))]
    predictions = list(stream(timed_model, shown(steady(25.0, seconds=2.0)) + small))
    assert [p.seconds for p in predictions] == pytest.approx([FRAME_SECONDS * k for k in range(25)], abs=1e-6)


@pytest.mark.parametrize("is_live", [False, True], ids=["file", "live"])
@pytest.mark.parametrize("changed", ["size", "rate", "pixel format"])
def test_a_recording_may_change_on_the_way(timed_model, tmp_path, changed, is_live):
    """Two recordings of MPEG-TS joined byte by byte, as a camera leaves them that was set otherwise in between."""
    rate = 50.0 if changed == "rate" else 25.0
    times = steady(rate, seconds=2.0, start=2.0)
    later = torch.stack([scene(time) for time in times])
    # sides that are odd are stored as 4:4:4
    later = {"size": later.repeat_interleave(2, 2).repeat_interleave(2, 3), "pixel format": later[..., :63]}.get(
        changed, later
    )
    write_video(tmp_path / "a.ts", torch.stack([scene(time) for time in steady(25.0, seconds=2.0)]), fps=25)
    write_video(tmp_path / "b.ts", later, fps=rate, pts_seconds=torch.tensor(times))
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    predictions = list(stream(timed_model, f"file://{joined}" if is_live else joined))
    assert [p.seconds for p in predictions] == pytest.approx([FRAME_SECONDS * k for k in range(25)], abs=0.02)
    if changed != "pixel format":
        expected = at_turns(stream(timed_model, shown(steady(25.0, seconds=4.0))))
        torch.testing.assert_close(at_turns(predictions), expected, atol=0.1, rtol=0)


@pytest.mark.parametrize(("away", "is_cut"), [(0.5, False), (1.9, False), (2.1, True), (7200.0, True)])
def test_a_live_stream_restarted_after_a_pause_follows_the_rule_for_pauses(
    timed_model, tmp_path, monkeypatch, away, is_cut
):
    now = 1_700_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    pixels = torch.stack([scene(t / 10) for t in range(20)])
    write_video(tmp_path / "a.ts", pixels, fps=10)
    source = f"file://{tmp_path / 'a.ts'}"
    first = at_turns(stream(timed_model, source, state=tmp_path / "state"))
    now += away
    second = at_turns(stream(timed_model, source, state=tmp_path / "state"))
    assert bool((first == second).all()) == is_cut
    # a file's time stands still while nobody reads it
    list(stream(timed_model, tmp_path / "a.ts", state=tmp_path / "of_file"))
    now += 7200.0
    again = at_turns(stream(timed_model, tmp_path / "a.ts", state=tmp_path / "of_file"))
    assert not (again == first).all()


@pytest.mark.parametrize("rate", [12.5, 25.0, 50.0])
def test_a_lossy_file_is_fed_the_same_frames_as_its_original(timed_model, tmp_path, rate):
    """What is left between rates is the codec's: on the original pixels the logits are equal."""
    times = steady(rate, seconds=3.0)
    write_video(tmp_path / "a.mp4", torch.stack([scene(time) for time in times]), fps=rate)
    found = list(stream(timed_model, tmp_path / "a.mp4"))
    expected = list(stream(timed_model, shown(times)))
    assert [one.frame_index for one in found] == [one.frame_index for one in expected]
    assert [one.seconds for one in found] == pytest.approx([one.seconds for one in expected])
    at_25 = at_turns(stream(timed_model, shown(steady(25.0, seconds=3.0))))
    count = min(len(at_25), len(expected))
    torch.testing.assert_close(at_turns(expected)[:count], at_25[:count], atol=1e-5, rtol=0)
