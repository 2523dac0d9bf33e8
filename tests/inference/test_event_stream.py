"""Frames lie 0.1 s apart; an event is told at most one frame off, since the model remembers a little."""

import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.bright_model import blinking, bright_model, write_blinking
from torch import Tensor

from kinescan.data.video import Reconnect, VideoReader, write_video
from kinescan.errors import CheckpointError, ConfigError, VideoError
from kinescan.events.rules import ClassRules, EventRules
from kinescan.events.sinks import Calls, JsonLines
from kinescan.events.told import Told
from kinescan.inference import event_stream as module
from kinescan.inference.event_stream import EventStream, stream_events
from kinescan.inference.segments import predict_events
from kinescan.inference.stream import StreamPrediction, StreamSession
from kinescan.inference.stream_state import load_stream_events, load_stream_state, save_stream_state
from kinescan.inference.streams import Camera, stream_many
from kinescan.models.pks4 import PKS4

RULES = EventRules(least_seconds=0.2, merge_seconds=0.2)


@pytest.fixture(scope="module")
def model() -> PKS4:
    return bright_model()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blinking(tmp_path_factory.mktemp("video") / "a.mp4", 10, 12, 10, 8, 6)


def _said(told: list[Told]) -> list[tuple[str, float, float | None]]:
    return [
        (
            record.update.kind,
            round(record.update.event.start_seconds, 3),
            record.update.event.end_seconds and round(record.update.event.end_seconds, 3),
        )
        for record in told
    ]


SAID = [("start", 1.0, None), ("end", 1.0, 2.2), ("start", 3.2, None), ("end", 3.2, 4.0)]


def test_tells_what_happens_in_a_file_and_its_sinks(model: PKS4, video: Path, tmp_path: Path) -> None:
    told = list(stream_events(model, video, rules=RULES, sinks=[JsonLines(tmp_path / "a.jsonl")]))
    assert _said(told) == SAID
    assert [record.sequence for record in told] == [1, 2, 3, 4]
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [
        record.to_plain() for record in told
    ]
    assert told[0].start_time is None


@pytest.mark.parametrize("name", ["a.ts", "a.mkv"])
@pytest.mark.parametrize("is_live", [False, True])
def test_events_are_counted_from_the_first_frame_wherever_the_clock_starts(
    model: PKS4, tmp_path: Path, name: str, is_live: bool
) -> None:
    pixels = blinking(10, 12, 10, 8, 6)
    late = torch.arange(len(pixels), dtype=torch.float64) / 10 + (0.0 if name == "a.ts" else 700.5)
    write_video(tmp_path / name, pixels, fps=10, pts_seconds=late)
    with VideoReader(tmp_path / name) as video:
        assert float(video.pts_seconds[0]) > 0.1
    source = f"file://{tmp_path / name}" if is_live else tmp_path / name
    shown: list[float] = []
    told = list(stream_events(model, source, rules=RULES, watch=lambda pixels, seconds: shown.append(seconds)))
    assert _said(told) == SAID
    assert (round(shown[0], 3), round(shown[-1], 3)) == (0.0, 4.5)
    assert _said(list(stream_events(model, source, rules=RULES, every=1))) == SAID
    if not is_live:
        found = predict_events(model, tmp_path / name, rules=RULES)[0]
        assert _said(list(found.events)) == [entry for entry in SAID if entry[0] == "end"]
        assert found.end_seconds == pytest.approx(4.6, abs=0.002)


def test_an_event_that_goes_on_ends_with_the_source(model: PKS4) -> None:
    pixels = blinking(5, 10)
    told = list(stream_events(model, [(frame, t / 10) for t, frame in enumerate(pixels)], rules=RULES))
    assert _said(told) == [("start", 0.5, None), ("end", 0.5, 1.5)]


def test_frames_need_times(model: PKS4) -> None:
    with pytest.raises(ConfigError, match="time"):
        list(stream_events(model, blinking(3), rules=RULES))


def test_rules_of_another_class_are_refused_before_anything_is_read(model: PKS4) -> None:
    with pytest.raises(ConfigError, match="dark"):
        stream_events(model, "missing.mp4", rules=EventRules(classes={"dark": ClassRules(on=0.9)}))


@pytest.mark.parametrize("cut", [3, 11, 13, 17, 22, 25, 33, 36, 41])
def test_a_kill_anywhere_tells_nothing_twice_and_loses_nothing(
    model: PKS4, video: Path, tmp_path: Path, cut: int
) -> None:
    """The kill: what was written until then is copied away, and the next run goes on from the copy."""
    state, file = tmp_path / "state", tmp_path / "a.jsonl"
    first = stream_events(model, video, rules=RULES, sinks=[JsonLines(file)], state=state, watch=_stop_at(cut))
    with pytest.raises(_Killed) as killed:
        list(first)
    if killed.value.state is None:
        state.unlink()
    else:
        state.write_bytes(killed.value.state)
    file.write_bytes(killed.value.told)
    rest = list(stream_events(model, video, rules=RULES, sinks=[JsonLines(file)], state=state))
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(record["kind"], record["start_seconds"], record["end_seconds"]) for record in records] == SAID
    assert [record["sequence"] for record in records] == [1, 2, 3, 4]
    assert records[0]["id"] == records[1]["id"] != records[2]["id"] == records[3]["id"]
    assert len(rest) <= 4


