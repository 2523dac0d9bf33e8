from contextlib import nullcontext
from pathlib import Path

import pytest

from kinescan.data import EvalTransform, LoaderConfig, VideoDataset, VideoItem, make_loader, shared_memory
from kinescan.data.shared_memory import check_shared_memory
from kinescan.errors import ConfigError
from kinescan.preprocessing import Preprocessing


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The 64 MiB that a container has by default."""

    class Usage:
        free = 64 * 2**20

    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda path: Usage)


@pytest.mark.usefixtures("small")
def test_too_little_shared_memory_is_said_with_the_size_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    check_shared_memory(8 * 2**20, 8)
    with pytest.raises(ConfigError) as refused:
        check_shared_memory(147 * 2**20, 9)
    for part in ("1.3 GiB", "64.0 MiB", "--shm-size=3g", "loader.num_workers"):
        assert part in str(refused.value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(ConfigError):
        check_shared_memory(8 * 2**20, 8)


def test_systems_without_that_folder_have_no_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path / "none")
    check_shared_memory(2**60, 9)


@pytest.mark.usefixtures("small")
def test_a_loader_asks_before_its_workers_start() -> None:
    settings = Preprocessing(num_frames=8, size=64)
    items = [VideoItem(Path(f"{index}.mp4"), 0, str(index)) for index in range(512)]
    dataset = VideoDataset(items, ["a"], EvalTransform(settings), preprocessing=settings, mode="test")
    for batch_size, num_workers, fits in ((512, 1, False), (16, 1, True), (512, 0, True)):
        config = LoaderConfig(batch_size=batch_size, num_workers=num_workers)
        with nullcontext() if fits else pytest.raises(ConfigError, match=r"shm-size.*evaluation\.views"):
            make_loader(dataset, config, shuffle=False, seed=0)
