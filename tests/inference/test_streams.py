import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kinescan.data.video import Reconnect, write_video
from kinescan.errors import ConfigError, VideoError
from kinescan.events.rules import EventRules
from kinescan.events.sinks import Calls
from kinescan.inference import Camera, load_stream_state, stream_many
from kinescan.inference.streams import check_cameras
from kinescan.models.pks4 import PKS4
from kinescan.models.timing import FrameTiming
from kinescan.models.zoo import create_model

SIZES = {"patch_size": 16, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 16, "embed_dim": 16, "insert_after": 1}
NOWHERE = "tcp://127.0.0.1:9"


@pytest.fixture(scope="module")
def model() -> PKS4:
    torch.manual_seed(0)
    found = create_model(
        "pks4_vit_ti16", labels=["a", "b"], image_size=32, kinematic_width=8, window=3, causal=True, **SIZES
    )
    assert isinstance(found, PKS4)
    return found


def frames(
    num_frames: int, pause_seconds: float = 0.0, stop: threading.Event | None = None
) -> Iterator[tuple[Tensor, float]]:
    for index in range(num_frames):
        if pause_seconds and (stop or threading.Event()).wait(pause_seconds):
            return
        yield torch.full((3, 32, 32), index % 250, dtype=torch.uint8), index / 10


def test_a_camera_that_stalls_or_is_dead_holds_up_no_other(model, caplog):
    """One stalls after its first frame until the fast one has ended; one was never there."""
    stop = threading.Event()

    def stalls() -> Iterator[tuple[Tensor, float]]:
        yield from frames(1)
        stop.wait(30)
        yield torch.zeros(3, 32, 32, dtype=torch.uint8), 0.1

    quick = Reconnect(limit_seconds=0.1, first_wait_seconds=0.2, longest_wait_seconds=0.2)
    cameras = [
        Camera(name="stalls", source=stalls()),
        Camera(name="dead", source=NOWHERE, reconnect=quick),
        Camera(name="fast", source=frames(30)),
    ]
    counts = {"stalls": 0, "fast": 0, "dead": 0}
    started = time.monotonic()

    def watch() -> None:
        for found in stream_many(model, cameras, top=1):
            counts[found.camera or ""] += 1
            if counts["fast"] == 30:
                stop.set()

    with caplog.at_level(logging.WARNING), pytest.raises(VideoError, match=NOWHERE):
        watch()
    assert counts == {"stalls": 2, "fast": 30, "dead": 0}
    assert time.monotonic() - started < 20
    # given up only when the others were gone
    assert "dead" in caplog.text
    assert "(try 1)" in caplog.text


def test_each_camera_gives_what_it_gives_alone(model):
    cameras = [Camera(name="one", source=list(frames(9))), Camera(name="two", source=list(frames(5)))]
    logits: dict[str | None, list[Tensor]] = {"one": [], "two": []}
    for found in stream_many(model, cameras):
        logits[found.camera].append(found.logits)
    for camera in cameras:
        alone = [found.logits for found in stream_many(model, [camera])]
        torch.testing.assert_close(torch.stack(logits[camera.name]), torch.stack(alone), atol=1e-5, rtol=0)


def test_none_that_can_be_opened_is_an_error_at_once(model):
    cameras = [
        Camera(name="door", source=NOWHERE),
        Camera(name="yard", source="http://127.0.0.1:9/a?key=geheim"),
        Camera(name="file", source="no.mp4"),
    ]
    started = time.monotonic()
    with pytest.raises(VideoError, match=r"door: .*yard: ") as caught:
        list(stream_many(model, cameras))
    assert "geheim" not in str(caught.value)
    assert time.monotonic() - started < 10


