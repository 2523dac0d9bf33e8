"""Sends records of events to sinks, and never blocks the stream."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from kinescan.errors import KinescanError
from kinescan.events.sinks import Sink
from kinescan.events.told import Told
from kinescan.runtime.escaping import to_json
from kinescan.runtime.urls import mask_urls

logger = logging.getLogger(__name__)

MOST_WAITING = 1000
"""Records that wait in memory for one sink; of more, the oldest are dropped and counted."""
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.2, 5.0
_MOST_LOGGED = 100

Save = Callable[[Any, Sequence[Told]], None]
"""Writes a snapshot of the stream with the records that a sink may not have yet."""


class Lane:
    """One sink, the records that wait for it, and the thread that gives them to it one by one.

    Args:
        sink: who is told.

    Attributes:
        num_lost: records that were dropped because too many waited.
        broken: why nothing can be told any more, where that is so.
    """

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.num_lost = 0
        self.broken: BrokenPipeError | None = None
        self._waiting: deque[Told] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._is_stopped = False
        self._done = 0
        self._thread = threading.Thread(target=self._run, name=f"events to {sink.name}", daemon=True)
        self._thread.start()

    @property
    def done(self) -> int:
        """Sequence number of the last record that the sink has; 0 before the first."""
        with self._changed:
            return self._done

    def put(self, told: Sequence[Told]) -> None:
        """Adds records; never waits."""
        with self._changed:
            self._waiting.extend(told)
            num_over = len(self._waiting) - MOST_WAITING
            # the first one is on its way
            for _ in range(num_over):
                del self._waiting[1]
            if num_over > 0:
                if not self.num_lost:
                    logger.warning(
                        "%s: %d records wait for it, and no more are kept: the oldest are dropped and counted",
                        *(self.sink.name, MOST_WAITING),
                    )
                self.num_lost += num_over
            self._changed.notify_all()

    def close(self, patience_seconds: float) -> None:
        """Waits for what is to be told, until so long nothing was taken; says what was left."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        left, deadline = -1, 0.0
        while self._thread.is_alive():
            if left != len(self._waiting):
                left, deadline = len(self._waiting), time.monotonic() + patience_seconds
            if time.monotonic() > deadline:
                break
            self._thread.join(0.02)
        # a sink that hangs was waited for already
        self.sink.close(0.0 if self._thread.is_alive() else patience_seconds)
        with self._changed:
            self._is_stopped = True
            num_left = len(self._waiting)
            self._changed.notify_all()
        if num_left and self.broken is None:
            logger.warning("%s: %d records of events could not be told before the end", self.sink.name, num_left)
        if self.num_lost:
            logger.warning(
                "%s: %d records of events were dropped, since it was too slow", self.sink.name, self.num_lost
            )

    def log_left(self) -> None:
        """Writes the records that were not told to the log, one a line, up to a hundred."""
        if self.broken is not None:
            return
        for told in list(self._waiting)[:_MOST_LOGGED]:
            logger.warning("%s: was not told: %s", self.sink.name, to_json(told.to_plain()))

    def _run(self) -> None:
        """The thread: gives the sink one record after the other until the end."""
        while (told := self._next()) is not None:
            try:
                if not self._deliver(told):
                    return
            except BrokenPipeError as error:
                self.broken = error
                return
            with self._changed:
                self._waiting.popleft()
                self._done = max(self._done, told.sequence)

    def _next(self) -> Told | None:
        """Waits for the next record; None at the end. It stays in the queue until it is told."""
        with self._changed:
            while not self._waiting and not self._is_closing:
                self._changed.wait()
            return self._waiting[0] if self._waiting and not self._is_stopped else None

    def _deliver(self, told: Told) -> bool:
        """Tries until it is done; False where the end came first."""
        wait, num_failures = _FIRST_WAIT_SECONDS, 0
        while True:
            try:
                self.sink.deliver(told)
            except BrokenPipeError:
                raise
            except (OSError, KinescanError) as error:
                num_failures += 1
                if num_failures == 1:
                    reason = mask_urls(str(getattr(error, "strerror", None) or error))
                    logger.warning(
                        "%s: cannot be told of events (%s). It is tried again; the stream continues.",
                        *(self.sink.name, reason),
                    )
                with self._changed:
                    self._changed.wait_for(lambda: self._is_stopped, timeout=wait)
                    if self._is_stopped:
                        return False
                wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
                continue
            if num_failures:
                logger.warning("%s: is told of events again, after %d failures", self.sink.name, num_failures)
            return True


