"""Frames of a video source, read by a thread of its own: what waits for the model, and what is dropped."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from kinescan.inference.turns import Turn
from kinescan.runtime.quantities import percent

logger = logging.getLogger(__name__)

WhenBehind = Literal["wait", "newest"]
"""What becomes of frames that come faster than the model takes them: they wait, and the video source is held; or the
newest one is taken."""

LATEST_SECONDS = 0.75
"""A frame that would be answered later than this after it came gives way to the newest one."""
LOOK_SECONDS = 0.2
"""Who waits for frames looks so often whether something else is to be done."""
_MOST_WAITING = 4
"""Frames that wait where none is dropped; more are read when there is room."""
_COSTS = 5
"""Of so many answers, the slowest says how long the next one may take."""
_OFFSET_SECONDS = 10.0
"""In so long, some frame comes without delay."""
_TOLD_EVERY_SECONDS = 60.0


@dataclass(frozen=True)
class Fed:
    """A frame that was taken.

    Attributes:
        turn: the frame.
        due: when it would have come without delay, by `time.monotonic`.
        num_dropped: frames dropped so far.
    """

    turn: Turn
    due: float
    num_dropped: int

    @property
    def behind_seconds(self) -> float:
        """Since it would have come without delay."""
        return max(0.0, time.monotonic() - self.due)


class Feed:
    """Frames of one video source in their turns, read by a thread of its own.

    Where nothing is dropped ("wait"), a few frames wait and the video source is read no further. Else ("newest"), by
    this rule: a frame whose answer would come more than 0.75 s after the frame, by the slowest of the last five
    answers, gives way to the newest one, with all between them. They are counted; turns in between are not made up for.

    When a frame came is known by its own time: of the last 10 s, that frame which came soonest by the system clock came
    without delay, and the others are measured by it. So frames that wait in a network's buffers are late, too.

    Args:
        turns: makes the iterator that the thread reads. It is closed by the thread.
        name: of the video source, for the log.
        when_behind: see above.
        changed: notified whenever there is something to take; several feeds can share one.

    Attributes:
        num_taken: frames so far.
        num_dropped: frames so far.
    """

    def __init__(
        self,
        turns: Callable[[], Iterator[Turn]],
        *,
        name: str,
        when_behind: WhenBehind = "wait",
        changed: threading.Condition | None = None,
    ) -> None:
        self._turns, self._name, self._drops = turns, name, when_behind == "newest"
        self._changed = changed or threading.Condition()
        self._waiting: deque[tuple[Turn, float]] = deque()
        self._arrivals = Arrivals()
        self._is_closed = False
        self._has_ended = False
        self._error: BaseException | None = None
        self._costs: deque[float] = deque(maxlen=_COSTS)
        self._taken_at: float | None = None
        self._cut_dropped = False
        self._told = 0, -_TOLD_EVERY_SECONDS
        self.num_taken = 0
        self.num_dropped = 0
        self._thread = threading.Thread(target=self._read, name=f"frames of {name}", daemon=True)
        self._thread.start()

    def take(self) -> Fed | None:
        """The next frame if one waits; never waits itself.

        Raises:
            Exception: what reading the video source raised, once nothing waits any more.
        """
        with self._changed:
            now = time.monotonic()
            if self._taken_at is not None:
                self._count_cost(now)
            if not self._waiting:
                if self._error is not None:
                    error, self._error = self._error, None
                    raise error
                return None
            self._drop_late(now)
            turn, due = self._waiting.popleft()
            if self._cut_dropped:
                turn, self._cut_dropped = turn._replace(is_cut=True), False
            self.num_taken += 1
            self._taken_at = time.monotonic()
            self._changed.notify_all()
            self._tell_of_drops(now)
            return Fed(turn, due, self.num_dropped)

    def answered(self) -> None:
        """The frame that was taken is done with."""
        if self._taken_at is not None:
            self._count_cost(time.monotonic())

    @property
    def is_waiting(self) -> bool:
        """Whether `take` gives a frame or raises."""
        return bool(self._waiting) or self._error is not None

    @property
    def has_ended(self) -> bool:
        """Whether nothing comes any more."""
        return self._has_ended and not self.is_waiting

    def frames(self) -> Iterator[Fed]:
        """All frames, each waited for."""
        while True:
            with self._changed:
                while not (self.is_waiting or self._has_ended):
                    self._changed.wait()
                if self.has_ended:
                    return
            fed = self.take()
            assert fed is not None, "only this thread takes"
            yield fed

    def frames_or_silence(self) -> Iterator[Fed | None]:
        """All frames, each waited for; None whenever nothing has come for `LOOK_SECONDS`."""
        while not self.has_ended:
            with self._changed:
                if not (self.is_waiting or self._has_ended):
                    self._changed.wait(LOOK_SECONDS)
            yield self.take()

    def close(self) -> None:
        """Ends the thread, soon; says what was dropped."""
        with self._changed:
            was_closed, self._is_closed = self._is_closed, True
            self._waiting.clear()
            self._changed.notify_all()
        if self.num_dropped and not was_closed:
            total = self.num_taken + self.num_dropped
            logger.warning(
                "%s: %d of %d frames (%s) were dropped to stay with the video source",
                *(self._name, self.num_dropped, total, percent(self.num_dropped / total)),
            )

    def _read(self) -> None:
        error: BaseException | None = None
        turns = self._turns()
        try:
            for turn in turns:
                if not self._put(turn):
                    break
        except BaseException as problem:
            # raised where frames are taken
            error = problem
        finally:
            close = getattr(turns, "close", None)
            if close is not None:
                close()
            with self._changed:
                self._error, self._has_ended = error, True
                self._changed.notify_all()

    def _put(self, turn: Turn) -> bool:
        with self._changed:
            while not self._drops and len(self._waiting) >= _MOST_WAITING and not self._is_closed:
                self._changed.wait()
            now = time.monotonic()
            due = now if turn.seconds is None else self._arrivals.due(turn.seconds, now)
            self._waiting.append((turn, due))
            # memory must not grow while an answer takes long
            self._drop_late(now)
            self._changed.notify_all()
            return not self._is_closed

    def _count_cost(self, now: float) -> None:
        assert self._taken_at is not None, "a frame was taken"
        self._costs.append(now - self._taken_at)
        self._taken_at = None

    def _drop_late(self, now: float) -> None:
        if not self._drops or len(self._waiting) < 2:
            return
        if now - self._waiting[0][1] + max(self._costs, default=0.0) <= LATEST_SECONDS:
            return
        while len(self._waiting) > 1:
            turn, _ = self._waiting.popleft()
            self._cut_dropped |= turn.is_cut
            self.num_dropped += 1

    def _tell_of_drops(self, now: float) -> None:
        told, at = self._told
        if self.num_dropped == told or now - at < _TOLD_EVERY_SECONDS:
            return
        self._told = self.num_dropped, now
        logger.warning(
            "%s: frames come faster than they are used: %d dropped so far, of %d",
            *(self._name, self.num_dropped, self.num_dropped + self.num_taken),
        )


class Arrivals:
    """When frames would have come without delay, by the soonest of the last seconds."""

    def __init__(self) -> None:
        # ascending offsets, each the smallest from its time on
        self._offsets: deque[tuple[float, float]] = deque()

    def due(self, seconds: float, now: float) -> float:
        """When a frame would have come without delay, by the system clock.

        Args:
            seconds: the frame's time.
            now: when it came, by the system clock.
        """
        offset = now - seconds
        while self._offsets and self._offsets[-1][1] >= offset:
            self._offsets.pop()
        self._offsets.append((now, offset))
        while now - self._offsets[0][0] > _OFFSET_SECONDS:
            self._offsets.popleft()
        return seconds + self._offsets[0][1]
