import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kinescan.errors import ConfigError
from kinescan.inference.frame_source import Group, Live, Recorded, open_watched
from kinescan.vlm import StreamStats, VideoStream, Vlm, open_stream
from kinescan.vlm.config import check_fps
from kinescan.vlm.store import Storage

MAX_NEW_TOKENS = 256


Progressed = Callable[[int, int | None, StreamStats], None]
"""Called with how many frames were pushed, how many there are (None: unknown), and what the stream holds."""


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """What it took to push the video.

    Attributes:
        policy: of the stream.
        seconds: in the decoder, the vision encoder aside.
        stats: what the stream holds and has computed.
    """

    policy: str
    seconds: float
    stats: StreamStats


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question.

    Attributes:
        question: as it was asked.
        answer: of the compressed stream.
        seconds: from the question to the last token.
        full_answer: of full attention, where compared.
        full_seconds: likewise.
        logit_difference: the largest, over the scores of the first token.
    """

    question: str
    answer: str
    seconds: float
    full_answer: str | None = None
    full_seconds: float | None = None
    logit_difference: float | None = None


@dataclass(frozen=True, kw_only=True)
class AskReport:
    """Answers about one video.

    Attributes:
        video: the file.
        num_frames: frames that were pushed.
        vision_seconds: decoding and the vision encoder, and waiting for frames of a live source.
        prefill: of the compressed stream.
        full_prefill: of full attention, where compared.
        asked: one for each question.
    """

    video: str
    num_frames: int
    vision_seconds: float
    prefill: Prefill
    full_prefill: Prefill | None
    asked: list[Asked]


def ask(
    video: str | Path,
    questions: Sequence[str],
    *,
    vlm: Vlm,
    budget: int | None = 4096,
    fps: float = 1.0,
    policy: str = "statekv",
    compare: Literal["full"] | None = None,
    storage: Storage = "memory",
    max_new_tokens: int = MAX_NEW_TOKENS,
    allow_short: bool = False,
    horizon_frames: int | None = None,
    on_progress: Progressed | None = None,
    on_text: Callable[[str, str], None] | None = None,
) -> AskReport:
    """Answers about a video file or a live source, which is decoded as it goes.

    A live source (see `LiveVideo`) is watched until it ends, breaks off, or Ctrl-C or SIGTERM comes; then the questions
    are asked.

    Args:
        video: the file, "-" for standard input, a URL, or a named pipe.
        questions: each asked for itself: no answer sees another.
        vlm: the model.
        budget: keys of the compressed state in each layer and key head.
        fps: frames per second that are shown to the model.
        policy: what chooses the compressed state.
        compare: "full" answers with full attention too.
        storage: of the full KV cache.
        max_new_tokens: answers are cut there.
        allow_short: answer about what can be decoded of a cut or damaged file (see VideoReader).
        horizon_frames: frames that a live source will not exceed, for models that have to know (see `open_stream`); a
            file tells.
        on_progress: called as frames enter.
        on_text: called with (question, part of the text) as the answer comes.

    Raises:
        VideoError: the file cannot be read, or is cut or damaged (CutVideoError) and allow_short is off; or the live
            source gave no frame.
        ConfigError: a setting is wrong, or no question was given.
    """
    check_question(questions, fps, compare)
    clocks = {"vision": 0.0, "prefill": 0.0, "full": 0.0}
    # however it ends, the streams are closed: the model stays as it was
    with ExitStack() as opened:
        watched = opened.enter_context(open_watched(video, fps, allow_short=allow_short))
        stream, full = (
            opened.enter_context(
                open_stream(
                    vlm.model,
                    vlm.tokenizer,
                    budget=budget,
                    policy=chosen,
                    fps=fps,
                    horizon_frames=watched.num_frames or horizon_frames,
                    storage=storage,
                    pixels=vlm.pixels,
                )
            )
            for chosen in (policy, "none")
        )
        _watch(watched, stream, full if compare else None, clocks, on_progress)
        prefill = Prefill(policy=policy, seconds=clocks["prefill"], stats=stream.stats)
        full_prefill = Prefill(policy="none", seconds=clocks["full"], stats=full.stats) if compare else None
        other = full if compare else None
        asked = [_ask_one(question, stream, other, max_new_tokens, on_text) for question in questions]
    return AskReport(
        video=watched.name,
        num_frames=prefill.stats.num_frames,
        vision_seconds=clocks["vision"],
        prefill=prefill,
        full_prefill=full_prefill,
        asked=asked,
    )


def check_question(questions: Sequence[str], fps: float, compare: str | None) -> None:
    """Refuses what `ask` cannot answer, before a model is loaded.

    Raises:
        ConfigError: no question was given, or a setting is out of range.
    """
    if not questions:
        raise ConfigError("no question was given. Give at least one, in quotes.")
    check_fps(fps)
    if compare not in (None, "full"):
        raise ConfigError(f"compare can be 'full', got {compare!r}.")


def _watch(
    watched: Recorded | Live,
    stream: VideoStream,
    full: VideoStream | None,
    clocks: dict[str, float],
    on_progress: Progressed | None,
) -> None:
    """Pushes all that comes. Of a live source, what came before an error, whatever it is, is kept."""
    try:
        for group in _timed(watched.groups(stream), clocks, "vision"):
            _push(stream, group, clocks, "prefill")
            if full is not None:
                _push(full, group, clocks, "full")
            if on_progress is not None:
                on_progress(stream.stats.num_frames, watched.num_frames, stream.stats)
    except Exception as error:
        if not isinstance(watched, Live) or not stream.stats.num_frames:
            raise
        watched.ended_by(error)


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
    max_new_tokens: int,
    on_text: Callable[[str, str], None] | None,
) -> Asked:
    answer, seconds, logits = _answer(stream, question, max_new_tokens, on_text)
    if full is None:
        return Asked(question=question, answer=answer, seconds=seconds)
    full_answer, full_seconds, full_logits = _answer(full, question, max_new_tokens, None)
    return Asked(
        question=question,
        answer=answer,
        seconds=seconds,
        full_answer=full_answer,
        full_seconds=full_seconds,
        logit_difference=float((logits - full_logits).abs().max()),
    )


def _answer(
    stream: VideoStream, question: str, max_new_tokens: int, on_text: Callable[[str, str], None] | None
) -> tuple[str, float, Tensor]:
    before = time.perf_counter()
    tokens = []
    for token in stream.ask_stepwise(question, max_new_tokens=max_new_tokens):
        tokens.append(token)
        if on_text is not None:
            on_text(question, token.text)
    stop_ids = stream.family.stop_ids()
    text = stream.chat.decode([token.token_id for token in tokens if token.token_id not in stop_ids])
    return text, time.perf_counter() - before, tokens[0].logits
