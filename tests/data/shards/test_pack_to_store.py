"""Shards that are written to an object store: those of a folder, whatever the store answers on the way."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.folder_store import Store, folder_store

from kinescan.data import VideoReader
from kinescan.data.listing import VideoList, list_videos
from kinescan.data.shards import pack
from kinescan.data.shards.index import INDEX_FILE, read_index
from kinescan.data.shards.pack import PackSettings, pack_videos
from kinescan.errors import ConfigError, VideoError
from kinescan.runtime.addresses import as_path

SETTINGS = PackSettings(shard_bytes=1)


@pytest.fixture
def videos(tmp_path: Path, make_video: Callable[..., Path]) -> VideoList:
    for number in range(4):
        make_video(f"v/{'run' if number % 2 else 'jump'}/{number}.mp4", seed=number)
    (tmp_path / "v" / "run" / "broken.mp4").write_bytes(b"no video")
    return list_videos(tmp_path / "v")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with folder_store(tmp_path / "store", monkeypatch) as found:
        yield found


def _of_kind(name: str, base: type[Exception] = Exception, **facts: object) -> Exception:
    return type(name, (base,), facts)("https://bucket/a?signature=hunter2")


def test_what_is_written_there_is_what_a_folder_gets(videos: VideoList, store: Store, tmp_path: Path) -> None:
    there = as_path(f"{store.address}/deep/shards")
    index, num_bytes = pack_videos({"train": videos}, there, SETTINGS)
    same, same_bytes = pack_videos({"train": videos}, tmp_path / "here", SETTINGS)
    assert (index, num_bytes) == (same, same_bytes)
    assert read_index(there / INDEX_FILE) == read_index(tmp_path / "here" / INDEX_FILE)
    far, near = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (store.folder / "deep" / "shards", tmp_path / "here")
    )
    assert far == near
    assert sorted(far) == [*(f"{number:06d}.tar" for number in range(5)), INDEX_FILE]
    # the first thing written tries the store out, the index comes last
    assert store.written[-1].endswith(INDEX_FILE)
    assert not store.written[0].endswith(".tar")
    with VideoReader(list_videos(str(there)).items[0].path) as video:
        assert video.num_frames > 0
    with pytest.raises(ConfigError, match="s3://bucket/deep/shards"):
        pack_videos({"train": videos}, there, SETTINGS)


@pytest.mark.parametrize("far", [True, False])
def test_what_was_written_before_an_interruption_is_kept(
    far: bool, videos: VideoList, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = as_path(f"{store.address}/s") if far else tmp_path / "s"
    whole, _ = pack_videos({"train": videos}, tmp_path / "whole", SETTINGS)
    gather, gathered = pack._gather, []

    def counted(entry: pack._Entry, *others: object) -> str:
        gathered.append(entry.number)
        if len(gathered) == 3:
            raise KeyboardInterrupt
        return gather(entry, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(pack, "_gather", counted)
    with pytest.raises(KeyboardInterrupt):
        pack_videos({"train": videos}, folder, SETTINGS)
    # one of those that are there is written anew since, so that its tar is of no use
    first = videos.items[0].path
    first.write_bytes(first.read_bytes())
    told: list[tuple[int, int]] = []
    again, _ = pack_videos({"train": videos}, folder, SETTINGS, progress=lambda *done: told.append(done))
    assert gathered == [0, 1, 2, 0, 2, 3, 4]
    assert told == [(2, 5), (3, 5), (4, 5), (5, 5)]
    assert again == whole
    plain = store.folder / "s" if far else tmp_path / "s"
    assert {path.name for path in plain.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}


@pytest.mark.parametrize("change", ["settings", "label", "cut"])
def test_tars_of_another_job_are_made_anew(change: str, videos: VideoList, store: Store) -> None:
    folder = as_path(f"{store.address}/s")
    store.failing, store.error = INDEX_FILE, PermissionError()
    with pytest.raises(ConfigError, match="403"):
        pack_videos({"train": videos}, folder, SETTINGS)
    store.failing, before = "\0", len(store.written)
    if change == "settings":
        pack_videos({"train": videos}, folder, PackSettings(shard_bytes=1, crf=21))
        num_tars = 5
    elif change == "label":
        (videos.items[0].path.parents[1] / "a").mkdir()
        moved = list_videos(videos.items[0].path.parents[1])
        pack_videos({"train": VideoList(moved.items[1:], moved.classes)}, folder, SETTINGS)
        num_tars = 4
    else:
        tar = store.folder / "s" / "000001.tar"
        tar.write_bytes(tar.read_bytes()[:-1])
        pack_videos({"train": videos}, folder, SETTINGS)
        num_tars = 1
    assert sum(name.endswith(".tar") for name in store.written[before:]) == num_tars


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(), "403"),
        (_of_kind("OSError", OSError, code=500), "500"),
        (_of_kind("ReadTimeoutError"), "KINESCAN_STORE_SECONDS"),
        (_of_kind("NoCredentialsError"), "credentials"),
        (None, "bytes arrived"),
    ],
)
@pytest.mark.parametrize("failing", ["packing.json", "000002.tar", INDEX_FILE])
def test_a_store_that_does_not_take_them_is_told(
    error: Exception | None, told: str, failing: str, videos: VideoList, store: Store
) -> None:
    store.failing, store.error, store.short = failing, error, error is None
    with pytest.raises(ConfigError, match=told) as refused:
        pack_videos({"train": videos}, as_path(f"{store.address}/s"), SETTINGS)
    assert f"s3://bucket/s/{failing}" in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert not (store.folder / "s" / INDEX_FILE).exists() or error is None
    if failing == "packing.json":
        assert not any(name.endswith(".tar") for name in store.written)


def test_what_passes_is_tried_again(videos: VideoList, store: Store) -> None:
    store.failing, store.error, store.times = "000002.tar", _of_kind("OSError", OSError, code=503), 3
    index, _ = pack_videos({"train": videos}, as_path(f"{store.address}/s"), SETTINGS)
    assert len(index.shards) == 5


def test_a_bucket_that_is_not_there_is_told_before_anything_is_made(videos: VideoList, store: Store) -> None:
    with pytest.raises(ConfigError, match=r"s3://nobody/s.*bucket"):
        pack_videos({"train": videos}, as_path("s3://nobody/s"), SETTINGS)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/s", "https://127.0.0.1/s", "s3://bucket/s.tar"])
def test_where_no_shards_can_lie_is_refused_at_once(address: str, videos: VideoList, store: Store) -> None:
    with pytest.raises(ConfigError, match=address):
        pack_videos({"train": videos}, as_path(address), SETTINGS)


def test_a_store_that_lets_nobody_delete_has_the_shards(
    videos: VideoList, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(pack, "remove_file", refuse)
    pack_videos({"train": videos}, as_path(f"{store.address}/s"), SETTINGS)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert len(list_videos(f"{store.address}/s").items) == 5


def _cut(folder: Path) -> None:
    tar = folder / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:1000])


def _away(folder: Path) -> None:
    (folder / "000001.tar").unlink()


def _another(folder: Path) -> None:
    (folder / "000001.tar").write_bytes((folder / "000002.tar").read_bytes())


@pytest.mark.parametrize(
    ("spoil", "told"), [(_cut, "It is cut"), (_away, "404"), (_another, "something else there|It is cut")]
)
def test_a_shard_of_a_store_that_is_spoilt_costs_its_videos_alone(
    spoil: Callable[[Path], None], told: str, videos: VideoList, store: Store
) -> None:
    pack_videos({"train": videos}, as_path(f"{store.address}/s"), SETTINGS)
    spoil(store.folder / "s")
    for number, item in enumerate(list_videos(f"{store.address}/s").items):
        if number == 1:
            with pytest.raises(VideoError, match=told) as error:
                VideoReader(item.path)
            assert f"s3://bucket/s/{number:06d}.tar" in str(error.value)
        elif videos.items[number].path.name != "broken.mp4":
            with VideoReader(item.path) as video:
                assert video.read([0]).pixels.shape[0] == 1


def test_a_shard_that_the_index_of_a_store_lists_twice_is_refused(videos: VideoList, store: Store) -> None:
    pack_videos({"train": videos}, as_path(f"{store.address}/s"), SETTINGS)
    file = store.folder / "s" / INDEX_FILE
    file.write_text(file.read_text().replace("000001.tar", "000000.tar"))
    with pytest.raises(ConfigError, match=r"s3://bucket/s/shards\.json.*000000\.tar"):
        list_videos(f"{store.address}/s")
