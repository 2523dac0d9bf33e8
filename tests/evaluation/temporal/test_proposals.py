import numpy as np
import pytest

from kinescan.evaluation.temporal import THUMOS_TIOUS, detection_map
from kinescan.evaluation.temporal.proposals import MOST_PROPOSALS, propose_intervals
from kinescan.events.predictions import FramePredictions

from .made_up import CLASSES, interval, predictions


def test_whole_events_come_before_their_pieces() -> None:
    made = predictions((3, 5, "fall", 0.6), (5, 6, "fall", 0.95), (6, 8, "fall", 0.6), (12, 14, "run", 0.3))
    found = propose_intervals(made)
    assert [(one.label, one.start_seconds, one.end_seconds) for one in found[:1]] == [("fall", 3.0, 8.0)]
    scores = detection_map([interval(3, 8), interval(12, 14, "run")], found, tious=THUMOS_TIOUS)
    assert scores.mean == pytest.approx((1.0,) * 5)


def test_an_event_at_the_end_reaches_the_end_of_the_video() -> None:
    [found] = [one for one in propose_intervals(predictions((18, 20, "fall", 0.9), length=20.0)) if one.score > 0.5]
    assert found.end_seconds == 20.0


@pytest.mark.parametrize("num_frames", [0, 1, 3000])
def test_odd_lengths(num_frames: int) -> None:
    scores = np.random.default_rng(0).random((num_frames, 3)).astype(np.float32)
    found = propose_intervals(
        FramePredictions(
            video_id="a",
            seconds=np.arange(num_frames) / 10,
            scores=scores,
            classes=CLASSES,
            end_seconds=num_frames / 10,
        )
    )
    assert len(found) <= MOST_PROPOSALS
    assert all(one.end_seconds > one.start_seconds and one.label != "background" for one in found)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_frames_of_one_time_make_no_empty_interval() -> None:
    scores = np.array([[0.1, 0.9, 0.0]] * 3, dtype=np.float32)
    still = FramePredictions(video_id="a", seconds=np.zeros(3), scores=scores, classes=CLASSES, end_seconds=0.0)
    assert propose_intervals(still) == []
