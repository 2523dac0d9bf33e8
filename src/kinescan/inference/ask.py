import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinescan.data.video import Reconnect
from kinescan.errors import ConfigError, KinescanError
from kinescan.inference.ask_checks import check_arguments, check_question, check_together, require_vlm
from kinescan.inference.ask_session import Asked, Session
from kinescan.inference.ask_settings import AskSettings
from kinescan.inference.frame_source import Group, Live, Recorded, open_watched
from kinescan.vlm import POLICIES, StreamStats, VideoStream, Vlm, load_stream, open_stream
from kinescan.vlm.generation import answer_limit
from kinescan.vlm.store import Storage

logger = logging.getLogger(__name__)

MOST_SAVING = 20
"""Watching takes at least so many times as long as saving in between."""

Progressed = Callable[[int, int | None, StreamStats], None]
"""Called with how many frames were pushed, how many there are (None: unknown), and what the stream holds."""


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """What it took to push the video.

    Attributes:
        policy: name of what chooses the compressed state; see `POLICIES`.
        seconds: in the decoder, the vision encoder aside.
        stats: what the stream holds and has computed.
    """

    policy: str
    seconds: float
    stats: StreamStats


@dataclass(frozen=True, kw_only=True)
class AskReport:
    """Answers about one video.

    Attributes:
        video: name of the file or live source; empty where a saved stream was asked alone.
        num_frames: frames that were pushed.
        vision_seconds: decoding and the vision encoder, and waiting for frames of a live source.
        prefill: of the compressed stream.
        full_prefill: of full attention, where compared.
        asked: one for each question.
        budget_reached: whether more tokens came than a frame may see; where not, frames saw all that full attention's
            see.
        other_limits: names of settings, besides the budget, that let an answer differ from full attention's: a memory
            limit that was reached, retrieved chunks, int8 storage. Where the budget was not reached either, the stream
            was full attention itself.
    """

    video: str
    num_frames: int
    vision_seconds: float
    prefill: Prefill
    full_prefill: Prefill | None
    asked: list[Asked]
    budget_reached: bool = True
    other_limits: tuple[str, ...] = ()


def ask(
    video: str | Path | None,
    questions: Sequence[str],
    *,
    vlm: Vlm,
    budget: int | None = 4096,
    fps: float = 1.0,
    policy: str | None = None,
    compare: str | None = None,
    storage: Storage | None = None,
    max_new_tokens: int | None = None,
    allow_short: bool = False,
    horizon_frames: int | None = None,
    on_progress: Progressed | None = None,
    on_text: Callable[[str, str], None] | None = None,
    memory: str | None = None,
    settings: AskSettings | None = None,
    session: Session | None = None,
    reconnect: Reconnect | None = None,
) -> AskReport:
    """Answers about a video file or a live source, which is decoded as it goes.

    A live source (see `ReconnectingVideo`) is watched until it ends, is away for too long, or Ctrl-C or SIGTERM comes;
    then the questions are asked.

    Args:
        video: the file, "-" for standard input, a URL, or a named pipe; None where a saved stream is asked alone.
        questions: each asked for itself: no answer sees another.
        vlm: the model.
        budget: keys of the compressed state in each layer and key head.
        fps: frames per second that are shown to the model.
        policy: what chooses the compressed state; StateKV by default.
        compare: "full" answers with full attention too.
        storage: of the full KV cache; "memory" by default.
        max_new_tokens: answers are cut there; by default as the model's `generation_config` says, or at 256.
        allow_short: answer about what can be decoded of a cut or damaged file (see VideoReader).
        horizon_frames: frames that the video source will not exceed, for models that have to know (see `open_stream`);
            of a file, its own number by default.
        on_progress: called as frames enter.
        on_text: called with (question, part of the text) as the answer comes.
        memory: what the full KV cache takes at most (see `open_stream`, memory_budget).
        settings: further ones; policy, storage, max_new_tokens and horizon_frames given here go before theirs.
        session: saving, loading, and questions while watching.
        reconnect: how a live source is opened again after a break.

    Raises:
        VideoError: the file cannot be read, or is cut or damaged (CutVideoError) and allow_short is off; or the live
            source gave no frame.
        ConfigError: a setting is wrong, contradicts another one, or would do nothing; or no question was given.
        CheckpointError: a saved stream cannot be read or written.
    """
    called = {"on_progress": on_progress, "on_text": on_text}
    check_arguments(video, allow_short, called, vlm=vlm, settings=settings, session=session, reconnect=reconnect)
    session = session or Session()
    check_question(questions, fps, compare, session)
    check_together(video, session, allow_short=allow_short, reconnect=reconnect)
    require_vlm(vlm)
    asked_for: dict[str, Any] = {"policy": policy, "storage": storage}
    asked_for |= {"max_new_tokens": max_new_tokens, "horizon_frames": horizon_frames}
    given = {name: value for name, value in asked_for.items() if value is not None}
    settings = replace(settings or AskSettings(), **given)
    # said before hours of watching, not at the first question
    settings.generation.of_model(getattr(vlm.model, "generation_config", None))
    answer_limit(settings.max_new_tokens, vlm.model)
    # however it ends, the streams are closed: the model stays as it was
    with ExitStack() as opened:
        saved = None
        if session.load is not None:
            saved = opened.enter_context(load_stream(session.load, vlm.model, vlm.tokenizer))
            settings.require_those_of(session.load, saved.config, saved.family.pixels, memory_budget=memory)
            fps = saved.config.fps
        watched: Recorded | Live | None = None
        if video is not None:
            watched = opened.enter_context(open_watched(video, fps, allow_short=allow_short, reconnect=reconnect))
        options = {} if saved else settings.of_stream(budget=budget, fps=fps, memory=memory)
        stream, full = _opened(opened, vlm, settings, options, saved=saved, watched=watched, compare=compare)
        asking = _Asking(stream, full, settings, session, on_text)
        return _report(asking, watched, questions, on_progress)


