import math
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kinescan import runs
from kinescan.cli.options import json_option, settings_option
from kinescan.cli.output import is_quiet, print_json, reported
from kinescan.cli.terminal import folded, line_limit, print_table, print_text
from kinescan.errors import ConfigError
from kinescan.runtime.escaping import escape_lines, to_json
from kinescan.runtime.quantities import byte_size, duration

if TYPE_CHECKING:
    from kinescan.inference.ask import AskReport
    from kinescan.inference.ask_session import Asked
    from kinescan.vlm import StreamStats

EXAMPLES = (
    'kinescan ask a.mp4 "What happens?" "And then?" --model Qwen/Qwen3-VL-2B-Instruct --memory 4GiB --save a.state',
    'kinescan ask "Who came in?" --load a.state --model DIR --set temperature=0.7 --set seed=1',
    'kinescan ask rtsp://camera/1 --watch "Is the door open?" --every 30s --model DIR --json',
)
WIDE = 110
"""A terminal with fewer columns gets fewer numbers."""
_FILE_NAME = re.compile(r"\.[A-Za-z0-9]{2,5}$")
_TIME = re.compile(r"(\d+(?:\.\d+)?) *(s|sec|m|min|h)?")
_SECONDS = {None: 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}

Setting = Annotated[
    list[str],
    settings_option(
        "policy=recency, memory_policy=merging, storage=int8, max_new_tokens=64, temperature=0.7, top_p=0.9, seed=1, "
        "stop=END, dtype=bfloat16, pixels=200000, system=TEXT, reconnect.limit_seconds=600, ...: docs/statekv.md. The "
        "first words are flags, too (--policy, --temperature, ...), and so are --device, --allow-short, --questions "
        "FILE and --interactive."
    ),
]


def _hidden(text: str, *names: str) -> Any:
    """A flag that the help does not list."""
    return typer.Option(*names, hidden=True, help=text)


Video = Annotated[
    str, typer.Argument(help="A video file, a URL (rtsp://, http://, ...), - for standard input; or none with --load.")
]
Questions = Annotated[
    list[str] | None, typer.Argument(help="Questions in quotes; each is asked for itself.", show_default=False)
]
Model = Annotated[str, typer.Option(help="Folder or hub name of a video VLM (see docs/statekv.md).")]
Budget = Annotated[int | None, typer.Option(help="Tokens of the past that a frame may see.", show_default="4096")]
Fps = Annotated[float | None, typer.Option(help="Frames per second shown to the model.", show_default="1.0")]
Memory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Most memory for keys and values: 4GiB, or '20000 tokens'.")
]
Save = Annotated[Path | None, typer.Option(help="File for what was watched, to be asked later by --load.")]
Load = Annotated[Path | None, typer.Option(help="File of --save to ask about, or to continue with the video given.")]
Watch = Annotated[
    str | None, typer.Option(metavar="QUESTION", help="Asked again and again while watching: --every 30s.")
]
Every = Annotated[str | None, _hidden("How often --watch asks, by the video's time: 30s (the default), 5min.")]
Compare = Annotated[str | None, typer.Option(help="full: answer with full attention too, and say what differs.")]
QuestionsFile = Annotated[Path | None, _hidden("A text file with a question a line.", "--questions")]
Interactive = Annotated[bool, _hidden("Ask what is typed, while watching and afterwards.", "--interactive")]
AllowShort = Annotated[bool, _hidden("Use what can be decoded of a cut or damaged file.", "--allow-short")]
Device = Annotated[str, _hidden("auto, cpu, cuda or mps.")]
AsJson = Annotated[bool, json_option("Print one JSON document; with --watch or --interactive a line for each answer.")]
Text = Annotated[str | None, _hidden("As --set with this name.")]
Number = Annotated[float | None, _hidden("As --set with this name.")]
Count = Annotated[int | None, _hidden("As --set with this name.")]
Texts = Annotated[list[str] | None, _hidden("As --set with this name; can be repeated.")]


