import itertools
import logging

import pytest

from kinescan.data.video.clock import LiveClock

RATE = 25


def run(raws, *, by_arrival=False, frame_seconds=1 / RATE, paced=True, outages=()):
    """Times for these raw ones, with a wall's clock that runs as the frames should (or stands, for a recording)."""
    clock = LiveClock("camera", frame_seconds=frame_seconds, by_arrival=by_arrival)
    now, times = 100.0, []
    for index, raw in enumerate(raws):
        waited = (1 / RATE if paced else 1e-5) + dict(outages).get(index, 0.0)
        now += waited
        times.append(clock.time_of(raw, now=now, waited=waited))
    return times, clock


def steps(times):
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def steady(num_frames, start=1.4):
    return [start + index / RATE for index in range(num_frames)]


@pytest.mark.parametrize("paced", [True, False])
def test_a_sound_clock_is_followed(paced):
    times, clock = run(steady(100), paced=paced)
    assert times == pytest.approx(steady(100))
    assert clock.num_jumps == 0


@pytest.mark.parametrize("paced", [True, False])
@pytest.mark.parametrize("jump", [7200.0, -7200.0, 95443.7, -30.0, 30.0, 1e9])
def test_a_jump_adds_no_time_and_is_said_once(jump, paced, caplog):
    raws = steady(300) + steady(300, 1.4 + 300 / RATE + jump) + steady(600, 1.4 + 600 / RATE)
    with caplog.at_level(logging.WARNING):
        times, clock = run(raws, paced=paced)
    assert steps(times) == pytest.approx([1 / RATE] * 1199, abs=1e-6)
    assert clock.num_jumps == 2
    assert caplog.text.count("its clock jumps") == 1


@pytest.mark.parametrize("jump", [-7200.0, 7200.0])
def test_an_outage_takes_the_time_that_it_took(jump):
    times, _ = run(steady(50) + steady(50, 3.4 + jump), outages=[(50, 60.0)])
    assert times[50] - times[49] == pytest.approx(60.0, abs=0.1)
    gap, clock = run(steady(50) + steady(50, 3.4 + 60), outages=[(50, 60.0)])
    assert gap[50] - gap[49] == pytest.approx(60.0 + 1 / RATE)
    assert clock.num_jumps == 0


def test_a_short_step_back_is_a_jump_too():
    times, clock = run(steady(50) + steady(50, 2.4))
    assert steps(times) == pytest.approx([1 / RATE] * 99)
    assert clock.num_jumps == 1


def test_a_gap_of_a_recording_is_kept_where_it_is_short():
    times, clock = run(steady(50) + steady(50, 8.0), paced=False)
    assert times == pytest.approx(steady(50) + steady(50, 8.0))
    assert clock.num_jumps == 0


@pytest.mark.parametrize("value", [0.0, 5.0, None])
def test_a_clock_that_stands_still_or_is_missing_gives_the_named_rate(value):
    times, _ = run([value] * 500, paced=False)
    assert steps(times) == pytest.approx([1 / RATE] * 499)


def test_a_clock_that_comes_to_stand_still_is_made_up_for(caplog):
    with caplog.at_level(logging.WARNING):
        times, _ = run(steady(100) + [steady(100)[-1]] * 400)
    assert all(step > 0 for step in steps(times))
    assert times[-1] - times[0] == pytest.approx(499 / RATE, abs=0.1)
    assert caplog.text.count("stands still") == 1


def test_doubled_and_jittered_times_do_not_add_up():
    raws = [time for time in steady(500) for _ in (0, 1)]
    times, clock = run(raws, frame_seconds=1 / 50)
    assert all(step > 0 for step in steps(times))
    assert times[-1] - times[0] == pytest.approx(499 / RATE, abs=0.1)
    assert clock.num_jumps == 0
    swapped = steady(500)
    for index in range(0, 490, 7):
        swapped[index], swapped[index + 1] = swapped[index + 1], swapped[index]
    times, clock = run(swapped)
    assert all(step > 0 for step in steps(times))
    assert times[-1] - times[0] == pytest.approx(499 / RATE, abs=0.1)


def test_missing_times_lie_between_their_neighbours():
    raws = [None if index % 3 else time for index, time in enumerate(steady(300))]
    times, clock = run(raws)
    assert times == pytest.approx(steady(300), abs=0.01)
    assert clock.num_jumps == 0


def test_without_a_clock_frames_are_timed_as_they_come():
    times, _ = run([index / 25 for index in range(50)], by_arrival=True, outages=[(10, 3.0)])
    assert times[0] == 0.0
    assert times[9] == pytest.approx(9 / RATE)
    assert times[10] == pytest.approx(3.0 + 10 / RATE)
    burst, _ = run([None] * 50, by_arrival=True, paced=False)
    assert all(step > 0 for step in steps(burst))


def test_an_hour_with_many_jumps_stays_right_and_small():
    clock = LiveClock("camera", frame_seconds=1 / RATE, by_arrival=False)
    before = len(vars(clock))
    seconds = 0.0
    for index in range(90_000):
        raw = (index % 5000) / RATE + (index // 5000 % 3) * 86400
        seconds = clock.time_of(raw, now=index / RATE, waited=1 / RATE)
    assert seconds == pytest.approx(3600, abs=1)
    assert len(vars(clock)) == before
    assert all(not isinstance(value, list | dict) for value in vars(clock).values())
