import itertools
import logging

import pytest
import torch

from kinescan.data.resampling import SourceClock, resample
from kinescan.errors import ConfigError


def frames(seconds):
    """One frame for each time; its pixel is its index."""
    return [(torch.full((3, 1, 1), index % 256, dtype=torch.uint8), time) for index, time in enumerate(seconds)]


def chosen(seconds, frame_seconds, **options):
    return [frame.frame_index for frame in resample(frames(seconds), frame_seconds, **options)]


def steady(count, step, start=0.0):
    return [start + step * k for k in range(count)]


def test_a_source_at_the_wanted_rate_is_given_as_it_is():
    times = [1.7e9 + time for time in steady(500, 1 / 30)]
    given = list(resample(frames(times), 1 / 30))
    assert [frame.frame_index for frame in given] == list(range(500))
    assert [frame.seconds for frame in given] == times


def test_times_rounded_to_milliseconds_change_nothing():
    assert chosen([round(time, 3) for time in steady(300, 1 / 30)], 0.1) == list(range(0, 300, 3))


@pytest.mark.parametrize("rate", [12.5, 25.0, 50.0, 100.0])
def test_the_moments_do_not_depend_on_the_rate_of_the_source(rate):
    given = list(resample(frames(steady(int(8 * rate), 1 / rate)), 0.16))
    assert [frame.seconds for frame in given] == pytest.approx(steady(50, 0.16))


def test_a_varying_rate_gives_the_nearest_frames():
    generator = torch.Generator().manual_seed(0)
    times = (torch.rand(400, generator=generator) * 0.08 + 0.005).cumsum(0).tolist()
    given = list(resample(frames(times), 0.2))
    turns = [times[0] + 0.2 * k for k in range(len(given))]
    longest = max(later - earlier for earlier, later in itertools.pairwise(times))
    assert max(abs(frame.seconds - turn) for frame, turn in zip(given, turns, strict=True)) <= longest


def test_a_frame_is_given_when_it_is_there():
    seen = []

    def source():
        for entry in frames(steady(5, 0.2)):
            seen.append(entry[1])
            yield entry

    for frame in resample(source(), 0.2):
        assert frame.seconds == seen[-1]


def test_a_slower_source_is_repeated_and_said_once(caplog):
    with caplog.at_level(logging.WARNING):
        given = list(resample(frames(steady(20, 0.5)), 0.1, name="slow camera"))
    assert len(given) == 1 + 19 * 5
    assert sum(frame.is_repeated for frame in given) == 19 * 4
    assert all(earlier.seconds < later.seconds for earlier, later in itertools.pairwise(given))
    assert [record.getMessage().count("slow camera") for record in caplog.records] == [1]


def test_a_little_slower_source_is_not_complained_of(caplog):
    with caplog.at_level(logging.WARNING):
        assert len(chosen(steady(1000, 1 / 29.97), 1 / 30)) in (1001, 1002)
    assert not caplog.records


@pytest.mark.parametrize("jump", [2.6, 7200.0, 1e8])
def test_nothing_is_repeated_over_a_gap(jump):
    times = steady(30, 0.04) + steady(30, 0.04, start=29 * 0.04 + jump)
    given = list(resample(frames(times), 0.04))
    assert [frame.frame_index for frame in given] == list(range(60))
    assert [frame.gap_seconds for frame in given if frame.gap_seconds] == pytest.approx([jump])
    assert given[30].seconds == times[30]


def test_a_short_gap_is_filled():
    times = steady(30, 0.04) + steady(30, 0.04, start=30 * 0.04 + 1.0)
    given = list(resample(frames(times), 0.04))
    assert sum(frame.is_repeated for frame in given) == 25
    assert len(given) == 85


@pytest.mark.parametrize("back", [0.5, 3600.0])
def test_times_go_on_where_the_clock_goes_back(back, caplog):
    times = steady(25, 0.04, start=5000.0) + steady(25, 0.04, start=5001.0 - back)
    with caplog.at_level(logging.WARNING):
        given = list(resample(frames(times), 0.04, name="camera"))
    assert [frame.seconds for frame in given] == pytest.approx(steady(50, 0.04, start=5000.0))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["camera"]


def test_a_clock_that_stops_is_made_up_for(caplog):
    times = steady(25, 0.04) + [24 * 0.04] * 50 + steady(25, 0.04, start=25 * 0.04)
    with caplog.at_level(logging.WARNING):
        given = list(resample(frames(times), 0.04, name="camera"))
    assert given[-1].seconds == pytest.approx(99 * 0.04)
    assert not any(frame.gap_seconds for frame in given)
    assert len(caplog.records) == 1


def test_frames_that_are_sent_twice_count_once():
    times = [time for time in steady(40, 0.04) for _ in range(2)]
    assert chosen(times, 0.04) == list(range(0, 80, 2))


def test_a_frame_without_a_time_follows_the_one_before():
    assert SourceClock("a", frame_seconds=9.0).usual_seconds == 9.0
    times = [0.0, 0.5, 1.0, None, None, 2.5]
    assert [frame.seconds for frame in resample(frames(times), 0.5)] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]


def test_a_rate_that_changes_on_the_way():
    times = steady(50, 0.04) + steady(100, 0.02, start=2.0) + steady(13, 0.08, start=4.0)
    given = list(resample(frames(times), 0.08))
    assert [frame.seconds for frame in given] == pytest.approx(steady(63, 0.08), abs=1e-9)


@pytest.mark.parametrize("options", [{"frame_seconds": 0.0}, {"frame_seconds": 0.1, "longest_gap_seconds": 0.0}])
def test_distances_must_be_positive(options):
    with pytest.raises(ConfigError, match="positive"):
        resample([], **options)
