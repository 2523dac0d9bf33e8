import numpy as np
import pytest

from kinescan.errors import ShapeError
from kinescan.events.predictions import FramePredictions


def _predictions(seconds: list[float], scores: list[list[float]]) -> FramePredictions:
    return FramePredictions(
        video_id="a",
        seconds=np.array(seconds),
        scores=np.array(scores, dtype=np.float32),
        classes=("background", "fall"),
        end_seconds=1.0,
    )


def test_knows_its_background() -> None:
    assert _predictions([0.0, 0.5], [[0.9, 0.1], [0.2, 0.8]]).has_background


@pytest.mark.parametrize(
    ("seconds", "scores", "named"),
    [
        ([0.0], [[0.9, 0.1], [0.2, 0.8]], "frames, classes"),
        ([0.0, float("nan")], [[0.9, 0.1], [0.2, 0.8]], "NaN"),
        ([0.0, 0.5], [[0.9, float("inf")], [0.2, 0.8]], "infinite"),
        ([0.5, 0.0], [[0.9, 0.1], [0.2, 0.8]], "backwards"),
    ],
)
def test_refuses_what_does_not_fit(seconds: list[float], scores: list[list[float]], named: str) -> None:
    with pytest.raises(ShapeError, match=named):
        _predictions(seconds, scores)
