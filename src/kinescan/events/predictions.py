from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kinescan.errors import ShapeError
from kinescan.shapes import BACKGROUND


@dataclass(frozen=True, kw_only=True, eq=False)
class FramePredictions:
    """What a model says of every frame of one video.

    Attributes:
        video_id: which video.
        seconds: [T] float64, not decreasing: the time stamp of each frame that the model was given. The answer for
            frame t holds until the next one.
        scores: [T, K] float32, probabilities: softmax over the classes with "background" as class 0, or sigmoid for
            classes that may overlap.
        classes: K names, in the order of the scores.
        end_seconds: when the video ends, by the same clock.

    Raises:
        ShapeError: the sizes do not fit each other, or a time or a score is not finite.
    """

    video_id: str
    seconds: NDArray[np.float64]
    scores: NDArray[np.float32]
    classes: tuple[str, ...]
    end_seconds: float

    def __post_init__(self) -> None:
        wanted = (len(self.seconds), len(self.classes))
        if self.seconds.ndim != 1 or self.scores.shape != wanted:
            raise ShapeError(
                f"{self.video_id}: scores must be [frames, classes] = {list(wanted)} for {self.seconds.shape} times "
                f"and {len(self.classes)} classes, got {list(self.scores.shape)}."
            )
        if not (np.isfinite(self.seconds).all() and np.isfinite(self.scores).all()):
            raise ShapeError(f"{self.video_id}: a time or a score is NaN or infinite. Check the model and the video.")
        if (np.diff(self.seconds) < 0).any():
            raise ShapeError(f"{self.video_id}: times run backwards. Give frames in the order of time.")

    @property
    def has_background(self) -> bool:
        """Whether class 0 means that nothing happens."""
        return self.classes[:1] == (BACKGROUND,)


def runs_of(marked: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First frames of the runs of marked ones, [n], and the frames behind their last ones, [n].

    Example:
        >>> first, behind = runs_of(np.array([True, False, True, True]))
        >>> first.tolist(), behind.tolist()
        ([0, 2], [1, 4])
    """
    steps = np.diff(np.concatenate([[0], marked.astype(np.int8), [0]]))
    return np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