def _opened(
    opened: ExitStack,
    vlm: Vlm,
    settings: AskSettings,
    options: dict[str, Any],
    *,
    saved: VideoStream | None,
    watched: Recorded | Live | None,
    compare: str | None,
) -> tuple[VideoStream, VideoStream | None]:
    """The compressed stream, which is the saved one where there is one, and full attention's to compare with."""
    if watched is not None and watched.num_frames:
        options = options | _horizon_of(watched, settings.horizon_frames)
    shown: dict[str, Any] = {"pixels": settings.pixels_of(vlm), "system": settings.system}
    stream = saved
    if stream is None:
        stream = opened.enter_context(open_stream(vlm.model, vlm.tokenizer, **options, **shown))
    if not compare:
        return stream, None
    options = options | {"policy": "none", "memory_budget": None, "retrieved_chunks": None}
    if options.get("storage") == "int8":
        # rounded keys and values are none to compare with
        options = options | {"storage": "offload"}
    return stream, opened.enter_context(open_stream(vlm.model, vlm.tokenizer, **options, **shown))


def _horizon_of(watched: Recorded | Live, declared: int | None) -> dict[str, Any]:
    """What a stream is told of the length of a file."""
    num_frames = watched.num_frames or 0
    if declared is None:
        # a saved stream may be continued by other videos
        return {"horizon_frames": num_frames, "horizon_is_limit": False}
    if declared < num_frames:
        raise ConfigError(
            f"{num_frames} frames of {watched.name} will be shown, and horizon_frames is {declared}. Give "
            f"{num_frames} or more, or leave it out."
        )
    return {"horizon_frames": declared}


def _report(
    asking: "_Asking", watched: Recorded | Live | None, questions: Sequence[str], on_progress: Progressed | None
) -> AskReport:
    """Watches what there is, asks, and says what it took; sizes are those before the first question."""
    stream, full = asking.stream, asking.full
    clocks = {"vision": 0.0, "prefill": 0.0, "full": 0.0}
    if watched is not None:
        _watch(watched, asking, clocks, on_progress)
    stats, full_stats = stream.stats, full.stats if full else None
    for question in questions or ():
        asking.ask(question)
    asking.ask_incoming()
    return AskReport(
        video="" if watched is None else watched.name,
        num_frames=stats.num_frames,
        vision_seconds=clocks["vision"],
        prefill=Prefill(policy=asking.policy, seconds=clocks["prefill"], stats=stats),
        full_prefill=None if full_stats is None else Prefill(policy="none", seconds=clocks["full"], stats=full_stats),
        asked=asking.asked,
        budget_reached=stream.cache.budget is not None and stats.num_seen_tokens > stream.cache.budget,
        other_limits=_other_limits(stream, stats),
    )


def _other_limits(stream: VideoStream, stats: StreamStats) -> tuple[str, ...]:
    """See `AskReport`."""
    reached = {
        "memory": stats.num_tokens < stats.num_seen_tokens,
        "retrieved_chunks": stream.config.retrieved_chunks is not None,
        "storage": stream.config.storage == "int8",
    }
    return tuple(name for name, is_reached in reached.items() if is_reached)


