import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kinescan import runs
from kinescan.cli.options import json_option
from kinescan.cli.output import is_quiet, print_json, reported
from kinescan.runtime.quantities import byte_size

if TYPE_CHECKING:
    from kinescan.inference.ask import AskReport
    from kinescan.vlm import StreamStats

EXAMPLES = (
    'kinescan ask a.mp4 "What happens?" --model Qwen/Qwen3-VL-2B-Instruct',
    'kinescan ask a.mp4 "Who comes in?" "And then?" --model DIR --budget 2048 --fps 2',
    'kinescan ask rtsp://camera/1 "Did anybody come in?" --model DIR',
)
WIDE = 110
"""A terminal with fewer columns gets fewer numbers."""


@reported
def command(
    video: Annotated[str, typer.Argument(help="A video file, a URL (rtsp://, http://, ...), or - for standard input.")],
    questions: Annotated[list[str], typer.Argument(help="Questions in quotes; each is asked for itself.")],
    model: Annotated[str, typer.Option(help="Folder or hub name of a video VLM (docs/statekv.md lists families).")],
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
    as_json: Annotated[bool, json_option("Print one JSON document.")] = False,
) -> None:
    """Answer questions about a long video, at constant cost for each of its frames."""
    answer = runs.ask.prepare_ask(
        video,
        questions,
        model=model,
        budget=budget,
        fps=fps,
        policy=policy,
        compare=compare,
        storage=storage,
        allow_short=allow_short,
        device=device,
    )
    with _Bar(shown=not as_json) as bar:
        said = _Speaker(shown=not as_json, before=bar.stop)
        report = answer(on_progress=bar.update, on_text=said)
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

    def update(self, done: int, total: int | None, stats: "StreamStats") -> None:
        rate = done / (time.perf_counter() - self._started)
        sizes = f"{rate:.1f}/s, state {byte_size(stats.state_bytes)}, cache {byte_size(stats.full_cache_bytes)}"
        if not self._narrow:
            sizes = (
                f"{rate:.2f} frames/s, state {stats.state_tokens} tokens {byte_size(stats.state_bytes)}, "
                f"cache {stats.num_tokens} tokens {byte_size(stats.full_cache_bytes)}"
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


def _print_costs(report: "AskReport") -> None:
    stats = report.prefill.stats
    print(
        f"{report.num_frames} frames: {report.vision_seconds:.2f} s to decode and see, {report.prefill.seconds:.2f} s "
        f"in the decoder; state {stats.state_tokens} tokens, {byte_size(stats.state_bytes)}; cache "
        f"{stats.num_tokens} tokens, {byte_size(stats.full_cache_bytes)}",
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
        f"{byte_size(stats.state_bytes)} against {byte_size(full.stats.full_cache_bytes)}"
    )
