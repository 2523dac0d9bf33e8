from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from kinescan.data.video import Reconnect, is_live
from kinescan.errors import ConfigError
from kinescan.events.recording import Recorder
from kinescan.events.sinks import Calls, Sink
from kinescan.events.told import Told
from kinescan.inference.event_rules import model_rules
from kinescan.inference.event_stream import stream_events
from kinescan.inference.feed import WhenBehind
from kinescan.inference.model_source import ModelSource, record_of_export, resolve_model
from kinescan.inference.stream import StreamPrediction, stream
from kinescan.inference.stream_average import StreamSettings
from kinescan.runs.events import plan_events
from kinescan.runs.folder import model_folder
from kinescan.runs.overrides import take_table
from kinescan.runs.still import skip_in, still_settings
from kinescan.runtime.device import choose_device


def stream_source(
    source: str | Path,
    *,
    model: str | None = None,
    every: int | None = None,
    device: str = "auto",
    state: str | Path | None = None,
    allow_short: bool = False,
    when_behind: WhenBehind = "wait",
    overrides: Sequence[str] = (),
    allow_code: bool = False,
) -> Generator[StreamPrediction, None, None]:
    """A prediction for each frame of a file or a live source.

    Args:
        source: a video file, a URL, or "-" for standard input.
        model: a run's folder, a saved causal model or a hub name; None for the newest run, or else
            the motion model that comes with the package.
        every: feed every n-th frame by count; None takes frames by their times, as far apart as in training.
        device: "auto" or the name of one.
        state: file to continue from where it is there; written every minute and at the end.
        allow_short: use what can be decoded of a cut or damaged file.
        overrides: "stream.average=sliding" and the like, for `StreamSettings`.
        allow_code: open an exported file that may run code of its own; see `load_exported`.
        when_behind: "newest" drops frames of a live source where predictions fall behind; "wait" drops none.
        overrides: "stream.average=sliding" and the like, for `StreamSettings`; "reconnect.limit_seconds=300" and the
            like, for `kinescan.data.video.Reconnect`; "still.pixel_threshold=4" and the like, for
            `kinescan.models.still.SkipUnchanged`.

    Raises:
        ConfigError: no model was given, no such device, or a setting is wrong; see `kinescan.inference.stream.stream`.
        CheckpointError: the model or the state cannot be read.
        VideoError: the video source cannot be read.
    """
    settings, others = stream_settings(overrides)
    reconnect, others = reconnect_settings(others)
    skip, others = still_settings(others)
    if others:
        raise ConfigError(f"--set {others[0]} is for events: give --events WHERE, too (- only prints them).")
    chosen: ModelSource = model_folder(model, hint="--model RUN", or_shipped=True)
    if skip is not None:
        chosen = resolve_model(chosen, choose_device(device), allow_code=allow_code)
        skip_in(chosen, skip)
    return stream(
        chosen,
        source,
        every=every,
        top=settings.top,
        device=choose_device(device),
        state=state,
        allow_short=allow_short,
        average=settings.average,
        average_seconds=settings.average_seconds,
        allow_code=allow_code,
        when_behind=when_behind,
        reconnect=reconnect,
    )


def stream_settings(overrides: Sequence[str]) -> tuple[StreamSettings, list[str]]:
    """What `--set stream.NAME=VALUE` says, and the other overrides.

    Raises:
        ConfigError: a setting is unknown, or its value makes no sense.

    Example:
        >>> stream_settings(["stream.average=sliding", "events.on=0.6"])
        (StreamSettings(top=1, average='sliding', average_seconds=None), ['events.on=0.6'])
    """
    return take_table("stream", StreamSettings, overrides)


def reconnect_settings(overrides: Sequence[str]) -> tuple[Reconnect, list[str]]:
    """What `--set reconnect.NAME=VALUE` says, and the other overrides.

    Raises:
        ConfigError: a setting is unknown, or its value makes no sense.
    """
    return take_table("reconnect", Reconnect, overrides)


def stream_source_events(
    source: str | Path,
    targets: Sequence[str],
    *,
    overrides: Sequence[str] = (),
    record: str | Path | None = None,
    sinks: Sequence[Sink] = (),
    model: str | None = None,
    every: int | None = None,
    device: str = "auto",
    state: str | Path | None = None,
    allow_short: bool = False,
    allow_code: bool = False,
    when_behind: WhenBehind = "wait",
) -> Generator[Told, None, None]:
    """The starts and ends of events in a file or a live source, told wherever `targets` say.

    Args:
        source: a video file, a URL, or "-" for standard input.
        targets: files of rules, files to write, webhooks; see `kinescan.runs.events.plan_events`.
        overrides: settings of the stream, of rules and of webhooks.
        record: video to write, with events drawn in; see `kinescan.events.recording.Recorder`.
        sinks: who else is told.
        model: a run's folder, a saved causal model or a hub name; None for the newest run, or else
            the motion model that comes with the package.
        every: feed every n-th frame by count; None takes frames by their times.
        device: "auto" or the name of one.
        state: file to continue from where it is there; see `kinescan.inference.event_stream.stream_events`.
        allow_short: use what can be decoded of a cut or damaged file.
        allow_code: open an exported file that may run code of its own; see `load_exported`.
        when_behind: as for `stream_source`.

    Raises:
        ConfigError: no model was given, no such device, or a setting is wrong; thresholds are those of another model.
        CheckpointError: the model or the state cannot be read.
        VideoError: the video source cannot be read.
    """
    settings, others = stream_settings(overrides)
    reconnect, others = reconnect_settings(others)
    skip, others = still_settings(others)
    plan = plan_events(targets, others)
    model_name = model_folder(model, hint="--model RUN", or_shipped=True)
    exported = record_of_export(model_name)
    if exported is not None and exported.step is None:
        # says why an exported model cannot run on a stream
        return stream_events(model_name, source)
    resolved = resolve_model(model_name, choose_device(device), allow_code=allow_code)
    skip_in(resolved, skip)
    rules = model_rules(resolved, model_name, content=plan.rules, where=plan.where, changes=plan.changes)
    recorder = None if record is None else Recorder(record, waits=not is_live(source))
    opened = [*plan.open_sinks(state, stream=source), *sinks, *([] if recorder is None else [recorder])]
    return stream_events(
        resolved,
        source,
        rules=rules,
        sinks=opened,
        watch=None if recorder is None else recorder.watch,
        every=every,
        state=state,
        allow_short=allow_short,
        average=settings.average,
        average_seconds=settings.average_seconds,
        when_behind=when_behind,
        reconnect=reconnect,
    )


def printing(show: Callable[[Told], None]) -> Sink:
    """Standard output as one who is told."""
    return Calls("standard output", show)