@reported
def command(
    video: Video,
    questions: Questions = None,
    model: Model = ...,  # type: ignore[assignment]
    budget: Budget = None,
    fps: Fps = None,
    memory: Memory = None,
    save: Save = None,
    load: Load = None,
    watch: Watch = None,
    every: Every = None,
    compare: Compare = None,
    settings: Setting = [],  # noqa: B006
    questions_file: QuestionsFile = None,
    interactive: Interactive = False,
    allow_short: AllowShort = False,
    device: Device = "auto",
    policy: Text = None,
    storage: Text = None,
    memory_policy: Text = None,
    max_new_tokens: Count = None,
    temperature: Number = None,
    top_p: Number = None,
    top_k: Count = None,
    repetition_penalty: Number = None,
    stop: Texts = None,
    seed: Count = None,
    dtype: Text = None,
    pixels: Count = None,
    system: Text = None,
    as_json: AsJson = False,
) -> None:
    """Answer questions about a long video, at constant cost for each of its frames."""
    given: dict[str, Any] = {
        "policy": policy,
        "storage": storage,
        "memory_policy": memory_policy,
        "max_new_tokens": max_new_tokens,
    }
    given |= {"temperature": temperature, "top_p": top_p, "top_k": top_k, "repetition_penalty": repetition_penalty}
    given |= {"stop": stop, "seed": seed, "dtype": dtype, "pixels": pixels, "system": system}
    chosen, reconnect = runs.ask.ask_settings(settings, given)
    asked = [*(questions or ()), *(runs.ask.read_questions(questions_file) if questions_file else ())]
    source: str | None = video
    if load is not None and _is_question(video):
        source, asked = None, [video, *asked]
    if interactive and source == "-":
        raise ConfigError("--interactive reads questions from standard input, and the video is to come from there too.")
    if every is not None and watch is None:
        raise ConfigError(f"--every {every} says how often --watch asks, and no --watch is given. Add one.")
    told = watch is not None or interactive
    said = _Speaker(shown=not as_json)
    session = runs.ask.ask_session(
        load=load,
        save=save,
        watch=watch,
        every_seconds=_seconds("30s" if every is None else every),
        incoming=_TypedLines(tells=not as_json and source is not None) if interactive else None,
        on_answer=_tell(None if as_json else said) if told else None,
    )
    answer = runs.ask.prepare_ask(
        source,
        asked,
        model=model,
        budget=budget,
        fps=fps,
        memory=memory,
        compare=compare,
        allow_short=allow_short,
        device=device,
        settings=chosen,
        session=session,
        reconnect=reconnect,
    )
    _run(answer, said, as_json=as_json, told=told, typed=interactive, watched=source is not None)


def _run(
    answer: "Callable[..., AskReport]", said: "_Speaker", *, as_json: bool, told: bool, typed: bool, watched: bool
) -> None:
    """Watches and asks, and prints what comes."""
    if typed and not as_json and _is_typed():
        when = ", while watching and afterwards" if watched else ""
        print(f"Type a question and Enter{when}; Ctrl-D ends.", file=sys.stderr)
    with _Bar(shown=watched and not as_json and not told) as bar:
        said.before = bar.stop
        report = answer(on_progress=bar.update, on_text=said)
    if as_json:
        if not told:
            print_json(asdict(report))
        return
    said.end()
    _print_costs(report)


def _is_question(text: str) -> bool:
    """Whether the first argument, where --load is given, is a question and not a missing file.

    A text that ends like a file's name (my door.mp4), or lies in a folder that is there, is a file.
    """
    if "://" in text or text == "-" or os.path.exists(text) or _FILE_NAME.search(text):
        return False
    in_folder = Path(text).parent != Path() and Path(text).parent.is_dir()
    return not in_folder and (" " in text or text.endswith("?"))


def _seconds(text: str) -> float:
    found = _TIME.fullmatch(text.strip())
    if found is None or not 0 < float(found[1]) < math.inf:
        raise ConfigError(f"--every must be a time such as 30s, 5min or 1h, got {text!r}.")
    return float(found[1]) * _SECONDS[found[2]]


def _tell(said: "_Speaker | None") -> Callable[["Asked"], None]:
    """What is printed behind an answer that is whole: up to when it has seen; without a speaker, a line of JSON."""

    def tell(asked: "Asked") -> None:
        if said is None:
            compared = () if asked.full_answer is None else ("full_answer", "full_seconds", "logit_difference")
            names = ("question", "answer", "seen_seconds", "seconds", *compared)
            print(to_json({name: getattr(asked, name) for name in names}), flush=True)
        else:
            said.end()
            print(f"[seen up to {duration(asked.seen_seconds)}]", flush=True)

    return tell


def _is_typed() -> bool:
    """Whether somebody sits before standard input, which is None where the process was started without one."""
    return sys.stdin is not None and sys.stdin.isatty()


