"""Packed videos are the data set that they were: order, draws and resume, from the disk and from a server."""

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.loopback_store import Behaviour, serve

from kinescan.data import (
    AugmentConfig,
    LoaderConfig,
    TrainTransform,
    VideoDataset,
    VideoReader,
    make_loader,
    read_items,
)
from kinescan.data.listing import VideoItem, list_videos
from kinescan.data.shards.index import INDEX_FILE, LOST, ShardIndex, read_index
from kinescan.data.shards.pack import PackSettings, pack_videos, resized
from kinescan.errors import ConfigError
from kinescan.preprocessing import Preprocessing
from kinescan.runtime import remote

pytestmark = pytest.mark.usefixtures("dropped_sockets")

SETTINGS = Preprocessing(num_frames=4, size=16)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(remote, "_kept", remote._Kept())


@pytest.fixture
def videos(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    for number in range(9):
        make_video(f"videos/{'run' if number % 3 else 'jump'}/{number}.mp4", num_frames=6 + number, seed=number)
    (tmp_path / "videos" / "run" / "broken.mp4").write_bytes(b"no video")
    return tmp_path / "videos"


@pytest.fixture
def packed(videos: Path, tmp_path: Path) -> Path:
    pack_videos({"train": list_videos(videos)}, tmp_path / "shards", PackSettings(shard_bytes=8000))
    return tmp_path / "shards"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Behaviour]]:
    with serve(tmp_path) as found:
        yield found


def _digests(items: list[VideoItem], classes: tuple[str, ...], *, start_item: int = 0, workers: int = 0) -> list[str]:
    transform = TrainTransform(SETTINGS, AugmentConfig(flip_rate=0.5))
    dataset = VideoDataset(items, classes, transform, preprocessing=SETTINGS, mode="train", seed=3)
    config = LoaderConfig(batch_size=3, num_workers=workers)
    loader = make_loader(dataset, config, shuffle=True, seed=5, start_item=start_item)
    found = []
    for epoch in range(2):
        loader.set_epoch(epoch, start_item=start_item)
        for batch in loader:
            broken = [items[one.item_index].video_id for one in batch.unreadable]
            facts = (batch.labels.tolist(), batch.item_indices, batch.frame_seconds, broken)
            data = batch.clips.numpy().tobytes() + repr(facts).encode()
            found.append(hashlib.sha256(data).hexdigest())
    return found


@pytest.mark.parametrize("far", [False, True])
def test_batches_are_those_of_loose_files(far: bool, videos: Path, packed: Path, server: tuple[str, Behaviour]) -> None:
    loose, classes = read_items(videos)
    source = f"{server[0]}/shards" if far else packed
    items, same = read_items(source)
    assert len(list(packed.glob("*.tar"))) > 2
    assert same == classes
    assert [(item.video_id, item.label) for item in items] == [(item.video_id, item.label) for item in loose]
    assert _digests(items, classes) == _digests(loose, classes)
    assert _digests(items, classes, start_item=6) == _digests(loose, classes, start_item=6)


def test_worker_processes_read_from_a_server(videos: Path, packed: Path, server: tuple[str, Behaviour]) -> None:
    items, classes = read_items(f"{server[0]}/shards/{INDEX_FILE}")
    assert _digests(items, classes, workers=1) == _digests(read_items(videos)[0], classes)


def test_a_small_video_costs_one_request(packed: Path, server: tuple[str, Behaviour]) -> None:
    items, _ = read_items(f"{server[0]}/shards")
    before = server[1].num_requests
    with VideoReader(items[1].path) as video:
        video.read([0, 3])
    assert server[1].num_requests == before + 1


def test_the_tars_are_those_of_webdataset(packed: Path) -> None:
    index = read_index(packed / INDEX_FILE)
    seen = []
    for shard in index.shards:
        with tarfile.open(packed / shard.name) as tar:
            names = tar.getnames()
            assert names == sorted(names, key=lambda name: name.split(".")[0])
            for name in names[1::2]:
                file = tar.extractfile(name)
                assert file is not None
                seen.append(json.loads(file.read())["id"])
    assert seen == [video.id for video in index.videos]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_webdataset_reads_the_tars(packed: Path) -> None:
    index = read_index(packed / INDEX_FILE)
    seen = [video.id for video in index.videos]
    webdataset = pytest.importorskip("webdataset")
    urls = [str(packed / shard.name) for shard in index.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["json"]["id"] for sample in samples] == seen
    assert [sample["json"]["cls"] for sample in samples] == [video.label for video in index.videos]
    assert sum(isinstance(sample.get("mp4"), bytes) for sample in samples) == 10


