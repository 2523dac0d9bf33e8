"""Where the bytes of a video are: each place gives the same frames."""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.loopback_store import Behaviour, serve

from kinescan.data import disk_cache
from kinescan.data.storage import is_gone
from kinescan.data.stored import Member, is_plain, member_of, num_bytes_of, open_bytes
from kinescan.data.video import VideoReader, inspect_video
from kinescan.errors import VideoError
from kinescan.runtime import remote
from kinescan.runtime.addresses import as_path

pytestmark = pytest.mark.usefixtures("dropped_sockets")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(remote, "_kept", remote._Kept())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Behaviour]]:
    with serve(tmp_path) as found:
        yield found


def _pack(folder: Path, *videos: Path) -> list[Member]:
    with tarfile.open(folder / "0.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, video in enumerate(videos):
            head = tarfile.TarInfo(f"{number:09d}{video.suffix}")
            head.size = video.stat().st_size
            tar.addfile(head, io.BytesIO(video.read_bytes()))
    with tarfile.open(folder / "0.tar") as tar:
        return [Member(str(folder / "0.tar"), one.offset_data, one.size, one.name) for one in tar]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi", ".ts"])
def test_all_places_give_the_same_frames(
    suffix: str, make_video: Callable[..., Path], tmp_path: Path, server: tuple[str, Behaviour]
) -> None:
    codec = {".webm": "libvpx-vp9"}.get(suffix, "libx264")
    other, video = make_video(f"b{suffix}", codec=codec, seed=1), make_video(f"a{suffix}", codec=codec)
    member = _pack(tmp_path, other, video)[1]
    far = Member(f"{server[0]}/0.tar", member.offset, member.num_bytes, member.name)
    places = [video, member.path, as_path(f"{server[0]}/a{suffix}"), far.path]
    assert [is_plain(place) for place in places] == [True, False, False, False]
    assert member_of(far.path) == Member(str(as_path(far.shard)), far.offset, far.num_bytes, far.name)
    results = []
    for place in places:
        with VideoReader(place) as reader:
            frames = reader.read([3, 19, 0])
            results.append((reader.num_frames, reader.notes, reader.fingerprint()))
            with VideoReader(video) as loose:
                assert torch.equal(frames.pixels, loose.read([3, 19, 0]).pixels)
                assert torch.equal(reader.pts_seconds, loose.pts_seconds)
        with open_bytes(place) as file:
            assert file.read() == video.read_bytes()
        assert num_bytes_of(place) == video.stat().st_size
        assert not is_gone(place)
        assert inspect_video(place).problem is None
        assert inspect_video(place, decode=False).content == inspect_video(video, decode=False).content
    assert len(set(results)) == 1


def test_tables_of_all_places_are_kept(
    make_video: Callable[..., Path], tmp_path: Path, server: tuple[str, Behaviour], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(disk_cache.CACHE_VARIABLE, str(tmp_path / "tables"))
    monkeypatch.setattr("kinescan.data.video.decoder.LEAST_BYTES", 1)
    video = make_video("a.mp4")
    [member] = _pack(tmp_path, video)
    for place in (member.path, as_path(f"{server[0]}/a.mp4")):
        VideoReader(place).close()
        with VideoReader(place) as again, VideoReader(video) as loose:
            assert torch.equal(again.read([7]).pixels, loose.read([7]).pixels)
    assert len(list((tmp_path / "tables").rglob("*.npz"))) == 3
    # another content at the same place: found out, and read anew
    make_video("a.mp4", num_frames=12)
    remote._kept.drop(f"{server[0]}/a.mp4")
    with VideoReader(as_path(f"{server[0]}/a.mp4")) as changed:
        assert changed.num_frames == 12


def _cut(tar: Path) -> None:
    with tarfile.open(tar) as opened:
        end = opened.getmembers()[-1].offset_data + 50
    os.truncate(tar, end)


def _remove(tar: Path) -> None:
    tar.unlink()


def _replace(tar: Path) -> None:
    tar.write_bytes(bytes(tar.stat().st_size))


@pytest.mark.parametrize(("damage", "gone"), [(_cut, False), (_remove, True), (_replace, False)])
@pytest.mark.parametrize("far", [False, True])
def test_broken_shards_are_errors_of_their_videos(
    damage: Callable[[Path], None],
    gone: bool,
    far: bool,
    make_video: Callable[..., Path],
    tmp_path: Path,
    server: tuple[str, Behaviour],
) -> None:
    # the first of two is whole where the tar is cut
    first, last = _pack(tmp_path, make_video("a.mp4", num_frames=4), make_video("b.mp4", num_frames=40))
    damage(tmp_path / "0.tar")
    member = Member(f"{server[0]}/0.tar" if far else last.shard, last.offset, last.num_bytes, last.name)
    with pytest.raises(VideoError) as error:
        VideoReader(member.path)
    assert "0.tar" in error.value.reason or far
    assert is_gone(member.path) == gone
    assert inspect_video(member.path).problem == ("missing" if gone else "unreadable")
    if damage is _cut:
        VideoReader(first.path).close()


@pytest.mark.parametrize(
    ("name", "value", "is_told"), [("status", 403, "403"), ("status", 500, "500"), ("short_by", 9, "promised|4 ")]
)
def test_a_store_that_fails_is_an_error_of_the_video(
    name: str, value: int, is_told: str, make_video: Callable[..., Path], server: tuple[str, Behaviour]
) -> None:
    make_video("a.mp4")
    address, told = server
    setattr(told, name, value)
    with pytest.raises(VideoError, match=is_told):
        VideoReader(as_path(f"{address}/a.mp4"))
    assert is_gone(as_path(f"{address}/a.mp4"))


def test_a_file_of_that_name_is_a_file(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    video = make_video("x.tar/512+9/a.mp4") if (tmp_path / "x.tar" / "512+9").mkdir(parents=True) is None else None
    assert video is not None
    assert member_of(video) is None
    assert member_of(video.with_name("b.mp4")) is not None