class _TypedLines:
    """Lines of standard input, read by a thread of its own.

    Args:
        tells: say when watching has ended, to somebody who types.
    """

    def __init__(self, *, tells: bool) -> None:
        self._tells = tells
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def ready(self) -> list[str]:
        """Those that have come."""
        found = []
        while not self._ended and not self._lines.empty():
            line = self._lines.get()
            self._ended = line is None
            found += [] if line is None else [line]
        return found

    def next(self) -> str | None:
        """The next one; None at the end of the input."""
        if self._ended:
            return None
        if self._tells and _is_typed():
            print("Watching has ended; questions see all that was watched. Ctrl-D ends.", file=sys.stderr)
        self._tells = False
        line = self._lines.get()
        self._ended = line is None
        return line

    def _read(self) -> None:
        for line in sys.stdin or ():
            if line.strip():
                self._lines.put(line.strip())
        self._lines.put(None)


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

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self.before: Callable[[], None] = lambda: None
        self._question: str | None = None

    def __call__(self, question: str, text: str) -> None:
        if not self._shown:
            return
        if question != self._question:
            self.before()
            self.end()
            self._question = question
            print(f"> {escape_lines(question)}")
        print(escape_lines(text), end="", flush=True)

    def end(self) -> None:
        """Ends the line of an answer; the next one says its question again."""
        if self._question is not None:
            print(flush=True)
        self._question = None


def _print_costs(report: "AskReport") -> None:
    stats = report.prefill.stats
    dropped = stats.num_seen_tokens - stats.num_tokens
    costs = (
        f"{report.num_frames} frames: {report.vision_seconds:.2f} s to decode and see, {report.prefill.seconds:.2f} s "
        f"in the decoder; state {stats.state_tokens} tokens, {byte_size(stats.state_bytes)}; cache "
        f"{stats.num_tokens} tokens, {byte_size(stats.full_cache_bytes)}"
        + (f" ({dropped} were dropped for the limit)" if dropped else "")
    )
    print("\n".join(folded(costs, line_limit())), file=sys.stderr)
    if report.full_prefill is not None:
        _print_comparison(report)


def _print_comparison(report: "AskReport") -> None:
    """The stream beside full attention."""
    assert report.full_prefill is not None, "full attention was not compared"
    names = (report.prefill.policy, "full attention")
    for asked in report.asked:
        print(f"\n> {escape_lines(asked.question)}")
        # a table's cell is one line
        print_table(names, [[" ".join(text.split()) for text in (asked.answer, asked.full_answer or "")]])
        print(f"largest difference of logits: {asked.logit_difference:.4g}")
    sides = (report.prefill, report.full_prefill)
    seconds = (sum(one.seconds for one in report.asked), sum(one.full_seconds or 0.0 for one in report.asked))
    past = (sides[0].stats.state_bytes, sides[1].stats.full_cache_bytes)
    rows = [
        ("", [*names]),
        ("tokens of the past that a frame sees", [f"{side.stats.state_tokens:,}" for side in sides]),
        ("their memory", [byte_size(size) for size in past]),
        ("memory of all keys and values", [byte_size(side.stats.full_cache_bytes) for side in sides]),
        ("query-key pairs", [f"{side.stats.query_key_pairs:,}" for side in sides]),
        ("prefill in seconds", [f"{side.seconds:.2f}" for side in sides]),
        ("answers in seconds", [f"{value:.2f}" for value in seconds]),
    ]
    print()
    for name, (left, right) in rows:
        print(f"{name:<37} {left:>18} {right:>18}")
    if not report.budget_reached:
        print_text(["", _said_of_no_compression(report)])


def _said_of_no_compression(report: "AskReport") -> str:
    """What a comparison is worth where frames saw everything."""
    came = f"{report.prefill.stats.num_seen_tokens:,} tokens came"
    if report.prefill.policy == "none":
        said, advice = f"Policy none is full attention: {came}, and frames saw them all.", "another --policy"
    else:
        said = f"The budget was never reached: {came}, and frames saw them all, as with full attention."
        advice = "a smaller --budget, or a longer video"
    if report.other_limits:
        flags = {"memory": "--memory", "retrieved_chunks": "retrieved_chunks", "storage": "int8 storage"}
        return f"{said} What differs comes from {', '.join(flags[name] for name in report.other_limits)} alone."
    return f"{said} Both sides are the same, and that they agree shows nothing. Compare with {advice}."
