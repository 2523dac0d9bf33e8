import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.events_data import write_events

from kinescan.data.datasets import Sample
from kinescan.data.frame_labels import IGNORED
from kinescan.data.interval_listing import read_intervals
from kinescan.data.loader import Batch, LoaderConfig, make_loader
from kinescan.data.transforms import AugmentConfig, TrainTransform
from kinescan.data.video import write_video
from kinescan.data.window_dataset import WindowDataset, measure_videos
from kinescan.errors import ConfigError
from kinescan.preprocessing import Preprocessing

SETTINGS = Preprocessing(size=16, num_frames=6, sampling="rate", frame_rate=8.0)
PLAIN = AugmentConfig(
    crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), rand_augment_operations=0, color_jitter=0.0, erase_rate=0.0
)
LABELS = ("background", "blue", "red")


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(tmp_path_factory.mktemp("events"))


def _dataset(events: Path, augment: AugmentConfig = PLAIN, **options: Any) -> WindowDataset:
    table = read_intervals(events)
    options = {"classes": LABELS, **options}
    classes = options.pop("classes")
    return WindowDataset(
        measure_videos(table.videos, SETTINGS),
        classes,
        TrainTransform(SETTINGS, augment),
        preprocessing=SETTINGS,
        **options,
    )


def _batches(dataset: WindowDataset, epoch: int = 0, start: int = 0, **options: Any) -> list[Batch]:
    loader = make_loader(dataset, LoaderConfig(batch_size=2, num_workers=0), shuffle=True, seed=0, **options)
    loader.set_epoch(epoch, start_item=start)
    return list(loader)


def _colours(clip: torch.Tensor) -> list[int]:
    """What each frame shows, by its colour."""
    red, _, blue = clip.mean((2, 3)).unbind(1)
    return torch.where(red > 1, 2, torch.where(blue > 1, 1, 0)).tolist()


@pytest.mark.parametrize("num_rows", [0, 2])
@pytest.mark.parametrize("kept_gib", [0.0, 1.0])
def test_each_frame_of_a_window_has_the_label_of_what_it_shows(events: Path, num_rows: int, kept_gib: float) -> None:
    dataset = _dataset(events, num_rows=num_rows, kept_gib=kept_gib)
    assert dataset.in_memory == bool(kept_gib)
    shown = 0
    for batch in _batches(dataset):
        assert batch.labels.shape == (len(batch.item_indices), 6)
        assert batch.frame_seconds == [0.125] * len(batch.item_indices)
        for clip, labels in zip(batch.clips, batch.labels.tolist(), strict=True):
            shows = [IGNORED if label == IGNORED else c for c, label in zip(_colours(clip), labels, strict=True)]
            assert shows == labels
            shown += sum(label > 0 for label in labels)
    assert shown > 20


def test_rows_are_followed_and_say_where_they_start(events: Path) -> None:
    batches = _batches(_dataset(events, num_rows=2), epoch=1)
    assert batches[0].starts == [True, True]
    assert not all(any(batch.starts) for batch in batches)
    again = _batches(_dataset(events, num_rows=2), epoch=1, start=4)
    assert torch.equal(again[0].clips, batches[2].clips)
    assert again[0].starts == batches[2].starts


def test_a_video_that_is_followed_is_cropped_and_coloured_in_one_way(events: Path) -> None:
    augment = AugmentConfig(crop_scale=(0.3, 0.4), flip_rate=0.5, rand_augment_operations=0, erase_rate=1.0)
    dataset = _dataset(events, augment, num_rows=1)
    erased: dict[int, list[torch.Tensor]] = {}
    for batch in _batches_of_one(dataset):
        erased.setdefault(batch.item_indices[0], []).append(batch.clips[0, 0])
    for frames in erased.values():
        # The rectangle of noise stands still over the whole video.
        same = torch.stack(frames).std(0) < 1e-6 if len(frames) > 1 else torch.ones(1)
        assert same.any()


def _batches_of_one(dataset: WindowDataset) -> list[Batch]:
    return list(make_loader(dataset, LoaderConfig(batch_size=1, num_workers=0), shuffle=True, seed=0))


def test_mirrored_windows_swap_directions_and_others_are_left(tmp_path: Path) -> None:
    events = write_events(tmp_path)
    text = events.read_text().replace("blue", "move left").replace("red", "move right")
    events.write_text(text)
    table = read_intervals(events)
    for classes, swapped in ((("background", "move left", "move right"), True), (("background", "move left"), False)):
        videos = [video for video in table.videos if video.labels <= set(classes)]
        dataset = WindowDataset(
            measure_videos(videos, SETTINGS),
            classes,
            TrainTransform(SETTINGS, AugmentConfig(flip_rate=1.0, rand_augment_operations=0, erase_rate=0.0)),
            preprocessing=SETTINGS,
            event_ratio=0.99,
        )
        for index in range(4):
            sample = dataset[index]
            assert isinstance(sample, Sample)
            assert isinstance(sample.label, torch.Tensor)
            expected = [{1: 2, 2: 1}.get(c, 0) if swapped else c for c in _colours(sample.clip)]
            counted = sample.label != IGNORED
            assert np.array(expected)[counted].tolist() == sample.label[counted].tolist()


def test_overlapping_labels_are_one_number_a_class(events: Path) -> None:
    dataset = _dataset(events, classes=("blue", "red"), overlapping=True)
    batch = _batches(dataset)[0]
    assert batch.labels.shape == (2, 6, 2)
    assert batch.labels.dtype == torch.float32
    assert 0.3 < dataset.event_fraction < 0.6


def test_without_a_rate_there_are_no_windows(events: Path) -> None:
    with pytest.raises(ConfigError, match="frame_rate"):
        measure_videos(read_intervals(events).videos, Preprocessing(size=16))


@pytest.mark.parametrize("num_rows", [0, 1])
def test_no_window_is_stretched_over_a_pause(tmp_path: Path, num_rows: int) -> None:
    times = torch.tensor([k / 8 + (60.0 if k >= 13 else 0.0) for k in range(30)])
    pixels = torch.full((30, 3, 24, 32), 100, dtype=torch.uint8)
    pixels[13:, 0] = 250
    write_video(tmp_path / "a.mp4", pixels, fps=8, pts_seconds=times)
    (tmp_path / "events.csv").write_text("path,start,end,label\na.mp4,61.5,64,red\n", encoding="utf-8")
    table = read_intervals(tmp_path / "events.csv")
    dataset = WindowDataset(
        measure_videos(table.videos, SETTINGS),
        ("background", "red"),
        TrainTransform(SETTINGS, PLAIN),
        preprocessing=SETTINGS,
        num_rows=num_rows,
    )
    assert dataset.measured[0].lengths == (13, 17)
    starts = 0
    for index in range(len(dataset)):
        sample = dataset[index]
        assert isinstance(sample, Sample)
        assert len(set(_colours(sample.clip))) == 1
        starts += sample.starts
    assert starts == (len(dataset) if not num_rows else 2)


def test_a_video_is_opened_once_for_many_windows_and_anew_in_a_worker(
    events: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, opened = _dataset(events), []
    own = WindowDataset._open
    monkeypatch.setattr(WindowDataset, "_open", lambda self, index: opened.append(index) or own(self, index))
    samples = [dataset[index] for index in range(len(dataset))]
    assert len(opened) == len(set(opened)) > 1
    other = pickle.loads(pickle.dumps(dataset))
    again = [other[index] for index in range(len(dataset))]
    assert all(torch.equal(a.clip, b.clip) for a, b in zip(samples, again, strict=True))
