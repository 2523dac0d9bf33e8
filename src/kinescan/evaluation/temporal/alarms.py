from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kinescan.data.intervals import Interval
from kinescan.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """That something happens, as it was told: one for each event, at the moment when it was known.

    Attributes:
        video_id: of which video or stream.
        label: what happens.
        seconds: the time stamp of the last frame that was used, not the middle of a window.
    """

    video_id: str
    label: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class AlarmScores:
    """What someone on call wants to know, at one setting of the thresholds.

    Attributes:
        num_true: true intervals.
        num_missed: true intervals that no alarm told of.
        num_false: alarms for which there is no true interval, repeated ones among them.
        hours: of all video that was watched, with and without events.
        delays_seconds: from the onset to the alarm, for each interval that was told; missed ones have none.
        relative_delays: the same as a ratio of the interval's length.
        missed: the intervals that were missed.
        false: the alarms that were false.
    """

    num_true: int
    num_missed: int
    num_false: int
    hours: float
    delays_seconds: tuple[float, ...]
    relative_delays: tuple[float, ...] = ()
    missed: tuple[Interval, ...] = field(default=(), repr=False)
    false: tuple[Alarm, ...] = field(default=(), repr=False)

    @property
    def missed_ratio(self) -> float:
        """Missed over true intervals, in [0, 1]; NaN where there is none. To be given beside every delay."""
        return self.num_missed / self.num_true if self.num_true else float("nan")

    @property
    def false_alarms_per_hour(self) -> float:
        """False alarms in an hour of video; delays compare only at equal rates of false alarms."""
        return self.num_false / self.hours

    def delay_seconds(self, quantile: float = 0.5) -> float:
        """A quantile of the delays of intervals that were told, such as 0.5 or 0.9; NaN where none was."""
        return float(np.quantile(self.delays_seconds, quantile)) if self.delays_seconds else float("nan")

    def told_within(self, seconds: float) -> float:
        """Ratio of all true intervals that were told at most so long after their onset; NaN where there is none."""
        told = sum(delay <= seconds for delay in self.delays_seconds)
        return told / self.num_true if self.num_true else float("nan")


def score_alarms(
    truth: Sequence[Interval], alarms: Sequence[Alarm], *, hours: float, grace_seconds: float = 0.0
) -> AlarmScores:
    """Detection delay, missed events and false alarms per hour.

    An alarm tells of a true interval of its label in its video when start <= seconds < end + grace. Alarms and
    intervals are matched one to one in the order of time: an interval takes its first free alarm, and every alarm that
    is left is false, also one that repeats another.

    Args:
        truth: the true intervals.
        alarms: as they were told.
        hours: of all video that was watched.
        grace_seconds: how long after its end an interval may still be told.

    Raises:
        ConfigError: hours is not positive, or grace_seconds is negative.

    Source: detection delay as in Hoai and De la Torre, MMED (CVPR 2012); one-to-one matching as in NIST ActEV.

    Example:
        >>> truth = [Interval(video_id="a", label="fall", start_seconds=2.0, end_seconds=4.0)]
        >>> told = [Alarm(video_id="a", label="fall", seconds=2.5), Alarm(video_id="a", label="fall", seconds=3.0)]
        >>> scores = score_alarms(truth, told, hours=0.5)
        >>> scores.delay_seconds(), scores.missed_ratio, scores.false_alarms_per_hour
        (0.5, 0.0, 2.0)
    """
    if not hours > 0:
        raise ConfigError(f"hours must be positive, got {hours}. Give the length of all video that was watched.")
    if not grace_seconds >= 0:
        raise ConfigError(f"grace_seconds must be 0 or more, got {grace_seconds}.")
    free: dict[tuple[str, str], list[Alarm]] = {}
    for alarm in sorted(alarms, key=lambda one: one.seconds):
        free.setdefault((alarm.video_id, alarm.label), []).append(alarm)
    missed, delays, relative = [], [], []
    for interval in sorted(truth, key=lambda one: (one.start_seconds, one.end_seconds)):
        end = interval.end_seconds + grace_seconds
        candidates = free.get((interval.video_id, interval.label), [])
        first = next((one for one in candidates if interval.start_seconds <= one.seconds < end), None)
        if first is None:
            missed.append(interval)
            continue
        candidates.remove(first)
        delays.append(first.seconds - interval.start_seconds)
        length = interval.end_seconds - interval.start_seconds
        relative.append(delays[-1] / length if length > 0 else float("nan"))
    false = tuple(alarm for left in free.values() for alarm in left)
    return AlarmScores(
        num_true=len(truth),
        num_missed=len(missed),
        num_false=len(false),
        hours=hours,
        delays_seconds=tuple(delays),
        relative_delays=tuple(relative),
        missed=tuple(missed),
        false=false,
    )
