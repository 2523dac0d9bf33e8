from pathlib import Path

import pytest
import torch
from tests.loopback_store import serve

from kinescan.data import disk_cache, write_video
from kinescan.errors import ConfigError
from kinescan.runs import index as module
from kinescan.runs.index import index
from kinescan.runtime import remote


@pytest.fixture
def videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(disk_cache.CACHE_VARIABLE, str(tmp_path / "tables"))
    for name, size in (("a/1.mp4", 64), ("b/2.mp4", 64), ("b/3.mp4", 16)):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (10, 3, size, size), dtype=torch.uint8)
        write_video(tmp_path / "videos" / name, pixels, fps=5)
    (tmp_path / "videos/a/broken.mp4").write_text("no video" * 9000)
    sizes = sorted(path.stat().st_size for path in (tmp_path / "videos").rglob("*.mp4"))
    for owner in ("kinescan.runs.index", "kinescan.data.video.decoder"):
        monkeypatch.setattr(f"{owner}.LEAST_BYTES", sizes[0] + 1)
    return tmp_path / "videos"


def test_each_video_is_kept_small_or_named(videos: Path) -> None:
    found = index(videos, num_workers=0)
    assert (found.num_files, found.num_kept, found.num_small) == (4, 2, 1)
    assert [Path(path).name for path in found.unreadable] == ["broken.mp4"]
    assert len(list(Path(found.folder).rglob("*.npz"))) == 2
    assert index(videos, num_workers=0).num_kept == 2


def test_with_tables_turned_off_there_is_nothing_to_index(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "default_cache", lambda: None)
    with pytest.raises(ConfigError) as refused:
        index(videos)
    assert disk_cache.CACHE_VARIABLE in str(refused.value)


@pytest.mark.usefixtures("dropped_sockets")
def test_videos_at_addresses_are_indexed(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_kept", remote._Kept())
    (videos / "l.csv").write_text("path,label\na/1.mp4,a\nb/3.mp4,b\na/broken.mp4,a\nb/lost.mp4,b\n")
    with serve(videos) as (address, _):
        found = index(f"{address}/l.csv", num_workers=0)
        assert (found.num_files, found.num_kept, found.num_small) == (4, 1, 1)
        assert list(found.unreadable) == [f"{address}/a/broken.mp4", f"{address}/b/lost.mp4"]
        assert "404" in found.unreadable[f"{address}/b/lost.mp4"]
        # the table serves the next opening, and no file of this name is looked for on this machine
        assert index(f"{address}/l.csv", num_workers=0).num_kept == 1