class _Asking:
    """The answers of one session."""

    def __init__(
        self,
        stream: VideoStream,
        full: VideoStream | None,
        settings: AskSettings,
        session: Session,
        on_text: Callable[[str, str], None] | None,
    ) -> None:
        self.stream, self.full, self.session = stream, full, session
        self.asked: list[Asked] = []
        self._settings, self._on_text = settings, on_text
        self._start_seconds = stream.seen_seconds if stream.stats.num_frames else None
        self._next_seconds: float | None = None

    @property
    def policy(self) -> str:
        """The name of what chooses the compressed state, which of a saved stream is not that of the settings."""
        kind = type(self.stream.policy)
        return next((name for name, known in POLICIES.items() if known is kind), kind.__name__)

    def follow(self) -> None:
        """After frames: what is asked while watching. An answer that fails is reported, and watching continues."""
        waiting = [] if self.session.incoming is None else self.session.incoming.ready()
        seen = self.stream.seen_seconds
        if self.session.watch is not None:
            if self._next_seconds is None:
                self._next_seconds = seen + self.session.every_seconds
            if seen >= self._next_seconds:
                waiting.insert(0, self.session.watch)
                every = self.session.every_seconds
                self._next_seconds += every * (1 + int((seen - self._next_seconds) / every))
        for question in waiting:
            self._ask_or_say(question)

    def ask_incoming(self) -> None:
        """What comes after watching, until no more will come; and once more what was watched for."""
        if self.session.watch is not None and self.stream.stats.num_frames:
            self._ask_or_say(self.session.watch)
        while self.session.incoming is not None and (question := self.session.incoming.next()) is not None:
            self._ask_or_say(question)

    def shifted(self, seconds: list[float]) -> list[float]:
        """Times of a video that continues a saved stream: its first frame follows the newest one."""
        if self._start_seconds is None:
            return seconds
        return [time + self._start_seconds + 1 / self.stream.config.fps for time in seconds]

    def ask(self, question: str) -> None:
        """One question; its answer is kept and told."""
        self.asked.append(_ask_one(question, self.stream, self.full, self._settings, self._on_text))
        if self.session.on_answer is not None:
            self.session.on_answer(self.asked[-1])

    def _ask_or_say(self, question: str) -> None:
        try:
            self.ask(question)
        # A device that is out of memory, a decoder that fails: what was watched can still be asked about.
        except Exception as error:
            kind = "" if isinstance(error, KinescanError) else f"{type(error).__name__}: "
            logger.warning("no answer to %r: %s%s", question, kind, error)


def _watch(watched: Recorded | Live, asking: _Asking, clocks: dict[str, float], on_progress: Progressed | None) -> None:
    """Pushes all that comes. Of a live source, what came before an error, whatever it is, is kept."""
    stream, full, save = asking.stream, asking.full, asking.session.save
    before, saving = stream.stats.num_frames, _Saving(stream, asking.session)
    try:
        for group in _timed(watched.groups(stream), clocks, "vision"):
            group = replace(group, seconds=asking.shifted(group.seconds))
            # what is asked while watching is asked at its time, not behind a whole group
            for part in group.singly() if asking.session.asks_while_watching else [group]:
                _push(stream, part, clocks, "prefill")
                if full is not None:
                    _push(full, part, clocks, "full")
                if on_progress is not None:
                    on_progress(stream.stats.num_frames - before, watched.num_frames, stream.stats)
                asking.follow()
                saving.follow()
    except Exception as error:
        if not isinstance(watched, Live) or stream.stats.num_frames == before:
            raise
        watched.ended_by(error)
    finally:
        if save is not None and stream.stats.num_frames:
            stream.save(save)


class _Saving:
    """Writes a stream again and again while it is watched; a failed write is logged, and watching continues."""

    def __init__(self, stream: VideoStream, session: Session) -> None:
        self._stream, self._path, self._every = stream, session.save, session.save_every_seconds
        self._next = time.monotonic() + self._every

    def follow(self) -> None:
        """After frames."""
        started = time.monotonic()
        if self._path is None or started < self._next:
            return
        try:
            self._stream.save(self._path)
        except KinescanError as error:
            logger.warning("what was watched is not saved yet: %s", error)
        ended = time.monotonic()
        self._next = ended + max(self._every, MOST_SAVING * (ended - started))


def _timed(groups: Iterator[Group], clocks: dict[str, float], name: str) -> Iterator[Group]:
    while True:
        before = time.perf_counter()
        group = next(groups, None)
        clocks[name] += time.perf_counter() - before
        if group is None:
            return
        yield group


def _push(stream: VideoStream, group: Group, clocks: dict[str, float], name: str) -> None:
    before = time.perf_counter()
    stream.push(group.frames, seconds=group.seconds)
    if stream.cache.shape.device.type == "cuda":
        torch.cuda.synchronize()
    clocks[name] += time.perf_counter() - before


def _ask_one(
    question: str,
    stream: VideoStream,
    full: VideoStream | None,
    settings: AskSettings,
    on_text: Callable[[str, str], None] | None,
) -> Asked:
    answer, seconds, logits = _answer(stream, question, settings, on_text)
    asked = Asked(question=question, answer=answer, seconds=seconds, seen_seconds=stream.seen_seconds)
    if full is None:
        return asked
    full_answer, full_seconds, full_logits = _answer(full, question, settings, None)
    return replace(
        asked,
        full_answer=full_answer,
        full_seconds=full_seconds,
        logit_difference=float((logits - full_logits).abs().max()),
    )


def _answer(
    stream: VideoStream, question: str, settings: AskSettings, on_text: Callable[[str, str], None] | None
) -> tuple[str, float, Tensor]:
    before = time.perf_counter()
    tokens = []
    limit = settings.max_new_tokens
    for token in stream.ask_stepwise(question, max_new_tokens=limit, generation=settings.generation):
        tokens.append(token)
        if on_text is not None:
            on_text(question, token.text)
    return "".join(token.text for token in tokens), time.perf_counter() - before, tokens[0].logits