class Teller:
    """Saves the stream and tells every sink, in that order, in threads of its own: `tell` never waits.

    Where `save` is given, a record is told only after a snapshot was saved from which the stream continues behind it:
    after a kill the same event has the same id. The snapshot holds the records that a sink may not have yet; after a
    restart these are given as `pending`, and each sink gets those that lie behind its position. So nothing is lost
    between the two, and sinks that know their position get nothing twice.

    Args:
        sinks: who is told.
        save: writes a snapshot; None saves nothing.
        pending: records of an earlier run that may not have reached every sink.
    """

    def __init__(self, sinks: Sequence[Sink], *, save: Save | None = None, pending: Sequence[Told] = ()) -> None:
        self._lanes = [Lane(sink) for sink in sinks]
        self._save = save
        self._kept: deque[Told] = deque(pending)
        self._queue: list[Told] = []
        self._snapshot: Any = None
        self._num_failed_saves = 0
        # the last snapshot is saved by another thread, which a slow disk may have it meet
        self._saving = threading.Lock()
        self._changed = threading.Condition()
        self._is_closing = False
        for lane in self._lanes:
            positions = {stream: lane.sink.position(stream) for stream in {told.stream_id for told in pending}}
            lane.put([told for told in pending if told.sequence > positions[told.stream_id]])
        self._thread: threading.Thread | None = None
        if save is not None:
            self._thread = threading.Thread(target=self._run, name="state of the events", daemon=True)
            self._thread.start()

    def tell(self, told: Sequence[Told], snapshot: Any = None) -> None:
        """Saves the snapshot and tells the sinks, soon.

        Args:
            told: new records.
            snapshot: what `save` takes, of the moment behind them; None where none is needed.

        Raises:
            BrokenPipeError: nobody listens to standard output any more.
        """
        for lane in self._lanes:
            if lane.broken is not None:
                raise lane.broken
        if self._save is None:
            for lane in self._lanes:
                lane.put(told)
            return
        with self._changed:
            self._queue.extend(told)
            self._snapshot = snapshot if snapshot is not None else self._snapshot
            self._changed.notify_all()

    def close(self, snapshot: Any = None, *, patience_seconds: float = 5.0) -> None:
        """Tells what is left and saves the last snapshot with what still is.

        Args:
            snapshot: of the end.
            patience_seconds: how long to wait for a sink that takes nothing.

        Raises:
            CheckpointError: the last snapshot cannot be written.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(patience_seconds)
        # saved before slow sinks are waited for: a user may end the program meanwhile
        saved = None if snapshot is None or self._save is None else self._saved(snapshot)
        for lane in self._lanes:
            lane.close(patience_seconds)
        try:
            if self._save is not None and snapshot is not None and saved != [told.key for told in self._left()]:
                saved = None
                with self._saving:
                    self._save(snapshot, self._left())
                saved = []
        finally:
            if saved is None:
                # no state tells them after a restart: the log is all that keeps them
                for lane in self._lanes:
                    lane.log_left()

    def _saved(self, snapshot: Any) -> list[str] | None:
        """Saves the last snapshot; gives the records in it, or None where it cannot be written."""
        left = self._left()
        try:
            if self._save is not None:
                with self._saving:
                    self._save(snapshot, left)
        except (KinescanError, OSError):
            return None
        return [told.key for told in left]

    def _run(self) -> None:
        """The thread: saves, then tells, again and again until the end."""
        while True:
            with self._changed:
                while not (self._queue or self._snapshot is not None or self._is_closing):
                    self._changed.wait()
                told, snapshot = self._queue, self._snapshot
                self._queue, self._snapshot = [], None
                if not told and snapshot is None:
                    return
            self._kept.extend(told)
            if snapshot is not None:
                self._save_now(snapshot)
            for lane in self._lanes:
                lane.put(told)

    def _left(self) -> list[Told]:
        """Records that a sink may not have; those that every sink has are no longer kept."""
        done = min((lane.done for lane in self._lanes), default=None)
        while self._kept and (done is None or self._kept[0].sequence <= done or len(self._kept) > MOST_WAITING):
            self._kept.popleft()
        return list(self._kept)

    def _save_now(self, snapshot: Any) -> None:
        """Saves a snapshot while the stream runs; where that fails, the stream continues and a warning is logged."""
        assert self._save is not None, "the thread runs only where there is something to save with"
        try:
            with self._saving:
                self._save(snapshot, self._left())
        except (KinescanError, OSError) as error:
            # sinks are told all the same: an alarm matters more than that its id stays after a kill
            self._num_failed_saves += 1
            if self._num_failed_saves == 1:
                logger.warning(
                    "%s The stream and its events continue; after a kill an event may be told again, with another id.",
                    error,
                )
            return
        if self._num_failed_saves:
            logger.warning("the stream's state is written again, after %d failures", self._num_failed_saves)
            self._num_failed_saves = 0
