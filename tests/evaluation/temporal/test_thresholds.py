import pytest

from kinescan.errors import ConfigError
from kinescan.evaluation.temporal.thresholds import choose_rules, watched_hours

from .made_up import interval, predictions


def test_each_class_gets_a_threshold_between_its_events_and_its_noise() -> None:
    made = predictions((2, 4, "fall", 0.9), (8, 10, "fall", 0.55), (12, 14, "run", 0.3), (16, 17, "run", 0.12))
    found = choose_rules([made], {"a.mp4": [interval(2, 4), interval(12, 14, "run")]})
    assert 0.55 < found.rules.of("fall").on <= 0.9
    assert 0.12 < found.rules.of("run").on <= 0.3
    assert found.f1 == {"fall": 1.0, "run": 1.0}
    assert found.scores.num_false == found.scores.num_missed == 0
    assert found.silent == found.without_intervals == ()


def test_a_class_with_one_event_takes_its_threshold_from_what_others_show() -> None:
    """One event that the model is sure of says nothing about where the next one will lie."""
    runs = [(5.0 + 6 * index, 7.0 + 6 * index, "run", 0.5) for index in range(6)]
    noise = [(8.0 + 6 * index, 9.0 + 6 * index, "run", 0.3) for index in range(6)]
    made = predictions((1, 3, "fall", 0.98), *runs, *noise, length=44)
    truth = [interval(1, 3), *(interval(start, end, "run") for start, end, _, _ in runs)]
    found = choose_rules([made], {"a.mp4": truth})
    assert found.f1 == {"fall": 1.0, "run": 1.0}
    assert 0.3 < found.rules.of("run").on <= 0.5
    assert 0.3 < found.rules.of("fall").on <= 0.5
    # with as many falls as there is other evidence, their own scores decide
    falls = [(10.0 * index, 10.0 * index + 2, "fall", 0.98) for index in range(7)]
    feints = [(10.0 * index + 8, 10.0 * index + 9.5, "fall", 0.7) for index in range(7)]
    runs = [(10.0 * index + 3, 10.0 * index + 5, "run", 0.5) for index in range(7)]
    noise = [(10.0 * index + 1, 10.0 * index + 2.5, "run", 0.3) for index in range(7)]
    truth = [interval(start, end, label) for start, end, label, _ in (*falls, *runs)]
    found = choose_rules([predictions(*falls, *feints, *runs, *noise, length=72)], {"a.mp4": truth})
    assert 0.7 < found.rules.of("fall").on <= 0.98
    assert 0.3 < found.rules.of("run").on <= 0.5


def test_the_shortest_delay_is_taken_where_all_is_found() -> None:
    found = choose_rules([predictions((2, 4, "fall", 0.9))], {"a.mp4": [interval(2, 4)]})
    assert found.rules.least_seconds == found.rules.smooth_seconds == 0.0
    assert found.scores.delays_seconds == (0.0,)


def test_flicker_is_answered_with_longer_times() -> None:
    spikes = [(3 + second, 3.1 + second, "fall", 0.9) for second in range(0, 14, 2)]
    made = predictions(*spikes, (18, 20, "fall", 0.9))
    found = choose_rules([made], {"a.mp4": [interval(18, 20)]})
    assert found.rules.least_seconds > 0.1 or found.rules.smooth_seconds > 0
    assert found.f1["fall"] == 1.0


def test_a_class_that_is_never_right_is_told_of_never() -> None:
    wrong = predictions((1, 2, "run", 0.9), (4, 5, "run", 0.7), (8, 9, "run", 0.4), (12, 13, "fall", 0.8))
    found = choose_rules([wrong], {"a.mp4": [interval(12, 13), interval(15, 16, "run")]})
    assert found.silent == ("run",)
    assert found.rules.of("run").on > 0.9
    assert found.scores.num_false == 0


