"""Frames of few videos are decoded once, and not again in the next run, whatever happens to their folder."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kinescan.data import AugmentConfig, TrainTransform, VideoItem, disk_cache, kept_frames, write_video
from kinescan.data.intervals import Interval, IntervalVideo
from kinescan.data.memory import VideoMemory
from kinescan.data.video import Frames
from kinescan.data.window_dataset import WindowDataset, measure_videos
from kinescan.preprocessing import Preprocessing

SETTINGS = Preprocessing(num_frames=4, size=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
RATED = Preprocessing(num_frames=4, size=16, sampling="rate", frame_rate=5.0)


@pytest.fixture
def items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[VideoItem]:
    monkeypatch.setenv(disk_cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    disk_cache._told.clear()
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        write_video(tmp_path / f"{seed}.mp4", torch.randint(0, 256, (20, 3, 40, 48), generator=draw).byte(), fps=10)
    (tmp_path / "text.mp4").write_text("no video")
    return [VideoItem(tmp_path / name, 0, name) for name in ("0.mp4", "1.mp4", "2.mp4", "text.mp4")]


def _memory(items: list[VideoItem], **changes: Any) -> VideoMemory:
    given = {"preprocessing": SETTINGS, "kept_frames": 8, **changes}
    return VideoMemory(items, ("a", "b"), TrainTransform(given["preprocessing"], AugmentConfig()), **given)


def _windows(items: list[VideoItem], settings: Preprocessing = RATED) -> WindowDataset:
    event = {"label": "x", "start_seconds": 0.2, "end_seconds": 1.0}
    videos = [IntervalVideo(item.path, item.video_id, (Interval(video_id=item.video_id, **event),)) for item in items]
    measured = measure_videos(videos, settings)
    transform = TrainTransform(settings, AugmentConfig())
    return WindowDataset(measured, ("background", "x"), transform, preprocessing=settings, kept_gib=1.0)


def _filled(dataset: VideoMemory | WindowDataset, **given: Any) -> list[torch.Tensor | str]:
    dataset.fill(**given)
    assert dataset._kept is not None
    return [kept.pixels if isinstance(kept, Frames) else kept.reason for kept in dataset._kept]


def _count(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The videos that are decoded from now on."""
    decoded: list[str] = []
    for owner in (VideoMemory, WindowDataset):
        plain = owner._open

        def opened(self: Any, video: Any, plain: Any = plain) -> Any:
            decoded.append(str(video))
            return plain(self, video)

        monkeypatch.setattr(owner, "_open", opened)
    return decoded


def _equal(one: list[torch.Tensor | str], other: list[torch.Tensor | str]) -> bool:
    return len(one) == len(other) and all(
        a == b if isinstance(a, str) or isinstance(b, str) else torch.equal(a, b)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("make", [_memory, _windows])
def test_the_next_run_decodes_nothing(make: Any, items: list[VideoItem], monkeypatch: pytest.MonkeyPatch) -> None:
    first = _filled(make(items))
    decoded = _count(monkeypatch)
    again = _filled(make(items))
    assert _equal(first, again)
    # one that cannot be read is tried every time
    assert len(decoded) == (1 if make is _memory else 0)
    monkeypatch.setenv(disk_cache.CACHE_VARIABLE, "off")
    assert _equal(_filled(make(items)), first)


@pytest.mark.parametrize(
    "changes", [{"kept_frames": 9}, {"allow_short": True}, {"preprocessing": Preprocessing(num_frames=4, size=20)}]
)
def test_other_settings_have_frames_of_their_own(
    changes: dict[str, Any], items: list[VideoItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    _filled(_memory(items))
    decoded = _count(monkeypatch)
    _filled(_memory(items, **changes))
    assert len(decoded) == 4


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2000])


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("change", [_cut, _flip, lambda file: file.write_bytes(b""), Path.unlink])
def test_what_is_damaged_is_made_anew_and_said_once(
    change: Any, items: list[VideoItem], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = _filled(_memory(items))
    cache = kept_frames.frame_cache()
    assert cache is not None
    files = sorted(cache.folder.rglob("*.npz"))
    assert len(files) == 3
    for file in files:
        change(file)
    decoded = _count(monkeypatch)
    with caplog.at_level(logging.INFO):
        assert _equal(_filled(_memory(items)), first)
    assert len(decoded) == 4
    assert sum("made anew" in record.message for record in caplog.records) == (change is not Path.unlink)
    assert _equal(_filled(_memory(items)), first)
    assert len(decoded) == 5


def test_a_video_that_changed_and_another_version_are_decoded(
    items: list[VideoItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _filled(_memory(items))
    shutil.copy(items[1].path, items[0].path)
    again = _filled(_memory(items))
    assert isinstance(again[0], torch.Tensor)
    assert isinstance(first[1], torch.Tensor)
    assert torch.equal(again[0], first[1])
    monkeypatch.setattr(kept_frames, "FORMAT", "other")
    decoded = _count(monkeypatch)
    assert _equal(_filled(_memory(items)), again)
    assert len(decoded) == 4


def test_a_full_disk_keeps_nothing_and_says_it(
    items: list[VideoItem], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kept_frames, "_MOST_OF_FREE", 0.0)
    with caplog.at_level(logging.INFO):
        assert len(_filled(_memory(items))) == 4
    cache = kept_frames.frame_cache()
    assert cache is not None
    assert not cache.folder.exists()
    assert sum(str(cache.folder) in record.message for record in caplog.records) == 1


def test_processes_begin_at_different_videos(items: list[VideoItem], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    decoded = _count(monkeypatch)
    both = [_filled(_memory(items), process=(index, 2)) for index in range(2)]
    assert _equal(*both)
    monkeypatch.setenv(disk_cache.CACHE_VARIABLE, "off")
    decoded.clear()
    assert _equal(_filled(_memory(items), process=(1, 2)), both[0])
    assert [name in entry for name, entry in zip(("2.mp4", "text", "0.mp4", "1.mp4"), decoded, strict=True)] == [
        True
    ] * 4


def test_a_file_that_a_killed_process_left_is_removed(items: list[VideoItem]) -> None:
    _filled(_memory(items))
    cache = kept_frames.frame_cache()
    assert cache is not None
    [file, *_] = cache.folder.rglob("*.npz")
    old, new = file.with_name(".x.1-2.part.npz"), file.with_name(".x.3-4.part.npz")
    for left in (old, new):
        left.touch()
    os.utime(old, (1, 1))
    assert (cache.remove_left_over(), old.exists(), new.exists(), file.exists()) == (1, False, True, True)
