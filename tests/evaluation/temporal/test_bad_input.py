import math

import numpy as np
import pytest

from kinescan.errors import ConfigError, NonFiniteError, ShapeError
from kinescan.evaluation.temporal import (
    Detection,
    Interval,
    detection_map,
    frame_map,
    segmentation_scores,
    start_map,
)


@pytest.mark.parametrize("times", [(math.nan, 1.0), (0.0, math.inf)])
def test_times_are_numbers(times: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="clip7"):
        Interval(video_id="clip7", label="fall", start_seconds=times[0], end_seconds=times[1])


def test_scores_are_numbers() -> None:
    with pytest.raises(ConfigError, match="clip7"):
        Detection(video_id="clip7", label="fall", start_seconds=0, end_seconds=1, score=math.nan)
    with pytest.raises(NonFiniteError, match="1 frames"):
        frame_map([[1, 0], [0, 1]], [[0.1, np.nan], [0.2, 0.8]], labels=["a", "b"])


@pytest.mark.parametrize("tious", [(), (0.0,), (1.1,), (math.nan,)])
def test_thresholds_are_ratios(tious: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="tious"):
        detection_map([], [], tious=tious)


def test_labels_that_are_never_true_are_named() -> None:
    truth = [Interval(video_id="a", label="fall", start_seconds=0, end_seconds=1)]
    found = [Detection(video_id="a", label="wave", start_seconds=0, end_seconds=1, score=1)]
    scores = detection_map(truth, found)
    assert scores.ignored_labels == ("wave",)
    assert scores.average_map == 0


def test_frames_have_one_column_a_label() -> None:
    with pytest.raises(ShapeError, match=r"\[N, 3\]"):
        frame_map([[1, 0]], [[0.1, 0.2]], labels=["a", "b", "c"])
    with pytest.raises(ConfigError, match="background='none'"):
        frame_map([[1, 0]], [[0.1, 0.2]], labels=["a", "b"], background="none")
    with pytest.raises(ConfigError, match="differ"):
        frame_map([[1, 0]], [[0.1, 0.2]], labels=["a", "a"])


def test_segmentation_needs_every_video_and_every_frame() -> None:
    with pytest.raises(ConfigError, match="'b'"):
        segmentation_scores({"a": ["x"], "b": ["x"]}, {"a": ["x"]})
    with pytest.raises(ConfigError, match=r"2.*predicted.*1 frames"):
        segmentation_scores({"a": ["x"]}, {"a": ["x", "x"]})


def test_starts_are_checked() -> None:
    with pytest.raises(ConfigError, match="depth"):
        start_map([], [], labels=["a"], depth=0)
    with pytest.raises(ConfigError, match="tolerances_seconds"):
        start_map([], [], labels=["a"], tolerances_seconds=(-1,))