def test_short_events_that_are_told_when_they_are_over_get_a_threshold_with_a_grace() -> None:
    made, truth = predictions((2.7, 3.5, "fall", 0.9), (8.7, 9.5, "fall", 0.9)), [interval(2, 2.6), interval(8, 8.6)]
    assert choose_rules([made], {"a.mp4": truth}).silent == ("fall",)
    found = choose_rules([made], {"a.mp4": truth}, grace_seconds=0.5)
    assert found.silent == ()
    assert found.f1["fall"] == 1.0
    assert found.scores.delays_seconds == pytest.approx([0.7, 0.7])


def test_a_class_without_intervals_gets_the_usual_threshold() -> None:
    found = choose_rules([predictions((2, 4, "fall", 0.9))], {"a.mp4": [interval(2, 4)]})
    assert found.without_intervals == ("run",)
    assert found.rules.of("run").on == found.rules.of("fall").on


def test_scores_that_are_all_low_get_a_threshold_among_them() -> None:
    made = predictions((2, 4, "fall", 0.012), (8, 10, "fall", 0.006), (12, 14, "fall", 0.012), noise=0.004)
    found = choose_rules([made], {"a.mp4": [interval(2, 4), interval(12, 14)]})
    assert 0.006 < found.rules.of("fall").on <= 0.012
    assert found.f1["fall"] == 1.0


def test_no_more_false_alarms_than_asked_for() -> None:
    made = predictions(*((start, start + 1, "fall", 0.5) for start in (2, 6, 10)), (14, 15, "fall", 0.4))
    truth = {"a.mp4": [interval(2, 3), interval(6, 7), interval(14, 15)]}
    assert choose_rules([made], truth).scores.num_missed == 0
    strict = choose_rules([made], truth, most_false_alarms_per_hour=1.0)
    assert strict.scores.num_false == 0
    loose = choose_rules([made], truth, most_false_alarms_per_hour=400.0)
    assert (loose.scores.num_false, loose.scores.num_missed) == (1, 0)


def test_thresholds_need_events_and_labels() -> None:
    made = predictions((2, 4, "fall", 0.9))
    for given, truth, named in (
        ([], {}, "0 intervals"),
        ([made], {"a.mp4": []}, "0 intervals"),
        ([made], {}, "a.mp4"),
        ([made], {"a.mp4": [interval(1, 2, "jump")]}, "jump"),
    ):
        with pytest.raises(ConfigError, match=named):
            choose_rules(given, truth)


def test_hours_are_of_all_video() -> None:
    assert watched_hours([predictions(length=1800), predictions(length=900), predictions(length=0)]) == 0.75


def test_false_alarms_go_to_the_class_that_can_use_them() -> None:
    # An hour in which one false alarm brings five falls, and none of the runs needs any.
    falls = [(100.0 * k, 100.0 * k + 1, "fall", 0.4) for k in range(1, 6)]
    runs = [(100.0 * k + 50, 100.0 * k + 51, "run", 0.9) for k in range(1, 6)]
    made = predictions(*falls, *runs, (3000, 3001, "fall", 0.5), (3100, 3101, "run", 0.3), length=3600)
    truth = {"a.mp4": [interval(first, last, label) for first, last, label, _ in (*falls, *runs)]}
    found = choose_rules([made], truth, most_false_alarms_per_hour=1.0)
    assert (found.scores.num_false, found.scores.num_missed) == (1, 0)
    strict = choose_rules([made], truth, most_false_alarms_per_hour=0.9)
    assert strict.scores.num_false == 0 < strict.scores.num_missed


def test_thresholds_for_what_is_told_soon() -> None:
    # Its score rises slowly: a low threshold tells of it at once, and costs a false alarm where there is none to spend.
    rising = [(2.0 + 0.1 * k, 2.1 + 0.1 * k, "fall", 0.3 + 0.06 * k) for k in range(10)]
    made = predictions(*rising, (8, 9, "run", 0.9), (500, 501, "fall", 0.45), length=3600)
    truth = {"a.mp4": [interval(2, 3), interval(8, 9, "run")]}
    late = choose_rules([made], truth, most_false_alarms_per_hour=1.0)
    soon = choose_rules([made], truth, most_false_alarms_per_hour=1.0, told_within_seconds=0.1)
    assert soon.scores.told_within(0.1) == 1.0 > late.scores.told_within(0.1)
    assert late.scores.num_missed == soon.scores.num_missed == 0
