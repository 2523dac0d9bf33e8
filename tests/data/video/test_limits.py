import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from kinescan.data.video import Limits, VideoReader, inspect_video, limits
from kinescan.errors import ConfigError, VideoError


@pytest.mark.parametrize(
    ("name", "value"), [("timeout_seconds", 0), ("timeout_seconds", float("nan")), ("max_pixels", 0)]
)
def test_limits_must_make_sense(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        Limits(**{name: value})  # type: ignore[arg-type]


def test_large_files_have_longer() -> None:
    assert Limits(timeout_seconds=10).seconds_for(0) == 10
    assert Limits(timeout_seconds=10).seconds_for(10**9) == 10 + 10_000


def test_a_file_that_takes_too_long_is_an_error(
    make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video()
    monkeypatch.setattr(limits, "_BYTES_PER_SECOND", float("inf"))
    with pytest.raises(VideoError, match=r"longer than 1e-09 s.*data\.timeout_seconds"):
        VideoReader(path, limits=Limits(timeout_seconds=1e-9))
    found = inspect_video(path, limits=Limits(timeout_seconds=1e-9))
    assert found.problem == "unreadable"
    assert "data.timeout_seconds" in found.reason


def test_reading_that_takes_too_long_is_an_error(
    make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_BYTES_PER_SECOND", float("inf"))
    with VideoReader(make_video(), limits=Limits(timeout_seconds=50)) as video:
        real = time.monotonic
        ticks = iter(range(0, 10**6, 10))
        monkeypatch.setattr(limits.time, "monotonic", lambda: float(next(ticks)))
        with pytest.raises(VideoError, match=r"longer than 50 s"):
            video.read([19])
        with pytest.raises(VideoError, match=r"longer than 50 s"):
            video.fingerprint()
        monkeypatch.setattr(limits.time, "monotonic", real)
        # each read has its own time
        assert len(video.read([19]).pixels) == 1


def test_what_the_caller_does_in_between_does_not_count(
    make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_BYTES_PER_SECOND", float("inf"))
    now = 0.0
    monkeypatch.setattr(limits.time, "monotonic", lambda: now)
    with VideoReader(make_video(), limits=Limits(timeout_seconds=5)) as video:
        num_frames = 0
        for _ in video:
            now += 60
            num_frames += 1
    assert num_frames == 20


@pytest.mark.parametrize(("frame_seconds", "ends"), [(0.09, True), (0.5, False)])
def test_a_file_of_many_frames_may_be_read_for_longer_than_one_of_few(
    make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, frame_seconds: float, ends: bool
) -> None:
    """An hour's stream of a small file: what counts is that frames come."""
    monkeypatch.setattr(limits, "_BYTES_PER_SECOND", float("inf"))
    now = 0.0
    monkeypatch.setattr(limits.time, "monotonic", lambda: now)
    seen = 0
    with VideoReader(make_video(), limits=Limits(timeout_seconds=1)) as video:
        to_rgb = video._to_rgb

        def slowly(frame: Any) -> Any:
            nonlocal now
            now += frame_seconds
            return to_rgb(frame)

        monkeypatch.setattr(video, "_to_rgb", slowly)
        with nullcontext() if ends else pytest.raises(VideoError):
            for _ in video:
                seen += 1
    assert (seen == 20) == ends
