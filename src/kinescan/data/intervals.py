"""Labels with a start and an end."""

import math
from dataclasses import dataclass

from kinescan.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Interval:
    """What happens in a video, from when to when: [start, end) in seconds of the video's own clock.

    Attributes:
        video_id: which video.
        label: what happens.
        start_seconds: when it begins.
        end_seconds: when it has ended.

    Raises:
        ConfigError: a time is NaN or infinite.
    """

    video_id: str
    label: str
    start_seconds: float
    end_seconds: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start_seconds) and math.isfinite(self.end_seconds)):
            raise ConfigError(
                f"{self.video_id}: an interval of {self.label!r} runs from {self.start_seconds} to {self.end_seconds}. "
                "Give both times as numbers of seconds."
            )
