from pathlib import Path

import numpy as np
import pytest
import torch

from kinescan.data.timestamps import timed_frames
from kinescan.data.video import VideoReader, write_video


def _write(path: Path, count: int, fps: float) -> Path:
    write_video(path, torch.zeros(count, 3, 16, 16, dtype=torch.uint8), fps=fps)
    return path


def test_without_a_rate_every_frame_is_taken_at_its_own_time(tmp_path: Path) -> None:
    with VideoReader(_write(tmp_path / "a.mp4", 7, 5)) as video:
        frames = timed_frames(video, 0)
    assert frames.positions.tolist() == list(range(7))
    np.testing.assert_allclose(frames.seconds, np.arange(7) / 5)
    assert (len(frames), frames.end_seconds) == (7, 1.4)


@pytest.mark.parametrize("rate", [0, 5, 20])
@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.mp4"])
def test_times_are_counted_from_the_first_frame(tmp_path: Path, name: str, rate: float) -> None:
    late = torch.arange(20, dtype=torch.float64) / 10 + (0.0 if name == "a.ts" else 1.5)
    write_video(tmp_path / name, torch.zeros(20, 3, 16, 16, dtype=torch.uint8), fps=10, pts_seconds=late)
    with VideoReader(tmp_path / name) as video:
        assert float(video.pts_seconds[0]) > 0.1
        frames = timed_frames(video, rate)
    with VideoReader(_write(tmp_path / "b.mp4", 20, 10)) as video:
        expected = timed_frames(video, rate)
    assert frames.positions.tolist() == expected.positions.tolist()
    np.testing.assert_allclose(frames.seconds, expected.seconds, atol=2e-3)
    assert frames.seconds[0] == 0
    assert frames.end_seconds == pytest.approx(expected.end_seconds, abs=2e-3)


def test_a_file_with_fewer_frames_repeats_them_at_later_times(tmp_path: Path) -> None:
    with VideoReader(_write(tmp_path / "a.mp4", 4, 5)) as video:
        frames = timed_frames(video, 10)
    assert frames.positions.tolist() == [0, 0, 1, 1, 2, 2, 3]
    np.testing.assert_allclose(frames.seconds, np.arange(7) / 10)


def test_nothing_is_repeated_over_a_jump_of_the_clock(tmp_path: Path) -> None:
    seconds = torch.arange(40, dtype=torch.float64) / 10
    seconds[20:] += 7200
    write_video(tmp_path / "a.mkv", torch.zeros(40, 3, 16, 16, dtype=torch.uint8), fps=10, pts_seconds=seconds)
    with VideoReader(tmp_path / "a.mkv") as video:
        frames = timed_frames(video, 5)
    assert (frames.starts, frames.lengths) == ((0, 10), [10, 10])
    assert frames.positions.tolist() == list(range(0, 40, 2))
    np.testing.assert_allclose(frames.seconds[[9, 10]], [1.8, 7202.0], atol=1e-3)


def test_times_never_run_backwards_at_odd_rates(tmp_path: Path) -> None:
    with VideoReader(_write(tmp_path / "a.mp4", 50, 29.97)) as video:
        for rate in (7.3, 12.5, 25, 31, 100):
            frames = timed_frames(video, rate)
            assert (np.diff(frames.seconds) >= 0).all()
            np.testing.assert_allclose(frames.seconds, np.arange(len(frames)) / rate, atol=0.5 / 29.97 + 1e-3)
