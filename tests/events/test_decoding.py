"""Frames of whole videos, decided with what comes before and after them."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from kinescan.errors import ConfigError
from kinescan.events import DecodingRules, FramePredictions, decode_events, decode_frames

LABELS = ("background", "fall", "walk")
Floats = NDArray[np.float64]


def predictions(
    scores: NDArray[np.float64], seconds: NDArray[np.float64], classes: tuple[str, ...]
) -> FramePredictions:
    end = float(seconds[-1]) + 0.1 if len(seconds) else 0.0
    return FramePredictions(
        video_id="a", seconds=seconds, scores=scores.astype(np.float32), classes=classes, end_seconds=end
    )


def by_enumeration(scores: Floats, seconds: Floats, rules: DecodingRules) -> Floats:
    """[T, K]: the probability of every sequence of states, summed by the state of each frame."""
    num_frames, num_states = scores.shape
    distances = np.diff(seconds)
    usual = float(np.median(distances))
    weights = [min(1.0, d / rules.correlation_seconds) for d in (usual, *distances)]
    found = np.zeros_like(scores)
    for states in itertools.product(range(num_states), repeat=num_frames):
        probability = 1.0
        for frame, state in enumerate(states):
            probability *= scores[frame, state] ** weights[frame]
            if frame:
                change = 1 - math.exp(-distances[frame - 1] / rules.mean_seconds)
                stays = state == states[frame - 1]
                probability *= 1 - change if stays else change / (num_states - 1)
        found[np.arange(num_frames), list(states)] += probability
    return found / found.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("mean", "correlation"), [(0.5, 0.2), (3.0, 0.05), (10.0, 1.0)])
def test_probabilities_are_those_of_all_sequences_of_classes(mean: float, correlation: float) -> None:
    draws = np.random.default_rng(0)
    scores = draws.dirichlet(np.ones(3), size=6)
    seconds = np.cumsum(draws.uniform(0.05, 0.4, size=6))
    rules = DecodingRules(mean_seconds=mean, correlation_seconds=correlation)
    found = decode_frames(predictions(scores, seconds, LABELS), rules).scores
    np.testing.assert_allclose(found, by_enumeration(scores, seconds, rules), atol=1e-6)


def test_classes_that_may_overlap_are_decided_one_by_one() -> None:
    draws = np.random.default_rng(1)
    scores = draws.uniform(0.05, 0.95, size=(7, 2))
    seconds = np.arange(7) / 5
    rules = DecodingRules(mean_seconds=1.0, correlation_seconds=0.3)
    found = decode_frames(predictions(scores, seconds, ("fall", "walk")), rules).scores
    for column in range(2):
        both = np.stack([1 - scores[:, column], scores[:, column]], axis=1)
        np.testing.assert_allclose(found[:, column], by_enumeration(both, seconds, rules)[:, 1], atol=1e-6)


def test_more_frames_of_the_same_scene_say_the_same() -> None:
    draws = np.random.default_rng(2)
    scores = np.repeat(draws.dirichlet(np.ones(3), size=8), 10, axis=0)
    seconds = np.arange(80) / 50
    dense = decode_frames(predictions(scores, seconds, LABELS))
    sparse = decode_frames(predictions(scores[::5], seconds[::5], LABELS))
    np.testing.assert_allclose(dense.scores[::5], sparse.scores, atol=0.12)
    assert (dense.scores[::5].argmax(axis=1) == sparse.scores.argmax(axis=1)).mean() > 0.9


def test_a_frame_that_is_sure_and_wrong_changes_no_class() -> None:
    scores = np.tile([0.1, 0.8, 0.1], (40, 1))
    scores[20] = [0.0, 0.0, 1.0]
    events = decode_events(predictions(scores, np.arange(40) / 10, LABELS))
    assert [(one.event.label, one.event.start_seconds, one.event.end_seconds) for one in events] == [("fall", 0.0, 4.0)]


def test_flicker_becomes_one_event_and_background_none() -> None:
    draws = np.random.default_rng(3)
    truth = np.repeat([0, 1, 2, 0], 20)
    scores = np.full((80, 3), 0.2)
    shown = np.where(draws.random(80) < 0.3, draws.integers(0, 3, 80), truth)  # three of ten frames say anything
    scores[np.arange(80), shown] = 0.6
    events = [one.event for one in decode_events(predictions(scores, np.arange(80) / 10, LABELS))]
    assert [one.label for one in events] == ["fall", "walk"]
    assert abs(events[0].start_seconds - 2.0) <= 0.3
    assert events[0].end_seconds == events[1].start_seconds
    assert all(one.mean_score <= one.peak_score <= 1 for one in events)


def test_ids_are_the_same_in_every_call_and_differ_between_events() -> None:
    scores = np.tile([0.1, 0.8], (30, 1))
    scores[10:20] = [0.9, 0.1]
    answered = predictions(scores, np.arange(30) / 10, ("background", "fall"))
    rules = DecodingRules(mean_seconds=0.5)
    first, second = decode_events(answered, rules), decode_events(answered, rules)
    assert first == second
    assert len({one.event.id for one in first}) == len(first) == 2


@pytest.mark.parametrize("num_frames", [0, 1])
def test_videos_of_no_frame_and_of_one(num_frames: int) -> None:
    answered = predictions(np.tile([0.2, 0.8], (num_frames, 1)), np.arange(num_frames) / 10, ("background", "fall"))
    assert len(decode_frames(answered).scores) == num_frames
    assert len(decode_events(answered)) == num_frames


def test_frames_of_the_same_time_are_finite() -> None:  # a clock that stands still
    found = decode_frames(predictions(np.tile([0.3, 0.7], (5, 1)), np.zeros(5), ("background", "fall")))
    assert np.isfinite(found.scores).all()


@pytest.mark.parametrize(
    "values",
    [
        {"mean_seconds": 0.0},
        {"mean_seconds": -1.0},
        {"mean_seconds": math.nan},
        {"mean_seconds": "2"},
        {"correlation_seconds": -0.1},
        {"correlation_seconds": math.inf},
    ],
)
def test_times_that_make_no_sense_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        DecodingRules(**values)
