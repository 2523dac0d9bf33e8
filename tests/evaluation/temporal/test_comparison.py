import json
from dataclasses import replace

import pytest

from kinescan.errors import ConfigError
from kinescan.evaluation.temporal.comparison import FEWEST_VIDEOS, Answers, compare_answers
from kinescan.evaluation.temporal.proposals import propose_intervals
from kinescan.events.rules import EventRules
from kinescan.runtime.escaping import to_json

from .made_up import interval, predictions

NUM_VIDEOS = 12


def _answers(name: str, *, delay: float = 0.0, missing: int = 0, false: int = 0, videos: int = NUM_VIDEOS) -> Answers:
    """One fall a video; `missing` of the videos have no answer, `false` a wrong one."""
    made, truth = [], {}
    for number in range(videos):
        video = f"{number}.mp4"
        events = [] if number < missing else [(4.0 + delay, 7.0, "fall", 0.9)]
        events += [(12.0, 14.0, "fall", 0.8)] * (number < false)
        made.append(predictions(*events, video=video))
        truth[video] = (interval(4, 7, video=video),)
    return Answers(
        name=name,
        truth=truth,
        detections={one.video_id: tuple(propose_intervals(one)) for one in made},
        predictions=tuple(made),
        rules=EventRules(least_seconds=0),
    )


def test_each_score_is_compared_with_its_own_direction() -> None:
    found = compare_answers(_answers("good"), _answers("late", delay=1.0, false=8), count=200)
    gaps = {gap.score: gap for gap in found.gaps}
    assert gaps["median delay"].difference == pytest.approx(-1.0)
    assert gaps["false alarms per hour"].difference == pytest.approx(-8 / (NUM_VIDEOS * 20 / 3600))
    assert gaps["missed events"].difference == 0
    assert gaps["per-frame mAP"].a == 1.0
    assert not found.is_noise(gaps["median delay"])
    assert found.is_noise(gaps["missed events"])
    verdict = found.verdict()
    for name in ("good is better", "median delay", "false alarms per hour"):
        assert name in verdict
    assert "late is better" not in verdict
    assert json.loads(to_json(found.to_json()))["task"] == "intervals"


@pytest.mark.parametrize(("graces", "missed"), [((2.0, 2.0), 0.0), ((2.0, 1.0), 1.0), ((0.0, 0.0), 1.0)])
def test_alarms_after_the_end_are_right_as_long_as_for_both(graces: tuple[float, float], missed: float) -> None:
    timely, late = _answers("timely"), _answers("late", delay=2.5)
    # told 1.5 s after the end of what is true
    truth = {video: (interval(4, 5, video=video),) for video in late.truth}
    first, second = (
        replace(answers, truth=truth, grace_seconds=grace)
        for answers, grace in zip((timely, late), graces, strict=True)
    )
    gaps = {gap.score: gap for gap in compare_answers(first, second, count=10).gaps}
    assert (gaps["missed events"].a, gaps["missed events"].b) == (0.0, missed)


def test_a_gap_of_one_video_is_noise() -> None:
    found = compare_answers(_answers("a"), _answers("b", missing=1), count=200)
    assert all(found.is_noise(gap) for gap in found.gaps)
    assert "noise" in found.verdict()


def test_equal_answers_have_no_gap_and_few_videos_no_verdict() -> None:
    assert "same" in compare_answers(_answers("a"), _answers("b"), count=10).verdict()
    few = compare_answers(_answers("a", videos=3), _answers("b", videos=3, missing=3), count=50)
    assert all(few.is_noise(gap) for gap in few.gaps)
    assert str(FEWEST_VIDEOS) in few.verdict()


def test_only_common_videos_count() -> None:
    found = compare_answers(_answers("a", videos=8), _answers("b", videos=12, missing=0), count=10)
    assert (found.num_videos, found.num_only_a, found.num_only_b) == (8, 0, 4)
    assert "8 videos" in found.to_markdown()


def test_detections_alone_are_compared_by_map() -> None:
    a = _answers("a")
    bare = Answers(name="bare", truth=a.truth, detections=a.detections)
    assert {gap.score for gap in compare_answers(a, bare, count=10).gaps} == {"mAP, tIoU 0.3:0.1:0.7", "mAP, tIoU 0.5"}


def test_what_cannot_be_compared_is_refused() -> None:
    a = _answers("a")
    with pytest.raises(ConfigError, match=r"0\.mp4"):
        compare_answers(a, Answers(name="b", truth={"z": ()}, detections={}), count=10)
    other = Answers(name="b", truth={"0.mp4": (interval(4, 8, video="0.mp4"),)}, detections={})
    with pytest.raises(ConfigError, match=r"0\.mp4"):
        compare_answers(a, other, count=10)
    with pytest.raises(ConfigError, match="count"):
        compare_answers(a, a, count=0)
