from dataclasses import dataclass

from kinescan.errors import ConfigError
from kinescan.fields import check_types


@dataclass(frozen=True, kw_only=True)
class FrameTiming:
    """How far apart in time the frames of the training clips were; saved with every trained model.

    Streams and long files are sampled to `median_seconds`. Clips of segments vary in rate with the length of their
    videos: then the three differ.

    Attributes:
        median_seconds: from frame to frame, over all clips that were sampled.
        shortest_seconds: of the clip whose frames were closest.
        longest_seconds: of the clip whose frames were farthest apart.

    Example:
        >>> FrameTiming(median_seconds=0.16, shortest_seconds=0.16, longest_seconds=0.16).is_steady
        True
    """

    median_seconds: float
    shortest_seconds: float
    longest_seconds: float

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.shortest_seconds <= self.median_seconds <= self.longest_seconds:
            raise ConfigError(
                "median_seconds, shortest_seconds and longest_seconds must be positive and in order, got "
                f"{self.median_seconds}, {self.shortest_seconds} and {self.longest_seconds}."
            )

    @property
    def is_steady(self) -> bool:
        """Whether all clips had about the same rate, within a tenth."""
        return self.longest_seconds <= 1.1 * self.shortest_seconds
