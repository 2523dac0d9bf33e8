import math

import numpy as np
import pytest

from kinescan.errors import ConfigError
from kinescan.evaluation.temporal.scores import score_frames
from kinescan.events.predictions import FramePredictions
from kinescan.events.rules import EventRules

from .made_up import interval, predictions

RULES = EventRules(on=0.5, least_seconds=0.2, merge_seconds=0.3)


def test_all_numbers_of_a_case_worked_by_hand() -> None:
    """Two videos of 20 s: of three events one is told 0.2 s late, one missed, one told on time; one alarm is false."""
    made = [
        predictions((2, 4, "fall", 0.9), (10, 12, "run", 0.8)),
        predictions((5, 6, "run", 0.7), video="b.mp4"),
    ]
    truth = {"a.mp4": [interval(2, 4), interval(15, 16)], "b.mp4": [interval(5, 6, "run", "b.mp4")]}
    found = score_frames(made, truth, RULES)
    assert found.alarms.num_true == 3
    assert found.alarms.missed == (interval(15, 16),)
    assert [(alarm.label, alarm.seconds) for alarm in found.alarms.false] == [("run", pytest.approx(10.2))]
    assert found.alarms.false_alarms_per_hour == pytest.approx(90.0)
    assert found.alarms.delay_seconds(0.5) == pytest.approx(0.2)
    assert found.alarms_of["run"].num_missed == 0
    assert found.segmentation is not None
    assert found.segmentation.accuracy == pytest.approx(100 * (400 - 20 - 10) / 400)
    assert found.segmentation.f1[0.5] == pytest.approx(100 * 4 / 6)
    assert found.largest_fraction == pytest.approx(0.9)
    assert found.frame_fractions == {"fall": 30 / 400, "run": 10 / 400}
    assert found.chance_map == pytest.approx(0.05)
    assert found.frames.average_precision["fall"] == pytest.approx(20 / 30 + 10 / 30 * 30 / 400)
    assert [video.video_id for video in found.videos] == ["a.mp4", "b.mp4"]
    assert [video.num_mistakes for video in found.videos] == [2, 0]
    assert found.num_short == 0
    assert found.lost == ()


def test_the_curve_goes_through_the_chosen_point_and_trades_missed_for_false() -> None:
    made = predictions((2, 4, "fall", 0.9), (6, 8, "fall", 0.4), (10, 12, "fall", 0.3), (14, 15, "fall", 0.2))
    found = score_frames([made], {"a.mp4": [interval(2, 4), interval(6, 8), interval(14, 15)]}, RULES)
    [chosen] = [point for point in found.curve if point.shift == 0]
    assert chosen.alarms == found.alarms
    missed = [point.alarms.num_missed for point in found.curve]
    assert missed == sorted(missed, reverse=True)
    assert missed[0] == 3
    assert missed[-1] == 0
    assert found.curve[-1].alarms.num_false == 1


def test_an_event_that_is_told_when_it_is_over_counts_with_a_grace() -> None:
    made, truth = [predictions((2.5, 3.2, "fall", 0.9))], {"a.mp4": [interval(2, 2.6)]}
    late = score_frames(made, truth, RULES)
    assert (late.alarms.num_missed, late.alarms.num_false) == (1, 1)
    found = score_frames(made, truth, RULES, grace_seconds=0.5)
    for alarms in (found.alarms, found.alarms_of["fall"], found.videos[0].alarms):
        assert (alarms.num_missed, alarms.num_false) == (0, 0)
        assert alarms.delays_seconds == pytest.approx([0.7])
    assert all(point.alarms.num_missed == 0 for point in found.curve if point.shift == 0)
    assert found.grace_seconds == 0.5


def test_classes_by_chance_are_named() -> None:
    draw = np.random.default_rng(0)
    seconds = np.arange(4000) / 10
    scores = draw.random((4000, 3)).astype(np.float32)
    scores[(seconds >= 100) & (seconds < 150), 1] += 1
    made = FramePredictions(
        video_id="a.mp4", seconds=seconds, scores=scores / 2, classes=("background", "fall", "run"), end_seconds=400.0
    )
    truth = {"a.mp4": [interval(100, 150), interval(200, 280, "run")]}
    assert score_frames([made], truth, RULES).lost == ("run",)


def test_overlapping_truth_has_no_segments() -> None:
    found = score_frames([predictions()], {"a.mp4": [interval(2, 4), interval(3, 5, "run")]}, RULES)
    assert found.segmentation is None
    assert "overlap" in found.no_segmentation
    assert found.videos[0].frame_accuracy is None
    assert math.isnan(found.largest_fraction)


def test_classes_that_may_overlap() -> None:
    both = predictions((2, 4, "fall", 0.9), (3, 5, "run", 0.9))
    made = FramePredictions(
        video_id="a.mp4", seconds=both.seconds, scores=both.scores[:, 1:], classes=("fall", "run"), end_seconds=20.0
    )
    found = score_frames([made], {"a.mp4": [interval(2, 4), interval(3, 5, "run")]}, RULES)
    assert found.frames.mean == 1.0
    assert found.alarms.num_missed == found.alarms.num_false == 0
    assert found.segmentation is None
    assert found.classes == ("fall", "run")


def test_a_video_of_background_counts_its_hours_and_alarms() -> None:
    made = [predictions((2, 4, "fall", 0.9)), predictions((2, 4, "run", 0.9), video="b.mp4", length=3580.0)]
    found = score_frames(made, {"a.mp4": [interval(2, 4)], "b.mp4": []}, RULES)
    assert found.alarms.hours == pytest.approx(1.0)
    assert found.alarms.false_alarms_per_hour == pytest.approx(1.0)
    assert found.videos[0].video_id == "b.mp4"


def test_nothing_true_anywhere_is_nan() -> None:
    found = score_frames([predictions()], {"a.mp4": []}, RULES)
    assert math.isnan(found.frames.mean)
    assert math.isnan(found.chance_map)
    assert math.isnan(found.detection["0.3:0.1:0.7"].average_map)
    assert found.alarms.num_false == 0


def test_an_interval_between_two_frames_is_counted() -> None:
    found = score_frames([predictions()], {"a.mp4": [interval(2.01, 2.09), interval(3, 3)]}, RULES)
    assert found.num_short == 2
    assert found.alarms.num_missed == 2


def test_one_frame() -> None:
    one = predictions((0, 1, "fall", 0.9), length=0.1)
    found = score_frames([one], {"a.mp4": [interval(0, 0.1)]}, EventRules(least_seconds=0))
    assert found.frames.mean == 1.0
    assert found.alarms.delays_seconds == (0.0,)


@pytest.mark.parametrize(
    ("truth", "named"),
    [
        ({}, "a.mp4"),
        ({"a.mp4": [interval(1, 2, "jump")]}, "jump"),
        ({"a.mp4": [interval(50, 52)]}, "20 s"),
    ],
)
def test_truth_that_does_not_fit_is_refused(truth: dict[str, list[object]], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        score_frames([predictions()], truth, RULES)  # type: ignore[arg-type]


def test_predictions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="no video"):
        score_frames([], {}, RULES)
    with pytest.raises(ConfigError, match="twice"):
        score_frames([predictions(), predictions()], {"a.mp4": []}, RULES)
    with pytest.raises(ConfigError, match="length"):
        score_frames([predictions(length=0)], {"a.mp4": []}, RULES)
