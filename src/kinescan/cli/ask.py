import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from kinescan.cli.output import is_quiet, print_json, reported
from kinescan.cli.watched import Group, Live, Recorded, open_watched
from kinescan.data.video import VideoReader, is_live, refuse_terminal
from kinescan.errors import ConfigError
from kinescan.training.engine import choose_device
from kinescan.training.progress import WIDE
from kinescan.vlm import StreamConfig, StreamStats, VideoStream, Vlm, load_vlm, open_stream
from kinescan.vlm.cache import Storage
from kinescan.vlm.config import check_fps

EXAMPLES = (
    'kinescan ask a.mp4 "What happens?" --model Qwen/Qwen3-VL-2B-Instruct',
    'kinescan ask a.mp4 "Who comes in?" "And then?" --model DIR --budget 2048 --fps 2',
    'kinescan ask rtsp://camera/1 "Did anybody come in?" --model DIR',
)
MAX_NEW_TOKENS = 256

Progressed = Callable[[int, int | None, StreamStats], None]
"""Called with how many frames were pushed, how many there are (None: nobody knows), and what the stream holds."""


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """What it took to push the video.

    Attributes:
        policy: of the stream.
        seconds: in the decoder, the vision tower aside.
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
        vision_seconds: decoding and the vision tower, and waiting for frames of a live source.
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
        storage: of the detailed cache.
        max_new_tokens: answers are cut there.
        allow_short: answer about what can be decoded of a cut or damaged file (see VideoReader).
        horizon_frames: frames that a live source will not exceed, for models that have to know (see `open_stream`); a
            file tells.
        on_progress: called as frames enter.
        on_text: called with (question, piece of text) as the answer comes.

    Raises:
        VideoError: the file cannot be read, or is cut or damaged (CutVideoError) and allow_short is off; or the live
            source gave no frame.
        ConfigError: a setting is wrong, or there is no question.
    """
    _check(questions, fps, compare)
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


def _check(questions: Sequence[str], fps: float, compare: str | None) -> None:
    if not questions:
        raise ConfigError("there is no question. Give at least one, in quotes.")
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


@reported
def command(
    video: Annotated[str, typer.Argument(help="A video file, a URL (rtsp://, http://, ...), or - for standard input.")],
    questions: Annotated[list[str], typer.Argument(help="Questions in quotes; each is asked for itself.")],
    model: Annotated[str, typer.Option(help="Folder or hub name of a Qwen-VL, InternVL or LLaVA-OneVision model.")],
    budget: Annotated[int, typer.Option(help="Tokens of the past that a frame may see.")] = 4096,
    fps: Annotated[float, typer.Option(help="Frames per second shown to the model.")] = 1.0,
    policy: Annotated[
        str,
        typer.Option(help="What chooses them: statekv, recency, sinks_recency, uniform, random, h2o, snapkv or none."),
    ] = "statekv",
    compare: Annotated[
        str | None, typer.Option(help="full: answer with full attention too, and say what differs.")
    ] = None,
    storage: Annotated[
        str, typer.Option(help="Where all keys and values are kept: memory, offload or int8.")
    ] = "memory",
    allow_short: Annotated[
        bool, typer.Option("--allow-short", help="Use what can be decoded of a cut or damaged file.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Answer questions about a long video, at constant cost for each of its frames."""
    _check(questions, fps, compare)
    # a slip of the pen is named before gigabytes are read
    StreamConfig(budget=budget, policy=policy, fps=fps, storage=storage)  # type: ignore[arg-type]
    refuse_terminal(video)
    if not is_live(video):
        VideoReader(video, allow_short=allow_short).close()
    vlm = load_vlm(model, device=choose_device(device))
    with _Bar(shown=not as_json) as bar:
        said = _Speaker(shown=not as_json, before=bar.stop)
        report = ask(
            video,
            questions,
            vlm=vlm,
            budget=budget,
            fps=fps,
            policy=policy,
            compare=compare,  # type: ignore[arg-type]
            storage=storage,  # type: ignore[arg-type]
            max_new_tokens=MAX_NEW_TOKENS,
            allow_short=allow_short,
            on_progress=bar.update,
            on_text=said,
        )
    if as_json:
        print_json(asdict(report))
    else:
        said.end()
        _print_costs(report)


class _Bar:
    """Frames, frames per second and cache sizes on standard error."""

    def __init__(self, *, shown: bool) -> None:
        self._started = time.perf_counter()
        console = Console(file=sys.stderr)
        self._narrow = console.width <= WIDE
        self._progress = Progress(
            TextColumn("frames"),
            BarColumn(bar_width=8 if self._narrow else 40),
            MofNCompleteColumn(),
            TextColumn("{task.fields[sizes]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not shown or is_quiet(),
        )
        self._task = self._progress.add_task("frames", total=None, sizes="")

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._progress.stop()

    def update(self, done: int, total: int | None, stats: StreamStats) -> None:
        rate = done / (time.perf_counter() - self._started)
        sizes = f"{rate:.1f}/s, state {_size(stats.state_bytes)}, cache {_size(stats.detailed_bytes)}"
        if not self._narrow:
            sizes = (
                f"{rate:.2f} frames/s, state {stats.state_tokens} tokens {_size(stats.state_bytes)}, "
                f"cache {stats.num_tokens} tokens {_size(stats.detailed_bytes)}"
            )
        self._progress.update(self._task, completed=done, total=total, sizes=sizes)


class _Speaker:
    """Questions and answers on standard output, as they come."""

    def __init__(self, *, shown: bool, before: Callable[[], None]) -> None:
        self._shown = shown
        self._before = before
        self._question: str | None = None

    def __call__(self, question: str, text: str) -> None:
        if not self._shown:
            return
        if question != self._question:
            self._before()
            self.end()
            self._question = question
            print(f"> {question}")
        print(text, end="", flush=True)

    def end(self) -> None:
        if self._question is not None:
            print(flush=True)


def _print_costs(report: AskReport) -> None:
    stats = report.prefill.stats
    print(
        f"{report.num_frames} frames: {report.vision_seconds:.2f} s to decode and see, {report.prefill.seconds:.2f} s "
        f"in the decoder; state {stats.state_tokens} tokens, {_size(stats.state_bytes)}; cache "
        f"{stats.num_tokens} tokens, {_size(stats.detailed_bytes)}",
        file=sys.stderr,
    )
    if report.full_prefill is None:
        return
    print("\nwith full attention:")
    for asked in report.asked:
        print(f"> {asked.question}\n{asked.full_answer}\nlargest difference of logits: {asked.logit_difference:.4g}")
    full = report.full_prefill
    print(
        f"prefill {report.prefill.seconds:.2f} s against {full.seconds:.2f} s; query-key pairs "
        f"{stats.query_key_pairs:,} against {full.stats.query_key_pairs:,}; past seen by a frame "
        f"{_size(stats.state_bytes)} against {_size(full.stats.detailed_bytes)}"
    )


def _size(num_bytes: int) -> str:
    """Example: 1536 -> "1.5 KiB"."""
    for power, unit in ((30, "GiB"), (20, "MiB")):
        if num_bytes >= 2**power:
            return f"{num_bytes / 2**power:.1f} {unit}"
    return f"{num_bytes / 2**10:.1f} KiB"
