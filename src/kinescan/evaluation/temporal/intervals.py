import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kinescan.data.intervals import Interval
from kinescan.errors import ConfigError

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Detection(Interval):
    """An interval that a model answers with.

    Attributes:
        score: how sure the model is; only the order of scores matters.

    Raises:
        ConfigError: a time or the score is NaN, or a time is infinite.
    """

    score: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if math.isnan(self.score):
            raise ConfigError(f"{self.video_id}: a detection of {self.label!r} has the score NaN. Check the model.")


def temporal_iou(start: float, end: float, starts: Floats, ends: Floats) -> Floats:
    """Intersection over union of one interval with each of n others, [n] in [0, 1]; 0 where both have no length.

    Nothing is clipped, sorted or rounded.

    Example:
        >>> temporal_iou(0.0, 10.0, np.array([5.0, 20.0]), np.array([10.0, 30.0])).tolist()
        [0.5, 0.0]
    """
    overlap = np.clip(np.minimum(end, ends) - np.maximum(start, starts), 0.0, None)
    union = (ends - starts) + (end - start) - overlap
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = np.where(union > 0, overlap / union, 0.0)
    return ratio
