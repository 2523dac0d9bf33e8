"""Several video sources in one process, through one model."""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kinescan.data.video import Outage, Reconnect, ReconnectingVideo, is_live
from kinescan.errors import ConfigError, KinescanError, VideoError
from kinescan.events.rules import EventRules
from kinescan.events.sinks import Sink
from kinescan.inference.event_stream import EventStream, Watch, watched_frames
from kinescan.inference.feed import LOOK_SECONDS, Fed, Feed, WhenBehind
from kinescan.inference.model_source import ModelSource, resolve_model
from kinescan.inference.stream import StreamPrediction, StreamSession, checked_behind, left_time_of, session_from
from kinescan.inference.stream_average import AverageKind
from kinescan.inference.stream_batch import StreamBatch
from kinescan.inference.stream_state import save_stream_state
from kinescan.inference.turns import FrameSource, Turn, frames_of, from_first, turns_of
from kinescan.runtime.urls import mask_url

logger = logging.getLogger(__name__)

_STATE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Camera:
    """One of several video sources.

    Attributes:
        name: for records, the log and files; none has another's.
        source: as for `stream`.
        state: file to continue from where it is there, written every minute and at the end; None keeps none.
        rules: thresholds and times of events; None: events are not detected.
        sinks: who is told of events.
        watch: is given every frame with its time by the clock of the events, by the thread that reads; needs `rules`.
        every: feed each `every`-th frame by count; None takes frames by their times.
        when_behind: as for `stream`.
        reconnect: waits after a break; the limit counts only while no camera is there (see `stream_many`).
    """

    name: str
    source: FrameSource
    state: str | Path | None = None
    rules: EventRules | None = None
    sinks: Sequence[Sink] = field(default_factory=tuple)
    watch: Watch | None = None
    every: int | None = None
    when_behind: WhenBehind = "wait"
    reconnect: Reconnect = field(default_factory=Reconnect)


def stream_many(
    model: ModelSource,
    cameras: Sequence[Camera],
    *,
    top: int = 5,
    device: str | torch.device | None = None,
    allow_code: bool = False,
    average: AverageKind | None = None,
    average_seconds: float | None = None,
) -> Generator[StreamPrediction, None, None]:
    """A prediction after each frame of each camera, as the frames come; events are told to the cameras' sinks.

    Each camera is read by a thread of its own and has a state of its own. As soon as the model is free, it takes one
    frame of every camera that has one waiting, all in one pass, and waits for no other: so a camera that is slow or
    away holds up none, and batches grow with what has come while the model ran.

    A camera that cannot be opened, or breaks off, is tried again with back-off, as long as any camera is there; when
    none has been for its `reconnect.limit_seconds`, all are given up. One that fails for good (a file that cannot be
    read, a prediction that is not finite) ends, and the others continue.

    Args:
        model: as for `stream`; one for all.
        cameras: the video sources.
        top: how many classes a prediction names.
        device: where to compute.
        allow_code: see `StreamSession`.
        average: see `StreamSession`.
        average_seconds: see `StreamSession`.

    Returns:
        An iterator; the predictions' `camera` says whose they are. Closing it ends all streams. However it ends, the
        state of every camera is written.

    Raises:
        ConfigError: no camera was given, two have the same name or file of state; or as for `stream`.
        CheckpointError: as for `stream`.
        VideoError: none of the cameras can be opened at the start (while iterating); at the end, of the first camera
            that ended with an error.

    Example:
        >>> from kinescan.models.zoo import create_model
        >>> model = create_model("pks4_vit_ti16", labels=["left", "right"], causal=True)
        >>> frames = [(torch.zeros(3, 48, 64, dtype=torch.uint8), t / 10) for t in range(3)]
        >>> cameras = [Camera(name="door", source=frames), Camera(name="yard", source=frames[:2])]
        >>> sorted((found.camera, found.frame_index) for found in stream_many(model, cameras))
        [('door', 0), ('door', 1), ('door', 2), ('yard', 0), ('yard', 1)]
    """
    check_cameras(cameras)
    resolved = resolve_model(model, device, allow_code=allow_code)
    group = _Group(len(cameras))
    members: list[_Member] = []
    try:
        for camera in cameras:
            session = session_from(resolved, camera.state, top=top, average=average, average_seconds=average_seconds)
            members.append(_Member(camera, session, group))
    except BaseException:
        for member in members:
            member.abandon()
        raise
    first = members[0].session
    return _streamed(StreamBatch(first.model, skip_unchanged=first.skip_unchanged), members, group)


