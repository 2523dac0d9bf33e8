"""What is right for each frame of a video that is labelled with intervals."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kinescan.data.intervals import Interval
from kinescan.shapes import BACKGROUND

IGNORED = -100
"""Label of a frame that counts nothing, such as one that fills a window up behind the end of the video."""


def frame_truth(
    intervals: Iterable[Interval], seconds: NDArray[np.float64], classes: Sequence[str]
) -> NDArray[np.bool_]:
    """Which classes are true of each frame: those of the intervals [start, end) that hold its time.

    Args:
        intervals: of one video.
        seconds: [T], the time of each frame.
        classes: K names; with "background" first, it is true where no other class is.

    Returns:
        [T, K].

    Raises:
        KeyError: an interval's label is not one of the classes.

    Example:
        >>> fall = Interval(video_id="a", label="fall", start_seconds=1.0, end_seconds=2.0)
        >>> frame_truth([fall], np.array([0.5, 1.0, 2.0]), ["background", "fall"]).tolist()
        [[True, False], [False, True], [True, False]]
    """
    columns = {label: index for index, label in enumerate(classes)}
    truth = np.zeros((len(seconds), len(classes)), dtype=bool)
    for interval in intervals:
        truth[(seconds >= interval.start_seconds) & (seconds < interval.end_seconds), columns[interval.label]] = True
    if classes and classes[0] == BACKGROUND:
        truth[:, 0] = ~truth[:, 1:].any(axis=1)
    return truth


def frame_targets(truth: NDArray[np.bool_], *, overlapping: bool) -> torch.Tensor:
    """What is trained on: [T, K] truth -> [T] int64, the number of each frame's class; overlapping: [T, K] float32."""
    if overlapping:
        return torch.from_numpy(truth.astype(np.float32))
    return torch.from_numpy(truth.argmax(axis=1).astype(np.int64))