def test_every_state_is_written_when_it_is_broken_off(model, tmp_path):
    cameras = [
        Camera(name=name, source=frames(10**6, 0.01), state=tmp_path / f"{name}.state") for name in ("door", "yard")
    ]
    found = stream_many(model, cameras)
    seen = {next(found).camera for _ in range(20)}
    found.close()
    assert seen == {"door", "yard"}
    first = {name: load_stream_state(tmp_path / f"{name}.state").frames_seen for name in seen}
    assert sum(first.values()) >= 20
    again = stream_many(model, [Camera(name="door", source=frames(3), state=tmp_path / "door.state")])
    assert len(list(again)) == 3
    assert load_stream_state(tmp_path / "door.state").frames_seen == first["door"] + 3


@pytest.mark.parametrize(("away", "frames_seen"), [(1.0, 12), (7200.0, 6)])
def test_a_camera_restarted_after_a_pause_follows_the_rule_for_pauses(model, tmp_path, monkeypatch, away, frames_seen):
    now = 1_700_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(model, "timing", FrameTiming(median_seconds=0.1, shortest_seconds=0.1, longest_seconds=0.1))
    write_video(tmp_path / "a.ts", torch.zeros(6, 3, 32, 32, dtype=torch.uint8), fps=10)
    source, never = f"file://{tmp_path / 'a.ts'}", Reconnect(limit_seconds=0)
    camera = Camera(name="door", source=source, state=tmp_path / "state", reconnect=never)
    list(stream_many(model, [camera]))
    now += away
    list(stream_many(model, [camera]))
    assert load_stream_state(tmp_path / "state").frames_seen == frames_seen


def test_a_state_that_cannot_be_written_costs_no_other(model, tmp_path, monkeypatch):
    cameras = [Camera(name=name, source=frames(3), state=tmp_path / f"{name}.state") for name in ("door", "yard")]
    found = stream_many(model, cameras)
    next(found)
    (tmp_path / "door.state").mkdir()
    with pytest.raises(Exception, match=r"door\.state"):
        list(found)
    assert load_stream_state(tmp_path / "yard.state").frames_seen == 3


def test_events_carry_the_cameras_name(model):
    told: list[tuple[str, str]] = []
    sink = Calls("test", lambda record: told.append((record.source, record.update.kind)))
    rules = EventRules(on=0.1, off=0.05)
    cameras = [
        Camera(name="door", source=frames(5), rules=rules, sinks=(sink,)),
        Camera(name="yard", source=frames(5), rules=rules, sinks=(sink,)),
        Camera(name="hall", source=frames(5)),
    ]
    list(stream_many(model, cameras))
    assert set(told) == {(name, kind) for name in ("door", "yard") for kind in ("start", "end")}


@pytest.mark.parametrize("fails", [False, True])
def test_without_a_state_a_camera_that_fails_or_is_broken_off_ends_its_events(model, fails):
    told = []

    def breaks_off() -> Iterator[tuple[Tensor, float]]:
        yield from frames(5)
        if fails:
            raise VideoError("a", "broke off.")
        yield from frames(100, 0.05)

    rules = EventRules(on=0.01, least_seconds=0.2)
    camera = Camera(name="a", source=breaks_off(), rules=rules, sinks=[Calls("test", told.append)])
    predictions = stream_many(model, [camera])
    if fails:
        with pytest.raises(VideoError):
            list(predictions)
    else:
        for _ in range(5):
            next(predictions)
        predictions.close()
    assert sorted(record.update.kind for record in told) == ["end", "end", "start", "start"]


@pytest.mark.parametrize(
    ("cameras", "match"),
    [
        ([], "camera"),
        ([Camera(name="Door", source="a.mp4"), Camera(name="door", source="b.mp4")], "Door.*door.*name"),
        ([Camera(name="a", source="a.mp4"), Camera(name="b", source="a.mp4")], "'a'.*'b'.*source"),
        (
            [Camera(name="a", source="a.mp4", state="s"), Camera(name="b", source="b.mp4", state=Path("s"))],
            "'a'.*'b'.*state",
        ),
    ],
)
def test_no_two_cameras_are_alike(cameras, match):
    with pytest.raises(ConfigError, match=match):
        check_cameras(cameras)
