from pathlib import Path
from typing import Any

import pytest
import torch

from kinescan.data import (
    AugmentConfig,
    LoaderConfig,
    Sample,
    TrainTransform,
    Unreadable,
    VideoItem,
    make_loader,
    write_video,
)
from kinescan.data.memory import VideoMemory, estimated_gib
from kinescan.errors import ConfigError
from kinescan.preprocessing import Preprocessing

FIXED = AugmentConfig(
    crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), rand_augment_operations=0, erase_rate=0.0, mixup_alpha=0.0
)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[VideoItem]:
    """Two videos whose frames grow brighter by 5 levels, and one that is none."""
    folder = tmp_path_factory.mktemp("videos")
    for name, num_frames in (("long", 40), ("short", 3)):
        levels = (5 * torch.arange(num_frames, dtype=torch.uint8))[:, None, None, None]
        write_video(folder / f"{name}.mp4", levels.expand(-1, 3, 48, 64).contiguous(), fps=10)
    (folder / "text.mp4").write_text("no video")
    names = ("long.mp4", "short.mp4", "text.mp4")
    return [VideoItem(folder / name, index % 2, name) for index, name in enumerate(names)]


def _memory(items: list[VideoItem], **changes: Any) -> VideoMemory:
    settings = Preprocessing(num_frames=4, size=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    transform = TrainTransform(settings, FIXED)
    return VideoMemory(items, ("a", "b"), transform, **{"preprocessing": settings, "kept_frames": 20, **changes})


def _levels(sample: Sample | Unreadable) -> torch.Tensor:
    assert isinstance(sample, Sample)
    assert sample.clip.shape == (4, 3, 16, 16)
    return sample.clip.mean((1, 2, 3)) * 255


def test_video_memory_draws_a_frame_from_each_part(items: list[VideoItem]) -> None:
    memory = _memory(items)
    sampled = torch.stack([_levels(memory[epoch, 0]) for epoch in range(30)]) / 5
    parts = torch.tensor([0, 10, 20, 30])
    assert ((sampled > parts - 0.7) & (sampled < parts + 10)).all()
    assert sampled.std(dim=0).min() > 1


def test_video_memory_depends_on_seed_epoch_and_video_only(items: list[VideoItem]) -> None:
    memory = _memory(items)
    again = _memory(items[:1])
    assert torch.equal(_levels(memory[3, 0]), _levels(again[3, 0]))
    assert not torch.equal(_levels(memory[3, 0]), _levels(memory[4, 0]))


def test_video_memory_decodes_once(items: list[VideoItem], monkeypatch: pytest.MonkeyPatch) -> None:
    memory = _memory(items)
    memory.fill()
    monkeypatch.setattr("kinescan.data.datasets.VideoReader", None)
    assert isinstance(memory[0], Sample)


def test_video_memory_repeats_frames_of_short_videos_and_lists_unreadable_ones(items: list[VideoItem]) -> None:
    batch = next(iter(make_loader(_memory(items), LoaderConfig(batch_size=3, num_workers=0), shuffle=False, seed=0)))
    assert batch.item_indices == [0, 1]
    assert [(Path(found.path).name, found.item_index) for found in batch.unreadable] == [("text.mp4", 2)]
    assert batch.unreadable[0].reason


def test_video_memory_keeps_small_frames(items: list[VideoItem]) -> None:
    memory = _memory(items)
    memory.fill()
    assert memory._kept is not None
    assert [tuple(kept.pixels.shape) for kept in memory._kept[:2]] == [(20, 3, 24, 32), (3, 3, 24, 32)]
    assert estimated_gib(1, 20, 16) == pytest.approx(20 * 3 * 24 * 24 * 16 / 9 / 2**30)


def test_video_memory_refuses_dense_sampling_and_too_few_frames(items: list[VideoItem]) -> None:
    with pytest.raises(ConfigError, match=r'need preprocessing.sampling = "segments". Set data.kept_frames = 0'):
        _memory(items, preprocessing=Preprocessing(sampling="dense"))
    with pytest.raises(ConfigError, match=r"preprocessing.num_frames, 4.*0.*3"):
        _memory(items, kept_frames=3)
