"""Several sources, named by a file: `kinescan stream cameras.toml`."""

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kinescan.data.video import Reconnect
from kinescan.data.video.opening import url_scheme
from kinescan.errors import ConfigError
from kinescan.events.sinks import Sink
from kinescan.fields import check_types
from kinescan.inference.event_rules import model_rules
from kinescan.inference.feed import WhenBehind
from kinescan.inference.model_source import record_of_export, resolve_model
from kinescan.inference.stream import StreamPrediction
from kinescan.inference.streams import Camera, check_cameras, stream_many
from kinescan.models.classifier import VideoClassifier
from kinescan.runs.events import plan_events
from kinescan.runs.folder import model_folder
from kinescan.runs.still import skip_in, still_settings
from kinescan.runs.stream import reconnect_settings, stream_settings
from kinescan.runtime.device import choose_device
from kinescan.runtime.files import read_toml
from kinescan.runtime.urls import is_url
from kinescan.settings import build_settings, closest, to_plain

_NAME = re.compile(r"\w[\w .-]*")
_EXAMPLE = '[[camera]]\nname = "door"\nurl = "rtsp://..."'


@dataclass(frozen=True, kw_only=True)
class CameraEntry:
    """A `[[camera]]` of cameras.toml.

    Attributes:
        name: for records, the log and the file of its state; letters, digits, blank, `_`, `-` and `.`.
        url: a URL, a video file, a named pipe, or "-".
        events: where its events are told, as `--events` has it; replaces that of the file's top.
        state: file of its state; replaces NAME.state in the folder that `--state` names.
        every: feed every n-th frame by count; replaces that of the command line.
        when_behind: "wait" or "newest"; replaces that of the command line.
        reconnect: waits and limits after a break; replaces those of the command line, key by key.
    """

    name: str
    url: str
    events: list[str] | None = None
    state: str | None = None
    every: int | None = None
    when_behind: WhenBehind | None = None
    reconnect: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"name must be of letters, digits, blanks, _, - and ., and begin with a letter or digit: {self.name!r}."
            )
        if is_url(self.url):
            url_scheme(self.url)
        elif self.url != "-" and not Path(self.url).exists():
            raise ConfigError(f"url {self.url!r} is neither a URL nor a file that is there. Correct it.")
        if self.every is not None and self.every < 1:
            raise ConfigError(f"every must be at least 1, got {self.every}.")


def is_cameras(source: str | Path) -> bool:
    """Whether a source names others: a file that ends in .toml."""
    return Path(source).suffix.lower() == ".toml"


def read_cameras(path: str | Path) -> list[CameraEntry]:
    """The cameras in a file; `events` at its top are those of every camera without its own.

    Raises:
        ConfigError: the file cannot be read, or says something that makes no sense; the camera and the key are named.
    """
    content = read_toml(path)
    unknown = sorted(content.keys() - {"camera", "events"})
    if unknown:
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}. {closest(unknown[0], ['camera', 'events'])}")
    tables = content.get("camera")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path} names no cameras. Give a table for each:\n{_EXAMPLE}")
    usual = {"events": content["events"]} if "events" in content else {}
    return [_entry({**usual, **table}, f"{path}: camera {number}") for number, table in enumerate(tables, start=1)]


def _entry(table: Mapping[str, Any], where: str) -> CameraEntry:
    name = table.get("name")
    where = f"{where} ({name})" if isinstance(name, str) else where
    missing = [key for key in ("name", "url") if key not in table]
    try:
        entry = build_settings(CameraEntry, {"name": "camera", "url": "-", **table})
        build_settings(Reconnect, entry.reconnect, where="reconnect")
        plan_events(entry.events or [])
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if missing:
        raise ConfigError(f"{where}: {missing[0]} is missing. Give it:\n{_EXAMPLE}")
    return entry