def _streamed(batch: StreamBatch, members: list["_Member"], group: "_Group") -> Generator[StreamPrediction, None, None]:
    try:
        if any(member.is_live for member in members):
            members[0].session.warm_up()
        for member in members:
            member.start()
        while group.wait(members):
            for member in members:
                member.look()
            ready = [(member, fed) for member in members if (fed := member.take()) is not None]
            if not ready:
                continue
            answers = batch.push([member.session for member, _ in ready], [fed.turn for _, fed in ready])
            found = [member.answer(fed, answer) for (member, fed), answer in zip(ready, answers, strict=True)]
            yield from (prediction for prediction in found if prediction is not None)
        for member in members:
            member.finish()
        error = next((member.error for member in members if member.error is not None), None)
    finally:
        _close(members)
    if error is not None:
        raise error


def _close(members: Sequence["_Member"]) -> None:
    """Writes every state, also where one cannot be written.

    Raises:
        CheckpointError: of the first that cannot be written.
    """
    errors: list[KinescanError] = []
    for member in members:
        member.stop()
    for member in members:
        try:
            member.close()
        except KinescanError as error:
            logger.warning("%s: %s", member.name, error)
            errors.append(error)
    if errors:
        raise errors[0]


class _Group:
    """Which cameras are there, seen from all threads."""

    def __init__(self, num_cameras: int) -> None:
        self.changed = threading.Condition()
        self._num_cameras = num_cameras
        # of cameras that are away: how long beyond their limit, and why
        self._away: dict[str, tuple[float, Outage]] = {}
        self._ended: set[str] = set()
        self.never_there: dict[str, str] = {}
        self._was_one_there = False

    def gives_up(self, name: str, limit_seconds: float, outage: Outage) -> bool:
        """Whether all cameras are away, each for longer than its limit; asked by each of them."""
        with self.changed:
            since = time.monotonic() - outage.seconds
            self._away[name] = since + limit_seconds, outage
            if not outage.was_there:
                self.never_there[name] = outage.reason
                self.changed.notify_all()
            now = time.monotonic()
            return len(self._away.keys() | self._ended) == self._num_cameras and all(
                until <= now for until, _ in self._away.values()
            )

    def is_there(self, name: str) -> None:
        """A frame came."""
        with self.changed:
            self._was_one_there = True
            self._away.pop(name, None)
            self.never_there.pop(name, None)

    def has_ended(self, name: str) -> None:
        """Nothing comes any more."""
        with self.changed:
            self._ended.add(name)
            self._away.pop(name, None)

    def wait(self, members: Sequence["_Member"]) -> bool:
        """Until a frame waits, or for `LOOK_SECONDS`; False where all have ended.

        Raises:
            VideoError: none could be opened.
        """
        with self.changed:
            while True:
                if any(member.is_waiting for member in members):
                    return True
                if all(member.has_ended for member in members):
                    return False
                failed = {**self.never_there, **{one.name: one.reason for one in members if one.error is not None}}
                if not self._was_one_there and len(failed) == self._num_cameras:
                    # In the order of the cameras, whichever failed first.
                    names = [member.name for member in members if member.name in failed]
                    listed = "; ".join(f"{name}: {failed[name].rstrip('.')}" for name in names)
                    raise VideoError("cameras", f"none of {len(failed)} can be opened. {listed}.")
                if not self.changed.wait(LOOK_SECONDS):
                    return True


