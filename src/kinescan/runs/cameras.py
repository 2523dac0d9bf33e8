"""Several video sources, named by a file: `kinescan stream cameras.toml`."""

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kinescan.data.video import Reconnect, is_live
from kinescan.data.video.opening import url_scheme
from kinescan.errors import ConfigError
from kinescan.events.recording import SUFFIXES, Recorder
from kinescan.events.rules import EventRules
from kinescan.events.sinks import Sink
from kinescan.fields import check_types
from kinescan.inference.event_rules import model_rules
from kinescan.inference.feed import WhenBehind
from kinescan.inference.model_source import record_of_export, resolve_model
from kinescan.inference.stream import StreamPrediction
from kinescan.inference.streams import Camera, check_cameras, stream_many
from kinescan.runs.events import EventPlan, plan_events
from kinescan.runs.folder import model_folder
from kinescan.runs.still import skip_in, still_settings
from kinescan.runs.stream import reconnect_settings, stream_settings
from kinescan.runtime.addresses import require_local
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
        record: video that is written of it; replaces what `--record` makes of its name.
        every: feed every n-th frame by count; replaces that of the command line.
        when_behind: "wait" or "newest"; replaces that of the command line.
        reconnect: waits and limits after a break; replaces those of the command line, key by key.
    """

    name: str
    url: str
    events: list[str] | None = None
    state: str | None = None
    record: str | None = None
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
    """Whether a video source names others: a file that ends in .toml."""
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
    record: str | Path | None = None,
    when_behind: WhenBehind = "wait",
    overrides: Sequence[str] = (),
    allow_code: bool = False,
) -> Generator[StreamPrediction, None, None]:
    """Predictions of all cameras that a file names, as their frames come; of those with events, these are told.

    Args:
        path: see `read_cameras`.
        targets: where events of every camera are told, besides what the file says; see `plan_events`.
        sinks: who else is told of events.
        model: a run's folder, a saved or exported causal model or a hub name; None for the newest run, or else
            the motion model that comes with the package.
        every: as for `stream_source`.
        device: "auto" or the name of one.
        state: folder with a file for each camera; it is made.
        record: folder with a video of each camera, which is made; or a video's name (out.mp4), to which the camera's is
            added (out-door.mp4). See `kinescan.events.recording.Recorder`. A camera that is recorded has events.
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
    is_told = bool(targets or record) or any(entry.events or entry.record for entry in entries)
    if others and not is_told:
        raise ConfigError(f"--set {others[0]} is for events: give --events WHERE, too (- only prints them).")
    usual = Camera(name="usual", source="-", every=every, when_behind=when_behind, reconnect=reconnect)
    cameras = [_camera_of(entry, usual, state) for entry in entries]
    check_cameras(cameras)
    records = [_record_of(entry, record) for entry in entries]
    _check_records(entries, records)
    model_name = model_folder(model, hint="--model RUN", or_shipped=True)
    exported = record_of_export(model_name)
    if exported is not None and exported.step is None:
        # says why an exported model cannot run on a stream
        return stream_many(model_name, cameras)
    resolved = resolve_model(model_name, choose_device(device), allow_code=allow_code)
    skip_in(resolved, skip)
    plans = [plan_events([*(entry.events or []), *targets], others) for entry in entries]

    def rules_of(plan: EventPlan) -> EventRules:
        return model_rules(resolved, model_name, content=plan.rules, where=plan.where, changes=plan.changes)

    watched = [
        replace(camera, rules=rules_of(plan)) if entry.events or targets or path is not None else camera
        for camera, entry, plan, path in zip(cameras, entries, plans, records, strict=True)
    ]
    cameras = _with_sinks(watched, plans, records, sinks)
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


def _camera_of(entry: CameraEntry, usual: Camera, states: str | Path | None) -> Camera:
    """What an entry says, and of `usual` what it leaves out; its state is a file in the folder `states`."""
    return replace(
        usual,
        name=entry.name,
        source=entry.url,
        state=_state_of(entry, states),
        every=entry.every or usual.every,
        when_behind=entry.when_behind or usual.when_behind,
        reconnect=build_settings(Reconnect, {**to_plain(usual.reconnect), **entry.reconnect}, where="reconnect"),
    )


def _state_of(entry: CameraEntry, folder: str | Path | None) -> Path | None:
    if entry.state is not None:
        return Path(entry.state)
    if folder is None:
        return None
    require_local(folder)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--state {folder}: with several cameras it is a folder, which cannot be made ({error.strerror}). Name "
            "another one."
        ) from None
    return Path(folder) / f"{entry.name}.state"


def _record_of(entry: CameraEntry, record: str | Path | None) -> Path | None:
    if entry.record is not None or record is None:
        return None if entry.record is None else Path(entry.record)
    require_local(record)
    path = Path(record)
    if path.suffix.lower() in SUFFIXES:
        return path.with_name(f"{path.stem}-{entry.name}{path.suffix}")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--record {path}: with several cameras it is a folder, or a name that ends in {', '.join(SUFFIXES)}. The "
            f"folder cannot be made ({error.strerror}). Name another one."
        ) from None
    return path / f"{entry.name}{SUFFIXES[0]}"


def _check_records(entries: Sequence[CameraEntry], records: Sequence[Path | None]) -> None:
    """Passes recordings of which no two have the same file.

    Raises:
        ConfigError: two have.
    """
    seen: dict[Path, str] = {}
    for entry, path in zip(entries, records, strict=True):
        if path is None:
            continue
        other = seen.setdefault(path.absolute(), entry.name)
        if other != entry.name:
            raise ConfigError(f"cameras {other!r} and {entry.name!r} are recorded to {path}. Give each its own file.")


def _with_sinks(
    cameras: Sequence[Camera], plans: Sequence[EventPlan], records: Sequence[Path | None], sinks: Sequence[Sink]
) -> list[Camera]:
    """The cameras with all that is told of their events; those without rules as they are.

    Raises:
        ConfigError: something cannot be written; then nothing stays open.
    """
    shared: dict[str, Sink] = {}
    opened: list[Sink] = []
    found = []
    try:
        for camera, plan, path in zip(cameras, plans, records, strict=True):
            if camera.rules is None:
                found.append(camera)
                continue
            # where no state is kept, messages wait under the camera's name
            own = plan.open_sinks(camera.state or camera.name, shared=shared)
            opened += own
            recorder = None if path is None else Recorder(path, waits=not is_live(str(camera.source)))
            opened += [] if recorder is None else [recorder]
            told = (*own, *sinks, *([] if recorder is None else [recorder]))
            found.append(replace(camera, sinks=told, watch=None if recorder is None else recorder.watch))
    except BaseException:
        for sink in opened:
            sink.close(0.0)
        raise
    return found