def stream_cameras(
    path: str | Path,
    *,
    targets: Sequence[str] = (),
    sinks: Sequence[Sink] = (),
    model: str | None = None,
    every: int | None = None,
    device: str = "auto",
    state: str | Path | None = None,
    when_behind: WhenBehind = "wait",
    overrides: Sequence[str] = (),
    allow_code: bool = False,
) -> Generator[StreamPrediction, None, None]:
    """Predictions of all cameras that a file names, as their frames come; of those with events, these are told.

    Args:
        path: see `read_cameras`.
        targets: where events of every camera are told, besides what the file says; see `plan_events`.
        sinks: who else is told of events.
        model: a run's folder, a saved or exported causal model or a hub name; None for the newest run.
        every: as for `stream_source`.
        device: "auto" or the name of one.
        state: folder with a file for each camera; it is made.
        when_behind: as for `stream_source`.
        overrides: as for `stream_source_events`.
        allow_code: open an exported file that may run code of its own; see `load_exported`.

    Returns:
        An iterator of the predictions of cameras without events; see `stream_many` for the rest.

    Raises:
        ConfigError: the file, a setting or a camera makes no sense, or thresholds are those of another model.
        CheckpointError: the model or a state cannot be read.
        VideoError: none of the cameras can be opened; at the end, the first that ended with an error.
    """
    entries = read_cameras(path)
    settings, others = stream_settings(overrides)
    reconnect, others = reconnect_settings(others)
    skip, others = still_settings(others)
    if others and not targets and not any(entry.events for entry in entries):
        raise ConfigError(f"--set {others[0]} is for events: give --events WHERE, too (- only prints them).")
    cameras = [
        Camera(
            name=entry.name,
            source=entry.url,
            state=_state_of(entry, state),
            every=entry.every or every,
            when_behind=entry.when_behind or when_behind,
            reconnect=build_settings(Reconnect, {**to_plain(reconnect), **entry.reconnect}, where="reconnect"),
        )
        for entry in entries
    ]
    check_cameras(cameras)
    model_name = model_folder(model, hint="--model RUN")
    exported = record_of_export(model_name)
    if exported is not None and exported.step is None:
        # says why an exported model cannot run on a stream
        return stream_many(model_name, cameras)
    resolved = resolve_model(model_name, choose_device(device), allow_code=allow_code)
    skip_in(resolved, skip)
    shared: dict[str, Sink] = {}
    cameras = [
        _with_events(camera, [*(entry.events or []), *targets], others, sinks, shared, resolved, model_name)
        for camera, entry in zip(cameras, entries, strict=True)
    ]
    found = stream_many(
        resolved,
        cameras,
        top=settings.top,
        average=settings.average,
        average_seconds=settings.average_seconds,
    )
    silent = {camera.name for camera in cameras if camera.rules is not None}
    return _shown(found, silent)


def _shown(
    predictions: Generator[StreamPrediction, None, None], silent: set[str]
) -> Generator[StreamPrediction, None, None]:
    with closing(predictions):
        for prediction in predictions:
            if prediction.camera not in silent:
                yield prediction


def _state_of(entry: CameraEntry, folder: str | Path | None) -> Path | None:
    if entry.state is not None:
        return Path(entry.state)
    if folder is None:
        return None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--state {folder}: with several cameras it is a folder, which cannot be made ({error.strerror}). Name "
            "another one."
        ) from None
    return Path(folder) / f"{entry.name}.state"


def _with_events(
    camera: Camera,
    targets: Sequence[str],
    overrides: Sequence[str],
    sinks: Sequence[Sink],
    shared: dict[str, Sink],
    model: VideoClassifier,
    model_name: str,
) -> Camera:
    """The camera with rules and sinks; as it is where none is to be told."""
    if not targets:
        return camera
    plan = plan_events(targets, overrides)
    rules = model_rules(model, model_name, content=plan.rules, where=plan.where, changes=plan.changes)
    # where no state is kept, messages wait under the camera's name
    opened = plan.open_sinks(camera.state or camera.name, shared=shared)
    return replace(camera, rules=rules, sinks=(*opened, *sinks))