class _Killed(BaseException):
    state: bytes | None = None
    told: bytes = b""


def _stop_at(cut: int) -> Any:
    """Raises at a frame, with what files hold at that moment."""
    seen = 0

    def watch(frame: torch.Tensor, seconds: float) -> None:
        nonlocal seen
        seen += 1
        if seen == cut:
            # the threads that write are a little behind, as they are in a process that is killed
            time.sleep(0.05)
            killed, folder = _Killed(), Path(os.environ["KINESCAN_TEST_FOLDER"])
            killed.state = (folder / "state").read_bytes() if (folder / "state").exists() else None
            killed.told = (folder / "a.jsonl").read_bytes()
            raise killed

    return watch


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINESCAN_TEST_FOLDER", str(tmp_path))


def test_a_file_seen_to_its_end_is_read_anew(model: PKS4, video: Path, tmp_path: Path) -> None:
    first = list(stream_events(model, video, rules=RULES, state=tmp_path / "state"))
    second = list(stream_events(model, video, rules=RULES, state=tmp_path / "state"))
    assert len(first) == len(second) == 4
    assert not {record.key for record in first} & {record.key for record in second}


def test_every_second_frame_goes_on_where_it_was(model: PKS4, video: Path, tmp_path: Path) -> None:
    whole: list[Told] = list(stream_events(model, video, rules=RULES, every=2))
    first = stream_events(model, video, rules=RULES, every=2, state=tmp_path / "state")
    head = [next(first)]
    first.close()
    assert load_stream_events(tmp_path / "state") is not None
    rest = list(stream_events(model, video, rules=RULES, every=2, state=tmp_path / "state"))
    assert _said(head + rest) == _said(whole)
    assert load_stream_state(tmp_path / "state").frames_seen == 23


def test_without_a_state_a_stream_broken_off_ends_its_events(model: PKS4, tmp_path: Path) -> None:
    told: list[Told] = []
    stream = stream_events(
        model,
        [(frame, t / 10) for t, frame in enumerate(blinking(5, 10, 5))],
        rules=RULES,
        sinks=[Calls("test", told.append)],
    )
    next(stream)
    stream.close()
    assert [record.update.kind for record in told] == ["start", "end"]


def _live(model: PKS4, path: Path, told: list[Told]) -> EventStream:
    session = StreamSession(model)
    return EventStream(
        session, RULES, [Calls("test", told.append)], source="rtsp://me:secret@camera/1", is_live=True, path=path
    )


def _push(events: EventStream, seconds: float, *, bright: bool) -> list[Told]:
    logits = torch.tensor([0.0, 5.0 if bright else -5.0])
    return events.push(
        StreamPrediction(frame_index=0, seconds=seconds, labels=("bright",), scores=(0.9,), logits=logits)
    )


