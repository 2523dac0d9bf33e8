import sys
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import typer

from kinescan import runs
from kinescan.cli.options import json_option, settings_option
from kinescan.cli.output import reported
from kinescan.cli.own_modules import OwnModules, import_own_modules
from kinescan.runtime.escaping import escape_terminal, to_json
from kinescan.runtime.quantities import percent
from kinescan.runtime.signals import Interruption

if TYPE_CHECKING:
    from kinescan.events.told import Told
    from kinescan.inference.stream import StreamPrediction

Behind = Literal["wait", "newest"]
EXAMPLES = (
    "kinescan stream a.mp4 --model runs/causal",
    "kinescan stream cameras.toml --state states/ --when-behind newest",
    "kinescan stream rtsp://camera/1 --events events.jsonl --events https://example.org/hook --state camera.state",
)

VideoSource = Annotated[
    str,
    typer.Argument(
        help="A video file, a URL (rtsp://, http://, ...), - for standard input, or cameras.toml with several."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="A run's folder, a saved causal model, a hub name, or motion. By default the newest run or else motion, "
        "which comes with kinescan."
    ),
]
Every = Annotated[
    int | None,
    typer.Option(help="Feed every n-th frame by count; by default by time, as far apart as in training."),
]
Top = Annotated[int | None, typer.Option(hidden=True, help="As --set stream.top.")]
AllowShort = Annotated[bool, typer.Option("--allow-short", help="Use what can be decoded of a cut or damaged file.")]
AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code", hidden=True, help="Open a model of torch.export (.pt2), which may run code of its own."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
State = Annotated[
    Path | None,
    typer.Option(help="File to continue from, written every minute and at the end; a folder for cameras.toml."),
]
Events = Annotated[
    list[str],
    typer.Option(
        metavar="WHERE",
        help="Tell starts and ends of events, and where to: FILE.jsonl, FILE.csv, a webhook (https://...), - to "
        "only print; or rules, FILE.toml or .json. Can be repeated.",
    ),
]
Record = Annotated[
    Path | None,
    typer.Option(help="A video to write (.mp4, ...), with events and a timeline drawn in; a folder for cameras.toml."),
]
WhenBehind = Annotated[
    Behind,
    typer.Option(help="Where predictions fall behind a live source: wait for them, or take its newest frame."),
]
Settings = Annotated[
    list[str],
    settings_option(
        "stream.top=5, stream.average_seconds=2, reconnect.limit_seconds=300, events.on=0.6, "
        "still.pixel_threshold=4 (patches that stand still are not computed again), ..."
    ),
]
AsJson = Annotated[bool, json_option("Print one JSON object a frame, or an event.")]


@reported
def command(
    source: VideoSource,
    model: Model = None,
    every: Every = None,
    top: Top = None,
    allow_short: AllowShort = False,
    allow_code: AllowCode = False,
    device: Device = "auto",
    state: State = None,
    events: Events = [],  # noqa: B006
    record: Record = None,
    when_behind: WhenBehind = "wait",
    settings: Settings = [],  # noqa: B006
    modules: OwnModules = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Classify a video or a live source frame by frame, at constant cost; the model must be causal."""
    import_own_modules(modules)
    is_several = runs.cameras.is_cameras(source)
    options = _Options(
        model=model,
        every=every,
        device=device,
        state=state,
        when_behind=when_behind,
        overrides=settings if top is None else [*settings, f"stream.top={top}"],
        allow_code=allow_code,
    )
    # SIGTERM ends it as Ctrl-C does: with the state written
    with Interruption() as stop:
        stop.immediate = True
        if is_several:
            sinks = [runs.stream.printing(_print_camera_event_json if as_json else _print_camera_event)]
            cameras = runs.cameras.stream_cameras(source, targets=events, record=record, sinks=sinks, **options)
            with closing(cameras):
                _print_as_they_come(cameras, as_json)
        elif events or record is not None:
            sinks = [runs.stream.printing(_print_event_json if as_json else _print_event)]
            told = runs.stream.stream_source_events(
                source, events, record=record, sinks=sinks, allow_short=allow_short, **options
            )
            with closing(told):
                for _ in told:
                    pass
        else:
            predictions = runs.stream.stream_source(source, allow_short=allow_short, **options)
            with closing(predictions):
                _print_as_they_come(predictions, as_json)


class _Options(TypedDict):
    """What one video source and several are streamed with."""

    model: str | None
    every: int | None
    device: str
    state: Path | None
    when_behind: Behind
    overrides: list[str]
    allow_code: bool


def _print_event(told: "Told", camera: str = "") -> None:
    event = told.update.event
    label, score = escape_terminal(event.label), f"{100 * event.peak_score:.1f} %"
    if told.update.kind == "start":
        _print_line(f"{camera}{event.start_seconds:10.3f} s  {label} begins  ({event.id}, {score})")
        return
    assert event.end_seconds is not None, "it has ended"
    lasted = event.end_seconds - event.start_seconds
    _print_line(f"{camera}{event.end_seconds:10.3f} s  {label} ends after {lasted:.3f} s  ({event.id}, {score})")


def _print_camera_event(told: "Told") -> None:
    _print_event(told, f"{escape_terminal(told.source)}: ")


def _print_camera_event_json(told: "Told") -> None:
    _print_line(to_json({"camera": told.source, **told.to_plain()}))


def _print_event_json(told: "Told") -> None:
    _print_line(to_json(told.to_plain()))


def _print_as_they_come(predictions: "Iterable[StreamPrediction]", as_json: bool) -> None:
    before = time.perf_counter()
    for prediction in predictions:
        now = time.perf_counter()
        milliseconds, before = 1000 * (now - before), now
        if as_json:
            values = {
                **({} if prediction.camera is None else {"camera": prediction.camera}),
                "frame_index": prediction.frame_index,
                "seconds": prediction.seconds,
                "labels": prediction.labels,
                "scores": prediction.scores,
                "milliseconds": round(milliseconds, 3),
            }
            if prediction.behind_seconds is not None:
                values["behind_seconds"] = round(prediction.behind_seconds, 3)
                values["dropped"] = prediction.num_dropped
            _print_line(to_json(values))
        else:
            pairs = zip(prediction.labels, prediction.scores, strict=True)
            listed = "  ".join(f"{escape_terminal(label)} {percent(score)}" for label, score in pairs)
            dropped = f", {prediction.num_dropped} dropped" if prediction.num_dropped else ""
            camera = "" if prediction.camera is None else f"{escape_terminal(prediction.camera)}: "
            _print_line(f"{camera}{prediction.seconds:8.3f} s  {listed}  ({milliseconds:.0f} ms{dropped})")


def _print_line(text: str) -> None:
    """At once: events of several cameras are printed by several threads."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
