"""Several streams of one model, pushed and asked together: where sizes agree, their steps are one batch."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from kinescan.errors import ConfigError
from kinescan.vlm.answer import Answer
from kinescan.vlm.answering import answer_of
from kinescan.vlm.generation import Generation
from kinescan.vlm.steps import run_steps
from kinescan.vlm.stream import VideoStream


@torch.no_grad()
def push_together(
    streams: Sequence[VideoStream], frames: Sequence[Any], *, seconds: Sequence[Any] | None = None
) -> None:
    """The next frames of several videos, as `VideoStream.push` takes them, one after the other.

    The decoder reads its weights once for all streams whose steps have as many tokens; others follow one by one. What
    the streams hold afterwards is what single pushes give, but for rounding.

    Args:
        streams: open streams of one model, each of them once.
        frames: of each stream; None where there are none now.
        seconds: for each stream, as for `push`; None for all where frames come at `fps`.

    Raises:
        ConfigError: streams are of different models, or one is given twice, or numbers do not agree; and as `push`.
        ShapeError: as `push`.
        NonFiniteError: as `push`. Whatever fails in one stream, all are as they were before.

    Example:
        >>> push_together([door, yard], [door_frame, yard_frame])  # doctest: +SKIP
    """
    times = _as_many(streams, [None] * len(streams) if seconds is None else seconds, "seconds")
    given = _as_many(streams, frames, "frames")
    with _turns(streams):
        takes = [
            [] if part is None else stream._takes(part, time)
            for stream, part, time in zip(streams, given, times, strict=True)
        ]
        with ExitStack() as undone:
            for stream in streams:
                undone.enter_context(stream._all_or_nothing())
            for row in zip_longest(*takes):
                patches = [(stream, take()) for stream, take in zip(streams, row, strict=True) if take is not None]
                begun = [(stream, stream._begin_step(waiting)) for stream, waiting in patches if waiting is not None]
                hidden = run_steps([one.step for _, one in begun])
                for (stream, one), found in zip(begun, hidden, strict=True):
                    stream._end_step(one, found)


@torch.no_grad()
def ask_together(
    streams: Sequence[VideoStream],
    questions: Sequence[str | Sequence[int] | Tensor],
    *,
    max_new_tokens: int | None = None,
    generation: Generation | None = None,
) -> list[Answer]:
    """The answers of several streams, a question each, as `VideoStream.ask` gives them.

    Tokens of an answer come one by one, so that all streams whose answers are not yet whole are one batch.

    Args:
        streams: open streams of one model, each of them once.
        questions: one for each stream.
        max_new_tokens: answers are cut there; see `VideoStream.ask`.
        generation: how tokens are chosen.

    Raises:
        ConfigError: as `push_together` and `VideoStream.ask`.

    Example:
        >>> ask_together([door, yard], ["Is it open?", "Who is there?"])  # doctest: +SKIP
    """
    asked = _as_many(streams, questions, "questions")
    with _turns(streams), ExitStack() as ended:
        answers = []
        for stream, question in zip(streams, asked, strict=True):
            chosen = stream._checked_question(question, max_new_tokens, generation)
            answers.append(stream._begin_answer(question, max_new_tokens, keep=False, generation=chosen))
            ended.callback(stream._end_answer)
        while unfinished := [answer for answer in answers if not answer.is_whole]:
            for answer, hidden in zip(unfinished, run_steps([one.next_step() for one in unfinished]), strict=True):
                answer.take(hidden)
        return [
            answer_of(answer.tokens, stream.family, stream.seen_seconds)
            for stream, answer in zip(streams, answers, strict=True)
        ]


@contextmanager
def _turns(streams: Sequence[VideoStream]) -> Iterator[None]:
    """All streams by themselves; taken in one order by every thread, so that two never wait for each other."""
    _check_streams(streams)
    with ExitStack() as held:
        for stream in sorted(streams, key=id):
            held.enter_context(stream._turn)
        for stream in streams:
            stream._check_usable()
        yield


def _check_streams(streams: Sequence[VideoStream]) -> None:
    if not streams or not all(isinstance(stream, VideoStream) for stream in streams):
        raise ConfigError("give a list of open streams, at least one.")
    if len({id(stream) for stream in streams}) < len(streams):
        raise ConfigError("a stream is given twice. Give each once; several frames of one go into its own list.")
    first = [id(parameter) for parameter in streams[0].family.model.parameters()]
    for index, stream in enumerate(streams):
        if [id(parameter) for parameter in stream.family.model.parameters()] != first:
            raise ConfigError(
                f"streams 0 and {index} run different models ({streams[0].family.name} and {stream.family.name}). Open "
                "them with one model, or push them one by one."
            )


def _as_many(streams: Sequence[VideoStream], given: Any, name: str) -> Sequence[Any]:
    if not isinstance(given, list | tuple) or len(given) != len(streams):
        found = f"{len(given)}" if isinstance(given, list | tuple) else f"a {type(given).__name__}"
        raise ConfigError(f"{name} must be a list of {len(streams)}, one for each stream, got {found}.")
    return given
