import numpy as np
import pytest

from kinescan.errors import ConfigError
from kinescan.evaluation.temporal.truth import (
    frame_labels,
    overlap,
    refuse_outside,
    refuse_unknown_labels,
)

from .made_up import interval

SECONDS = np.array([0.0, 0.5, 0.5, 1.3, 2.0])


@pytest.mark.parametrize(("start", "end"), [(0.6, 1.2), (1.3, 1.3), (5, 6), (-3, 0)])
def test_an_interval_between_frames_marks_none(start: float, end: float) -> None:
    assert set(frame_labels([interval(start, end)], SECONDS, background="none")) == {"none"}


def test_the_interval_that_begins_last_names_the_frame() -> None:
    found = frame_labels([interval(0.5, 2.0, "run"), interval(0, 9)], SECONDS, background="none")
    assert found == ["fall", "run", "run", "run", "fall"]


def test_overlap_is_of_other_labels_in_one_video() -> None:
    apart = [interval(0, 1), interval(1, 2, "run"), interval(0, 2, "run", "b.mp4"), interval(0.5, 1.5)]
    assert overlap(apart[:3]) is None
    assert overlap([interval(0, 5), interval(1, 2)]) is None
    assert overlap(apart) == (apart[3], apart[1])
    # The long one reaches past a short one of its label.
    long, short, other = interval(0, 10), interval(1, 2), interval(5, 6, "run")
    assert overlap([short, other, long]) == (long, other)


def test_labels_that_the_model_does_not_know_are_named() -> None:
    with pytest.raises(ConfigError, match=r"'fal'.*'fall'"):
        refuse_unknown_labels([interval(0, 1, "fal")], ["fall", "run"])


@pytest.mark.parametrize(("start", "end"), [(10.0, 11.0), (300, 310), (5, 11.5), (-1, 5)])
def test_intervals_lie_in_their_videos(start: float, end: float) -> None:
    with pytest.raises(ConfigError, match=r"1 intervals.*a\.mp4.*10 s"):
        refuse_outside([interval(0, 3), interval(start, end)], {"a.mp4": 10.0})


def test_an_end_that_is_a_little_late_is_let_pass() -> None:
    refuse_outside([interval(0, 10.9), interval(99, 100, video="unknown")], {"a.mp4": 10.0})
