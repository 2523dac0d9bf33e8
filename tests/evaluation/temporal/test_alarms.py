import math

import pytest

from kinescan.errors import ConfigError
from kinescan.evaluation.temporal import Alarm, Interval, score_alarms


def _interval(start: float, end: float, label: str = "fall", video: str = "a") -> Interval:
    return Interval(video_id=video, label=label, start_seconds=start, end_seconds=end)


def _alarm(seconds: float, label: str = "fall", video: str = "a") -> Alarm:
    return Alarm(video_id=video, label=label, seconds=seconds)


def test_each_interval_takes_its_first_alarm_and_the_rest_are_false() -> None:
    truth = [_interval(10, 20), _interval(30, 32), _interval(50, 60)]
    alarms = [_alarm(9.9), _alarm(11), _alarm(12), _alarm(32), _alarm(59), _alarm(55, "run"), _alarm(55, video="b")]
    scores = score_alarms(truth, alarms, hours=2)
    assert scores.delays_seconds == (1, 9)
    assert scores.relative_delays == (0.1, 0.9)
    assert scores.missed == (truth[1],)
    assert scores.num_false == 5
    assert scores.false_alarms_per_hour == 2.5
    assert scores.missed_ratio == pytest.approx(1 / 3)
    assert scores.told_within(1.0) == pytest.approx(1 / 3)
    assert scores.delay_seconds(0.5) == 5


def test_overlapping_intervals_of_one_label_need_an_alarm_each() -> None:
    truth = [_interval(0, 10), _interval(5, 15)]
    assert score_alarms(truth, [_alarm(6)], hours=1).num_missed == 1
    assert score_alarms(truth, [_alarm(6), _alarm(7)], hours=1).delays_seconds == (6, 2)


def test_grace_tells_of_what_is_over() -> None:
    late = [_alarm(4.5)]
    assert score_alarms([_interval(2, 4)], late, hours=1).num_missed == 1
    assert score_alarms([_interval(2, 4)], late, hours=1, grace_seconds=1).delays_seconds == (2.5,)


def test_nothing_to_average_is_nan() -> None:
    scores = score_alarms([], [_alarm(1)], hours=1)
    assert math.isnan(scores.missed_ratio)
    assert math.isnan(scores.delay_seconds())
    assert math.isnan(scores.told_within(1))
    assert scores.false_alarms_per_hour == 1


@pytest.mark.parametrize("wrong", [{"hours": 0}, {"hours": math.nan}, {"hours": 1, "grace_seconds": -1}])
def test_hours_and_grace_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"hours|grace_seconds"):
        score_alarms([], [], **wrong)
