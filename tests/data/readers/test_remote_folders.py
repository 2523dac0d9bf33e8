"""Lists and folders at addresses."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.loopback_store import Behaviour, serve

from kinescan.data.clips import video_files
from kinescan.data.interval_listing import read_intervals
from kinescan.data.listing import list_videos
from kinescan.data.readers import remote_folders
from kinescan.errors import ConfigError
from kinescan.runtime import remote
from kinescan.runtime.addresses import as_path

pytestmark = pytest.mark.usefixtures("dropped_sockets")


@pytest.fixture
def server(
    tmp_path: Path, make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Behaviour]]:
    make_video("v/a.mp4")
    make_video("v/b.mp4", seed=1)
    monkeypatch.setattr(remote, "_kept", remote._Kept())
    monkeypatch.setattr(remote, "_FIRST_WAIT_SECONDS", 0.001)
    with serve(tmp_path) as found:
        yield found


def test_a_list_at_an_address_names_files_beside_it_and_elsewhere(
    server: tuple[str, Behaviour], tmp_path: Path
) -> None:
    address = server[0]
    (tmp_path / "v" / "l.csv").write_text(f"path,label\na.mp4,x\n{address}/v/b.mp4,y\n")
    found = list_videos(f"{address}/v/l.csv")
    assert [item.path for item in found.items] == [as_path(f"{address}/v/a.mp4"), as_path(f"{address}/v/b.mp4")]
    assert found.items[0].video_id == "a.mp4"
    local = list_videos(tmp_path / "v" / "l.csv", root=f"{address}/v")
    assert [item.path for item in local.items] == [item.path for item in found.items]


def test_lists_with_times_name_addresses_too(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(f"path,start,end,label\n{server[0]}/v/a.mp4,0.1,0.5,x\nv/b.mp4,0,1,y\n")
    table = read_intervals(tmp_path / "l.csv")
    assert not table.problems
    assert [video.path for video in table.videos] == [as_path(f"{server[0]}/v/a.mp4"), tmp_path / "v/b.mp4"]


def test_what_is_not_read_is_refused_with_its_line(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    for address in ("ftp://h/a.mp4", "https://me:hunter2@h/a.mp4", "https://h/a.mp4?sig=hunter2"):
        (tmp_path / "l.csv").write_text(f"v/a.mp4,x\n{address},y\n")
        with pytest.raises(ConfigError, match="line 2") as error:
            list_videos(tmp_path / "l.csv")
        assert "hunter2" not in str(error.value)


def test_web_folders_cannot_be_listed(server: tuple[str, Behaviour]) -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1"):
        list_videos(f"{server[0]}/v")
    with pytest.raises(ConfigError, match="404"):
        list_videos(f"{server[0]}/v/nothing.csv")
    server[1].status = 500
    with pytest.raises(ConfigError, match="500"):
        list_videos(f"{server[0]}/v")


def test_folders_of_object_stores(monkeypatch: pytest.MonkeyPatch, server: tuple[str, Behaviour]) -> None:
    names = [
        "s3://b/v/run/1.mp4",
        "s3://b/v/jump/2.mp4",
        "s3://b/v/jump/.3.mp4",
        "s3://b/v/jump/note.txt",
        "s3://b/v/4.mp4",
    ]
    monkeypatch.setattr(remote_folders, "sizes_below", lambda address: dict.fromkeys(names, 1))
    monkeypatch.setattr("kinescan.data.listing.find_index", lambda source: None)
    found = list_videos("s3://b/v")
    assert (found.classes, [item.video_id for item in found.items]) == (("jump", "run"), ["jump/2.mp4", "run/1.mp4"])
    assert len(video_files("s3://b/v")) == 3
    names[:] = ["s3://b/v/train/run/1.mp4", "s3://b/v/val/run/2.mp4"]
    with pytest.raises(ConfigError, match="train"):
        list_videos("s3://b/v")
