"""Questions about a video, in the form of OpenAI's chat completions."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinescan.data.video import Limits, VideoReader
from kinescan.data.video.still_picture import decode_picture
from kinescan.inference.frame_source import Recorded, fit
from kinescan.vlm import VideoStream, Vlm, open_stream
from kinescan.vlm.held import held_between
from kinescan.web.media import check_length, video_limits
from kinescan.web.problems import RequestProblem
from kinescan.web.settings import LOWEST_FPS, ServeConfig

MOST_PICTURES = 256
_LONGEST_QUESTION = 32_768


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """What was asked.

    Attributes:
        model: name of the VLM; None for the one there is.
        videos: data URLs, addresses, ids of uploads, or paths below the media folder.
        pictures: frames as data URLs.
        question: the texts of the last message, with the turns before it.
        opening: the system's message, or None.
        max_tokens: of the answer.
        is_streamed: whether tokens are sent as they come.
        fps: frames a second that the model sees; None: the service's.
    """

    model: str | None
    videos: tuple[str, ...]
    pictures: tuple[str, ...]
    question: str
    opening: str | None
    max_tokens: int
    is_streamed: bool
    fps: float | None


@dataclass(frozen=True)
class HeldTokens:
    """What the compressed state holds of one moment.

    Attributes:
        start: seconds, of its first frame.
        end: seconds, of the first frame behind it.
        num_tokens: that it had.
        num_held: that the next frame may still see, a mean over layers and key heads.
    """

    start: float
    end: float
    num_tokens: int
    num_held: float


@dataclass(frozen=True)
class AnswerChunk:
    """A part of an answer.

    Attributes:
        text: what it adds; empty while the video is watched.
        finish: why the answer ended, with its last chunk.
        num_frames: that were watched.
        num_tokens: of the answer so far.
        num_prompt_tokens: of the video and the question.
        held: what is held of the video, once it was watched; empty in all other chunks.
    """

    text: str
    finish: str | None = None
    num_frames: int = 0
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    held: tuple[HeldTokens, ...] = ()


def parse_chat(body: Any, config: ServeConfig) -> ChatRequest:
    """The request that a JSON body makes.

    Raises:
        RequestProblem: it makes none.
    """
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list) or not body["messages"]:
        raise RequestProblem(400, "the body is JSON with a list of messages.", "bad_request")
    limits = config.limits
    asked = body.get("max_completion_tokens", body.get("max_tokens")) or limits.answer_tokens
    if isinstance(asked, bool) or not isinstance(asked, int) or not 0 < asked <= limits.answer_tokens:
        raise RequestProblem(400, f"max_tokens must lie in [1, {limits.answer_tokens}].", "bad_request")
    fps = body.get("fps")
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, int | float) or not LOWEST_FPS <= fps <= 30):
        raise RequestProblem(400, f"fps must lie in [{LOWEST_FPS}, 30].", "bad_request")
    if body.get("n", 1) != 1 or body.get("tools"):
        raise RequestProblem(400, "one answer without tools is given: leave n and tools out.", "not_supported")
    videos: list[str] = []
    pictures: list[str] = []
    turns: list[tuple[str, str]] = []
    opening = None
    for message in body["messages"]:
        role, text = _read_message(message, videos, pictures)
        if role in ("system", "developer"):
            opening = text
        elif text:
            turns.append((role, text))
    if not turns or turns[-1][0] != "user":
        raise RequestProblem(400, "the last message is the user's and holds a text: the question.", "bad_request")
    before = "".join(f"{role}: {text}\n" for role, text in turns[:-1])
    question = before + turns[-1][1]
    if len(question) > _LONGEST_QUESTION:
        raise RequestProblem(413, f"questions may have {_LONGEST_QUESTION} letters.", "too_large")
    if len(videos) + bool(pictures) != 1 or len(pictures) > MOST_PICTURES:
        raise RequestProblem(
            400, f"one video is asked about: one video_url, or up to {MOST_PICTURES} image_url.", "bad_request"
        )
    return ChatRequest(
        model=_text_or_none(body.get("model")),
        videos=tuple(videos),
        pictures=tuple(pictures),
        question=question,
        opening=opening,
        max_tokens=asked,
        is_streamed=body.get("stream") is True,
        fps=fps,
    )


def _read_message(message: Any, videos: list[str], pictures: list[str]) -> tuple[str, str]:
    if not isinstance(message, dict) or message.get("role") not in ("system", "developer", "user", "assistant"):
        raise RequestProblem(400, "a message has a role (system, user or assistant) and content.", "bad_request")
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise RequestProblem(400, "content is a text, or a list of parts.", "bad_request")
    texts = []
    for part in parts:
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("video_url", "image_url") and isinstance(url := _url_of(part.get(kind)), str):
            (videos if kind == "video_url" else pictures).append(url)
        else:
            raise RequestProblem(400, "parts are of type text, video_url or image_url.", "bad_request")
    return message["role"], "\n".join(texts).strip()


def _url_of(value: Any) -> Any:
    return value.get("url") if isinstance(value, dict) else value


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def answer(
    request: ChatRequest,
    vlm: Vlm,
    config: ServeConfig,
    opened: Callable[[str], AbstractContextManager[Path]],
    decode: Callable[[str], bytes],
) -> Iterator[AnswerChunk]:
    """The answer, chunk by chunk; the video is watched meanwhile, and chunks without text say how far.

    Args:
        request: see `parse_chat`.
        vlm: the model.
        config: of the service.
        opened: opens the video that a text stands for.
        decode: gives the content of a data URL.

    Raises:
        RequestProblem: the video is not allowed or too long, or it takes too long.
        KinescanError: the video cannot be read, or the model cannot answer.
    """
    end = time.monotonic() + config.limits.answer_seconds
    with ExitStack() as stack:
        if request.videos:
            path = stack.enter_context(opened(request.videos[0]))
            reader = stack.enter_context(VideoReader(path, limits=video_limits(config.limits)))
            check_length(reader.duration_seconds, config.limits)
            watched = Recorded(reader, request.fps or config.fps)
            stream = stack.enter_context(_open(vlm, config, watched.num_frames, request))
            marks: list[tuple[float, int, int]] = []
            for group in watched.groups(stream):
                # one by one: who waits is told sooner, and it is known which tokens are of which moment
                for part, seconds in zip(group.frames, group.seconds, strict=True):
                    before = stream.stats.num_seen_tokens
                    stream.push(part, seconds=seconds)
                    stats = stream.stats
                    marks.append((seconds, before, stats.num_seen_tokens))
                    yield _in_time(AnswerChunk("", num_frames=stats.num_frames), end)
            held = _held(stream, marks, reader.duration_seconds)
            yield _in_time(AnswerChunk("", num_frames=stream.stats.num_frames, held=held), end)
        else:
            stream = stack.enter_context(_open(vlm, config, len(request.pictures), request))
            for url in request.pictures:
                push_picture(stream, decode(url), config)
                yield _in_time(AnswerChunk("", num_frames=stream.stats.num_frames), end)
        yield from ask(stream, request.question, request.max_tokens, end)


def ask(stream: VideoStream, question: str, max_tokens: int, end: float) -> Iterator[AnswerChunk]:
    """The answer of a stream, chunk by chunk.

    Args:
        stream: with the video.
        question: a text.
        max_tokens: of the answer.
        end: by `time.monotonic()`, when it has to be there.

    Raises:
        RequestProblem: it takes too long.
    """
    stops, count, last = stream.family.stop_ids(), 0, None
    frames, prompt = stream.stats.num_frames, stream.stats.num_tokens
    for token in stream.ask_stepwise(question, max_new_tokens=max_tokens):
        count, last = count + 1, token.token_id
        yield _in_time(AnswerChunk(token.text, num_frames=frames, num_tokens=count, num_prompt_tokens=prompt), end)
    finish = "stop" if last in stops else "length"
    yield AnswerChunk("", finish=finish, num_frames=frames, num_tokens=count, num_prompt_tokens=prompt)


def push_picture(stream: VideoStream, content: bytes, config: ServeConfig) -> None:
    """Shows a stream one picture, brought to the size of those before it.

    Raises:
        VideoError: it cannot be decoded.
    """
    pixels = decode_picture(content, limits=Limits(max_pixels=config.limits.max_pixels))
    size = stream.intake.frame_size
    stream.push(pixels if size is None or size == tuple(pixels.shape[1:]) else fit(pixels, size))


def _held(stream: VideoStream, marks: Sequence[tuple[float, int, int]], duration: float) -> tuple[HeldTokens, ...]:
    """What is held of each group of frames; those that waited for the next ones are counted with these."""
    told = [mark for mark in marks if mark[2] > mark[1]]
    if not told:
        return ()
    counts = held_between(stream.cache, [told[0][1], *(after for _, _, after in told)])
    firsts = [marks[0][0], *(first for first, _, _ in told[1:])]
    ends = [*firsts[1:], max(duration, firsts[-1])]
    return tuple(
        HeldTokens(start, stop, after - before, float(count))
        for start, stop, (_, before, after), count in zip(firsts, ends, told, counts, strict=True)
    )


def _open(vlm: Vlm, config: ServeConfig, num_frames: int | None, request: ChatRequest) -> VideoStream:
    return open_stream(
        vlm.model,
        vlm.tokenizer,
        budget=config.budget,
        fps=request.fps or config.fps,
        horizon_frames=num_frames,
        horizon_text_tokens=config.limits.answer_tokens + 16_384,
        pixels=vlm.pixels,
        opening=request.opening,
    )


def _in_time(chunk: AnswerChunk, end: float) -> AnswerChunk:
    if time.monotonic() > end:
        raise RequestProblem(408, "the answer took too long and was broken off.", "too_slow")
    return chunk