class _Member:
    """A camera with its thread, session and events."""

    def __init__(self, camera: Camera, session: StreamSession, group: _Group) -> None:
        self.name, self.session = camera.name, session
        source = camera.source
        self.is_live = isinstance(source, str | Path) and is_live(source)
        self.error: KinescanError | None = None
        self.has_ended = False
        self._camera, self._group = camera, group
        self._stop = threading.Event()
        self._feed: Feed | None = None
        self._path = None if camera.state is None else Path(camera.state)
        self._begun, self._saved = session.state, time.monotonic()
        self._left_time = left_time_of(session, camera.source)
        self._events: EventStream | None = None
        if camera.rules is not None:
            self._events = EventStream(
                session,
                camera.rules,
                camera.sinks,
                source=str(source) if isinstance(source, str | Path) else "frames",
                is_live=self.is_live,
                path=self._path,
                name=camera.name,
            )

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to take."""
        return self._feed is not None and not self.has_ended and (self._feed.is_waiting or self._feed.has_ended)

    @property
    def reason(self) -> str:
        """Why it failed."""
        return self.error.reason if isinstance(self.error, VideoError) else str(self.error)

    def start(self) -> None:
        """Starts to read."""
        when_behind = checked_behind(self._camera.when_behind, self._camera.source)
        self._feed = Feed(self._turns, name=self.name, when_behind=when_behind, changed=self._group.changed)

    def take(self) -> Fed | None:
        """A frame, if one waits."""
        assert self._feed is not None, "started"
        if self.has_ended:
            return None
        try:
            fed = self._feed.take()
        except KinescanError as error:
            self._fail(error)
            return None
        if fed is None and self._feed.has_ended:
            self._end()
        return fed

    def answer(self, fed: Fed, answer: StreamPrediction | KinescanError) -> StreamPrediction | None:
        """Tells what the model said; None where it failed."""
        assert self._feed is not None, "started"
        if isinstance(answer, KinescanError):
            self._fail(answer)
            return None
        prediction = replace(
            answer, camera=self.name, behind_seconds=fed.behind_seconds, num_dropped=self._feed.num_dropped
        )
        if self._events is not None:
            self._events.push(prediction)
        else:
            self._save_in_turn()
        self._feed.answered()
        return prediction

    def look(self) -> None:
        """Ends events that are open where the video source has been away for too long."""
        if self._events is not None and not self.has_ended and not self.is_waiting:
            self._events.look()

    def finish(self) -> None:
        """Ends events that are open where the video source has ended in order."""
        if self._events is not None and self.error is None:
            self._events.finish()

    def stop(self) -> None:
        """Ends the thread, soon."""
        self._stop.set()
        if self._feed is not None:
            self._feed.close()

    def close(self) -> None:
        """Writes the state.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self._events is not None:
            if self._path is None:
                self._events.finish()
            self._events.close()
        elif self._path is not None and self.session.state is not self._begun:
            self._save()
            logger.info("%s: the state after %d frames: %s", self.name, self.session.state.frames_seen, self._path)

    def abandon(self) -> None:
        """Closes what is open before anything was read."""
        if self._events is not None:
            self._events.close()

    def _turns(self) -> Iterator[Turn]:
        after = None if self._events is None else self._events.resume_seconds
        model, every, frames = self.session.model, self._camera.every, self._frames()
        if self._camera.watch is not None and self._events is not None:
            frames = watched_frames(frames, self._camera.watch, self._events)
        turns = turns_of(model, frames, every, self.name, after_seconds=after, left_time=self._left_time)
        for turn in turns:
            self._group.is_there(self.name)
            yield turn

    def _frames(self) -> Iterable[Tensor | tuple[Tensor, float]]:
        source = self._camera.source
        if not isinstance(source, str | Path) or not is_live(source):
            return frames_of(source, self.session.model, False)
        limit = self._camera.reconnect.limit_seconds
        video = ReconnectingVideo(
            source,
            reconnect=self._camera.reconnect,
            square_pixels=self.session.model.preprocessing.square_pixels,
            name=f"{self.name} ({mask_url(source)})",
            stop=self._stop,
            gives_up=lambda outage: not limit or self._group.gives_up(self.name, limit, outage),
            on_outage=None if self._events is None else partial(setattr, self._events, "is_away"),
        )
        return from_first(video)

    def _save_in_turn(self) -> None:
        if self._path is None or time.monotonic() - self._saved < _STATE_SECONDS:
            return
        self._saved = time.monotonic()
        try:
            self._save()
        except KinescanError as error:
            logger.warning("%s: %s The stream continues.", self.name, error)

    def _save(self) -> None:
        assert self._path is not None, "saved only where there is a file"
        session = self.session
        save_stream_state(session.state, self._path, model=session.model, left_time=session.last_time)

    def _fail(self, error: KinescanError) -> None:
        self.error = error
        if self._events is not None and self._path is None:
            self._events.finish()  # with a state, a restart ends them
        logger.error("%s: ends with an error: %s", self.name, error)
        self._end()

    def _end(self) -> None:
        self.has_ended = True
        self._stop.set()
        assert self._feed is not None, "started"
        self._feed.close()
        self._group.has_ended(self.name)


def check_cameras(cameras: Sequence[Camera]) -> None:
    """Passes cameras of which no two are alike.

    Raises:
        ConfigError: two have the same name, source or file of state, or there is none.
    """
    if not cameras:
        raise ConfigError("no cameras were given. Give at least one.")
    for what, of in _SINGLE.items():
        seen: dict[str, str] = {}
        for camera in cameras:
            value = of(camera)
            if value is not None and value in seen:
                raise ConfigError(
                    f"cameras {seen[value]!r} and {camera.name!r} have the same {what} {mask_url(value)!r}. Give each "
                    "its own."
                )
            if value is not None:
                seen[value] = camera.name


_SINGLE: dict[str, Callable[[Camera], str | None]] = {
    # names become files, which some systems do not tell apart by case
    "name": lambda camera: camera.name.casefold(),
    "source": lambda camera: str(camera.source) if isinstance(camera.source, str | Path) else None,
    "state": lambda camera: None if camera.state is None else str(Path(camera.state).absolute()),
}
