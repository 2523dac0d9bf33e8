import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from tests.events.conftest import MakeTold

from kinescan.data.video import VideoReader
from kinescan.errors import ConfigError
from kinescan.events import recording as module
from kinescan.events.drawing import Timeline
from kinescan.events.recording import Recorder

GREY = torch.full((3, 40, 64), 128, dtype=torch.uint8)
ORANGE = np.array([0xE6, 0x9F, 0x00])


def _record(recorder: Recorder, num_frames: int, *, fps: float = 10.0, frame: torch.Tensor = GREY) -> None:
    for index in range(num_frames):
        recorder.watch(frame, index / fps)


def _times(path: Path) -> list[float]:
    with VideoReader(path) as reader:
        return [round(seconds, 3) for _, seconds in reader]


def test_every_frame_is_there_at_its_time_with_the_timeline_below(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.mp4", waits=True)
    _record(recorder, 25)
    recorder.close(10.0)
    assert recorder.files == [tmp_path / "a.mp4"]
    assert _times(tmp_path / "a.mp4") == pytest.approx([index / 10 for index in range(25)])
    with VideoReader(tmp_path / "a.mp4") as reader:
        pixels = next(iter(reader))[0]
    # 64 x 40, made 320 wide, and the strip
    assert tuple(pixels.shape)[2] == 320
    assert pixels.shape[1] > 200
    assert abs(float(pixels[:, 60:190].float().mean()) - 128) < 6


def test_an_event_is_drawn_from_when_it_was_told_until_its_end(make_told: MakeTold) -> None:
    timeline, pixels = Timeline(), np.full((200, 320, 3), 128, dtype=np.uint8)

    def orange(seconds: float) -> tuple[int, int]:
        drawn = timeline.draw(pixels, seconds)
        is_orange = (drawn == ORANGE).all(-1)
        return int(is_orange[:200].sum()), int(is_orange[200:].sum())

    assert orange(1.0) == (0, 0)
    timeline.add(make_told(3))
    label, begun = orange(3.0)
    assert label > 100
    assert begun > 0
    assert orange(9.0)[1] > begun
    timeline.add(make_told(3, "end"))
    label, bar = orange(9.0)
    assert label == 0
    assert bar > 0
    assert orange(12.0)[1] == pytest.approx(bar, rel=0.2)
    assert orange(100.0) == (0, 0)


def test_what_is_told_ahead_of_the_frames_waits_for_them(tmp_path: Path, make_told: MakeTold) -> None:
    recorder = Recorder(tmp_path / "a.mp4", waits=True)
    recorder.deliver(make_told(1))
    _record(recorder, 40)
    recorder.close(10.0)
    with VideoReader(tmp_path / "a.mp4") as reader:
        # its end told at 2.0 s
        orange = [
            bool((np.abs(pixels[:, :40].permute(1, 2, 0).numpy().astype(int) - ORANGE) < 40).all(-1).sum() > 100)
            for pixels, _ in reader
        ]
    assert orange == [False] * 20 + [True] * 20


def test_a_kill_leaves_a_file_that_can_be_played(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.mp4", waits=True)
    _record(recorder, 65)
    _until(lambda: recorder._entries.empty())
    # as a kill leaves it: what is on the disk, and no end
    (tmp_path / "killed.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    recorder.close(10.0)
    with av.open(str(tmp_path / "killed.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 40
    again = Recorder(tmp_path / "a.mp4", waits=True)
    _record(again, 3)
    again.close(10.0)
    assert again.files == [tmp_path / "a-2.mp4"]
    assert len(_times(tmp_path / "a.mp4")) == 65


def test_frames_of_another_size_and_clocks_that_jump(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.mp4", waits=True)
    for seconds in (0.0, 0.1, 7200.0, 7200.1, 5.0, 5.0, 5.1):
        recorder.watch(GREY, seconds)
    recorder.watch(torch.full((3, 50, 64), 9, dtype=torch.uint8), 5.2)
    recorder.close(10.0)
    assert recorder.files == [tmp_path / "a.mp4", tmp_path / "a-2.mp4"]
    assert _times(tmp_path / "a.mp4") == pytest.approx([0.0, 0.1, 0.14, 0.24, 0.28, 0.32, 0.42])


def test_a_live_stream_is_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    draw = Timeline.draw

    def slow(*arguments: Any) -> Any:
        time.sleep(0.02)
        return draw(*arguments)

    monkeypatch.setattr(Timeline, "draw", slow)
    recorder = Recorder(tmp_path / "a.mp4")
    begun = time.monotonic()
    _record(recorder, 300)
    assert time.monotonic() - begun < 2
    recorder.close(20.0)
    kept = len(_times(tmp_path / "a.mp4"))
    assert kept + recorder.num_left_out == 300
    assert recorder.num_left_out > 0
    assert f"{recorder.num_left_out} frames" in caplog.text


def test_a_full_disk_ends_the_recording_and_it_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.05)
    add, calls = module._VideoFile.add, []

    def full(file: Any, pixels: Any, seconds: float) -> None:
        calls.append(seconds)
        if 5 < len(calls) < 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(file, pixels, seconds)

    monkeypatch.setattr(module._VideoFile, "add", full)
    recorder = Recorder(tmp_path / "a.mp4", waits=True)
    with caplog.at_level(logging.WARNING):
        for index in range(40):
            recorder.watch(GREY, index / 10)
            time.sleep(0.01)
        recorder.close(10.0)
    assert caplog.text.count("No space") == 2
    assert _times(tmp_path / "a.mp4") == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert len(_times(recorder.files[-1])) > 5
    assert recorder.num_left_out == 40 - sum(len(_times(path)) for path in recorder.files)
    assert sorted(tmp_path.iterdir()) == sorted(recorder.files)


@pytest.mark.parametrize("name", ["a.txt", "a", "missing/a.mp4"])
def test_what_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=name.split("/")[0]):
        Recorder(tmp_path / name)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)