def test_frames_are_resized_and_coded_once(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    times = torch.tensor([0.0, 0.1, 0.25, 0.3, 0.7, 0.9])
    make_video("v/a/1.mp4", num_frames=6, height=48, width=64, pts_seconds=times)
    make_video("v/b/2.mkv", num_frames=7, height=20, width=30)
    (tmp_path / "v" / "b" / "3.mp4").write_bytes(b"no video")
    index, _ = pack_videos({"train": list_videos(tmp_path / "v")}, tmp_path / "s", PackSettings(size=24))
    assert index.made_of == "frames"
    assert list(index.lost) == ["b/3.mp4"]
    items, _ = read_items(tmp_path / "s")
    with VideoReader(items[0].path) as video, VideoReader(tmp_path / "v/a/1.mp4") as before:
        assert (video.num_frames, video.height, video.width) == (6, 24, 32)
        assert torch.allclose(video.pts_seconds, times.double(), atol=1e-4)
        small = torch.nn.functional.interpolate(
            before.read(range(6)).pixels.contiguous(), size=(24, 32), mode="bilinear", antialias=True
        )
        assert (video.read(range(6)).pixels.float() - small.float()).abs().mean() < 12
    with VideoReader(items[1].path) as video:
        assert (video.num_frames, video.height, video.width) == (7, 20, 30)
    assert not items[2].path.exists()


@pytest.mark.parametrize("size", [(48, 64), (33, 77), (500, 31), (3000, 4000)])
def test_sides_are_even_and_no_larger(size: tuple[int, int]) -> None:
    height, width = resized(size, 32)
    assert height % 2 == width % 2 == 0
    assert height <= size[0]
    assert width <= size[1]
    assert min(height, width) == min(32, min(size) // 2 * 2)


def test_parts_groups_and_missing_videos_keep_their_positions(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    make_video("v/a.mp4")
    make_video("v/c.mp4")
    (tmp_path / "v" / "l.csv").write_text("path,label,who\na.mp4,x,p1\nb.mp4,y,p2\nc.mp4,y,p1\n")
    (tmp_path / "v" / "t.csv").write_text("path,label,who\nc.mp4,y,p9\n")
    parts = {
        "train": list_videos(tmp_path / "v" / "l.csv", group="column who"),
        "test": list_videos(tmp_path / "v" / "t.csv", part="test", classes=("x", "y"), group="column who"),
    }
    index, _ = pack_videos(parts, tmp_path / "s")
    assert [video.shard == LOST for video in index.videos] == [False, True, False, False]
    again = list_videos(tmp_path / "s")
    assert [(item.video_id, item.label, item.group) for item in again.items] == [
        ("a.mp4", 0, "p1"),
        ("b.mp4", 1, "p2"),
        ("c.mp4", 1, "p1"),
    ]
    assert again.missing == ("b.mp4",)
    assert [item.group for item in list_videos(tmp_path / "s", part="test").items] == ["p9"]


def test_an_interrupted_attempt_is_done_anew(videos: Path, tmp_path: Path) -> None:
    parts = {"train": list_videos(videos)}
    folder = tmp_path / "s"
    folder.mkdir()
    for name in ("000000.tar", "000099.tar"):
        (folder / name).write_bytes(b"half")
    first, _ = pack_videos(parts, folder)
    assert [path.name for path in folder.glob("*.tar")] == ["000000.tar"]
    second, _ = pack_videos(parts, tmp_path / "other", num_workers=1)
    assert first == second
    assert (folder / "000000.tar").read_bytes() == (tmp_path / "other" / "000000.tar").read_bytes()
    with pytest.raises(ConfigError, match="s holds"):
        pack_videos(parts, folder)


@pytest.mark.parametrize(
    "wrong", [{"size": 15}, {"size": -2}, {"size": 8}, {"crf": 99}, {"shard_bytes": 0}, {"keyframe_interval": 0}]
)
def test_settings_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PackSettings(**wrong)


def test_an_index_has_a_short_name_in_messages(packed: Path) -> None:
    index = read_index(packed / INDEX_FILE)
    assert isinstance(index, ShardIndex)
    assert "10 videos" in repr(index)
