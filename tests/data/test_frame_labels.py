import numpy as np
import pytest
import torch

from kinescan.data.frame_labels import frame_targets, frame_truth
from kinescan.data.intervals import Interval

SECONDS = np.arange(6) / 2


def _interval(label: str, start: float, end: float) -> Interval:
    return Interval(video_id="a", label=label, start_seconds=start, end_seconds=end)


def test_a_frame_has_the_label_of_the_interval_that_holds_its_time() -> None:
    truth = frame_truth(
        [_interval("fall", 0.5, 1.5), _interval("sit", 1.5, 2.0)], SECONDS, ["background", "fall", "sit"]
    )
    assert frame_targets(truth, overlapping=False).tolist() == [0, 1, 1, 2, 0, 0]


def test_overlapping_labels_are_a_number_each() -> None:
    truth = frame_truth([_interval("fall", 0.5, 1.5), _interval("sit", 1.0, 9.0)], SECONDS, ["fall", "sit"])
    targets = frame_targets(truth, overlapping=True)
    assert targets.dtype == torch.float32
    assert targets.tolist() == [[0, 0], [1, 0], [1, 1], [0, 1], [0, 1], [0, 1]]


def test_a_label_that_is_no_class_is_an_error() -> None:
    with pytest.raises(KeyError):
        frame_truth([_interval("jump", 0, 1)], SECONDS, ["background", "fall"])