def test_a_live_source_goes_on_by_the_wall_clock(model: PKS4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000.0005
    monkeypatch.setattr(module.time, "time", lambda: now)
    told: list[Told] = []
    events = _live(model, tmp_path / "state", told)
    for frame in range(5):
        now += 0.1
        _push(events, 50.0 + frame / 10, bright=True)
    events.close()
    # the camera's clock begins anew, a second later
    now += 1.0
    again: list[Told] = []
    events = _live(model, tmp_path / "state", again)
    assert _push(events, 0.0, bright=True) == []
    for frame in range(1, 5):
        now += 0.1
        _push(events, frame / 10, bright=False)
    events.close()
    start, end = told[0], again[0]
    assert start.update.event.id == end.update.event.id
    assert end.update.event.end_seconds == pytest.approx(51.5)
    assert start.source == "rtsp://***@camera/1"
    assert start.start_time == end.start_time == "2023-11-14T22:13:20.100Z"
    assert end.end_time == "2023-11-14T22:13:21.600Z"
    assert end.told_at_time == "2023-11-14T22:13:21.800Z"


def test_the_wall_time_of_an_end_is_that_of_its_frame(
    model: PKS4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_700_000_000.0005
    monkeypatch.setattr(module.time, "time", lambda: now)
    told: list[Told] = []
    events = _live(model, tmp_path / "state", told)
    for frame in range(5):
        now += 0.1
        _push(events, 50.0 + frame / 10, bright=True)
    # for eight seconds the camera was tried again
    now += 8.0
    events.finish()
    events.close()
    end = told[1]
    assert (end.end_time, end.told_at_time) == ("2023-11-14T22:13:20.600Z", "2023-11-14T22:13:28.500Z")


def test_a_live_source_that_was_away_for_long_ends_its_event_where_it_was_left(
    model: PKS4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_700_000_000.0005
    monkeypatch.setattr(module.time, "time", lambda: now)
    told: list[Told] = []
    events = _live(model, tmp_path / "state", told)
    for frame in range(5):
        _push(events, 50.0 + frame / 10, bright=True)
    events.close()
    now += 7200.0
    events = _live(model, tmp_path / "state", told)
    end = _push(events, 0.0, bright=True)[0]
    events.close()
    assert (end.update.kind, end.update.event.end_seconds) == ("end", pytest.approx(50.4))
    assert end.update.told_at_seconds == pytest.approx(7250.4)


class Leaving:
    """A camera that gives six bright frames, 0.1 s apart, and is not there any more."""

    ends_by_itself = False
    was_there = False

    def __init__(self, source: str, **_: Any) -> None:
        if Leaving.was_there:
            raise VideoError(source, "is not there.")
        Leaving.was_there = True

    def __enter__(self) -> Iterator[tuple[Tensor, float]]:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __iter__(self) -> Iterator[tuple[Tensor, float]]:
        return ((frame, t / 10) for t, frame in enumerate(blinking(0, 6)))


@pytest.mark.parametrize("many", [False, True])
def test_the_end_is_told_while_a_camera_that_broke_off_is_waited_for(
    model: PKS4, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    """A gap after its last frame, and not when it is given up or comes back."""
    monkeypatch.setattr("kinescan.data.video.reconnecting.LiveVideo", Leaving)
    monkeypatch.setattr(Leaving, "was_there", False)
    rules, patient = replace(RULES, gap_seconds=0.5), Reconnect(limit_seconds=60, first_wait_seconds=60)
    told: list[Told] = []
    at: list[float] = []
    done = threading.Event()

    def take(record: Told) -> None:
        told.append(record)
        at.append(time.monotonic())
        if record.update.kind == "end":
            done.set()

    if many:
        cameras = [
            Camera(name="a", source="rtsp://a", rules=rules, sinks=[Calls("test", take)], reconnect=patient),
            Camera(name="b", source=_until(done)),
        ]
        for _ in (predictions := stream_many(model, cameras)):
            if done.is_set():
                predictions.close()
    else:
        for record in (stream := stream_events(model, "rtsp://a", rules=rules, reconnect=patient)):
            take(record)
            if done.is_set():
                stream.close()
    assert [record.update.kind for record in told] == ["start", "end"]
    assert told[1].update.event.end_seconds == pytest.approx(0.5)
    assert 0.5 < told[1].update.told_at_seconds - 0.5 < 30
    assert at[1] - at[0] < 30


def _until(done: threading.Event) -> Iterator[tuple[Tensor, float]]:
    for index in itertools.count():
        yield blinking(1)[0], index / 10
        if done.wait(0.1):
            return


def test_the_state_is_written_while_an_event_goes_on(
    model: PKS4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_OPEN_STATE_SECONDS", 0.0)
    told: list[Told] = []
    events = _live(model, tmp_path / "state", told)
    for frame in range(10):
        _push(events, frame / 10, bright=True)
    deadline = time.monotonic() + 10
    while not (tmp_path / "state").exists() or load_stream_events(tmp_path / "state")["last"]["seconds"] < 0.85:  # type: ignore[index]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    events.close()


def test_a_stream_left_with_an_open_event_says_so(
    model: PKS4, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events = _live(model, tmp_path / "state", [])
    with caplog.at_level(logging.INFO):
        for frame in range(5):
            _push(events, frame / 10, bright=True)
        events.close()
    assert "1 event(s) continue" in caplog.text
    assert "secret" not in caplog.text


def test_a_state_without_events_begins_anew(model: PKS4, video: Path, tmp_path: Path) -> None:
    session = StreamSession(model)
    session.push(blinking(1)[0])
    save_stream_state(session.state, tmp_path / "state", model=model)
    assert load_stream_events(tmp_path / "state") is None
    assert _said(list(stream_events(model, video, rules=RULES, state=tmp_path / "state"))) == SAID


@pytest.mark.parametrize(
    "events", [{}, {"detector": 3}, {"detector": {"classes": ["a"]}}, {"pending": [{}]}, {"last": {"seconds": 1.0}}]
)
def test_damaged_events_in_a_state_are_refused(
    model: PKS4, video: Path, tmp_path: Path, events: dict[str, Any]
) -> None:
    stream = stream_events(model, video, rules=RULES, state=tmp_path / "state")
    next(stream)
    stream.close()
    whole = load_stream_events(tmp_path / "state")
    assert whole is not None
    damaged = whole | events if events else {}
    save_stream_state(load_stream_state(tmp_path / "state"), tmp_path / "state", model=model, events=damaged)
    with pytest.raises(CheckpointError):
        stream_events(model, video, rules=RULES, state=tmp_path / "state")
