"""Tables of frames on disk: the same frames, little read, nothing believed that is stale or damaged."""

import logging
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kinescan.data import disk_cache
from kinescan.data.loader import worker_context
from kinescan.data.video import VideoReader, kept_tables, write_video
from kinescan.data.video.kept_tables import FrameTableCache, default_cache

SECONDS_AT_ONCE = 3.0


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FrameTableCache:
    monkeypatch.setenv(disk_cache.CACHE_VARIABLE, str(tmp_path / "tables"))
    monkeypatch.setattr("kinescan.data.video.decoder.LEAST_BYTES", 1)
    disk_cache._told.clear()
    found = default_cache()
    assert found is not None
    return found


@pytest.fixture
def video(tmp_path: Path) -> Path:
    pixels = torch.randint(0, 256, (30, 3, 32, 48), dtype=torch.uint8)
    write_video(tmp_path / "a.mp4", pixels, fps=10)
    return tmp_path / "a.mp4"


def _tables(cache: FrameTableCache) -> list[Path]:
    return [path for path in cache.folder.rglob("*") if path.is_file()]


def test_a_kept_table_gives_the_same_frames(cache: FrameTableCache, video: Path) -> None:
    indices = [0, 17, 5, 29]
    with VideoReader(video) as first:
        expected, times, notes = first.read(indices).pixels, first.pts_seconds, first.notes
        assert first.table_is_kept
    with VideoReader(video) as again:
        assert torch.equal(again.read(indices).pixels, expected)
        assert torch.equal(again.pts_seconds, times)
        assert (again.num_frames, again.notes, again.duration_seconds) == (30, notes, first.duration_seconds)
        assert [seconds for _, seconds in again] == times.tolist()
    assert len(_tables(cache)) == 1


def test_all_kinds_of_files_are_kept_alike(cache: FrameTableCache, shared: Path) -> None:
    read = 0
    for path in sorted((shared / "videos").rglob("*.*")):
        results = []
        for _ in range(2):
            try:
                with VideoReader(path) as video:
                    chosen = sorted({0, video.num_frames // 2, video.num_frames - 1})
                    results.append((video.read(chosen).pixels, video.pts_seconds, video.notes, video.codec))
            except OSError as error:
                results.append(str(error))
        if isinstance(results[0], str):
            assert results[0] == results[1]
            continue
        read += 1
        assert torch.equal(results[0][0], results[1][0]), path
        assert torch.equal(results[0][1], results[1][1]), path
        assert results[0][2:] == results[1][2:]
    assert read > 20


def test_the_second_opening_reads_little(cache: FrameTableCache, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    VideoReader(video).close()

    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("kinescan.data.video.decoder.read_packets", refuse)
    with VideoReader(video) as again:
        assert len(again.read([3]).pixels) == 1


def _bytes_read() -> int:
    """By this process, from whatever files."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count what a process reads")
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_the_second_epoch_reads_what_it_decodes(suffix: str, cache: FrameTableCache, tmp_path: Path) -> None:
    path, draw = tmp_path / f"long.{suffix}", torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (150, 3, 96, 128), dtype=torch.uint8, generator=draw)
    write_video(path, pixels, fps=25, keyframe_interval=5)
    read = []
    for _ in range(2):
        before = _bytes_read()
        with VideoReader(path) as video:
            opened = _bytes_read()
            video.read([22, 101])
        read.append((opened - before, _bytes_read() - opened))
    size = path.stat().st_size
    assert size > 10**6
    # two stretches of at most five frames, with what FFmpeg reads ahead; the key packet before would double it
    decoded = sum(sorted(video._decoder.packets.sizes)[-10:])
    assert read[1][1] < decoded + 4 * 2**16
    assert read[0][0] > size > 8 * read[1][0]


def _shorter(path: Path) -> None:
    write_video(path, torch.zeros(12, 3, 32, 48, dtype=torch.uint8), fps=10)


def _same_size_and_time(path: Path) -> None:
    found = path.stat()
    data = bytearray(path.read_bytes())
    data[-100:] = bytes(100)
    path.write_bytes(data)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.mark.parametrize("change", [_shorter, _same_size_and_time, lambda path: os.utime(path, ns=(1, 1))])
def test_a_video_that_changed_is_read_anew_and_that_is_said_once(
    change: Callable[[Path], None], cache: FrameTableCache, video: Path, caplog: pytest.LogCaptureFixture
) -> None:
    VideoReader(video).close()
    other = shutil.copy(video, video.with_name("b.mp4"))
    VideoReader(other).close()
    for path in (video, Path(other)):
        change(path)
    with caplog.at_level(logging.INFO):
        for path in (video, Path(other)):
            assert cache.read(path, None) is None
    assert sum("made anew" in record.message for record in caplog.records) == 1
    if change is _shorter:
        with VideoReader(video) as reader:
            assert reader.num_frames == 12


@pytest.mark.parametrize("seed", range(4))
def test_damaged_tables_are_made_anew(seed: int, cache: FrameTableCache, video: Path) -> None:
    draw = random.Random(seed)
    with VideoReader(video) as first:
        expected = first.read([4]).pixels
    [table] = _tables(cache)
    whole = table.read_bytes()
    for _ in range(12):
        data = bytearray(whole[: draw.randrange(len(whole))] if draw.random() < 0.3 else whole)
        for _ in range(draw.randrange(1, 20)):
            if data:
                data[draw.randrange(len(data))] = draw.randrange(256)
        table.write_bytes(data)
        with VideoReader(video) as reader:
            assert torch.equal(reader.read([4]).pixels, expected)


def test_tables_of_another_version_are_made_anew_and_that_is_said_once(
    cache: FrameTableCache, video: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    videos = [video, *(Path(shutil.copy(video, video.with_name(name))) for name in ("b.mp4", "c.mp4"))]
    for path in videos:
        VideoReader(path).close()
    monkeypatch.setattr(kept_tables, "FORMAT", "0 other")
    with caplog.at_level(logging.INFO):
        for path in videos:
            assert cache.read(path, None) is None
            VideoReader(path).close()
    assert sum("made anew" in record.message for record in caplog.records) == 1
    for path in videos:
        assert cache.read(path, None) is not None


def test_a_folder_that_cannot_be_written_costs_nothing_but_a_line(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(disk_cache.CACHE_VARIABLE, str(tmp_path / "file" / "tables"))
    monkeypatch.setattr("kinescan.data.video.decoder.LEAST_BYTES", 1)
    disk_cache._told.clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            with VideoReader(video) as reader:
                assert not reader.table_is_kept
                assert reader.num_frames == 30
    assert len(caplog.records) == 1


def test_tables_can_be_turned_off_and_small_files_need_none(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(disk_cache.CACHE_VARIABLE, "off")
    assert default_cache() is None
    monkeypatch.setenv(disk_cache.CACHE_VARIABLE, str(tmp_path / "tables"))
    with VideoReader(video) as reader:
        assert not reader.table_is_kept
    assert not (tmp_path / "tables").exists()


def test_a_cut_video_is_not_kept(cache: FrameTableCache, video: Path) -> None:
    cut = video.with_name("cut.mkv")
    write_video(cut, torch.randint(0, 256, (30, 3, 32, 48), dtype=torch.uint8), fps=10)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    for _ in range(2):
        with pytest.raises(OSError, match="frames"):
            VideoReader(cut)
    assert not _tables(cache)


def _read_for_a_while(videos: list[str], folder: str, seed: int, deletes: bool, start: Any, told: Any) -> None:
    """One of the processes; it tells what it saw: of each video the sums of its pixels, or an error."""
    os.environ[disk_cache.CACHE_VARIABLE] = folder
    from kinescan.data.video import decoder

    decoder.LEAST_BYTES = 1
    draw = random.Random(seed)
    sums: dict[str, set[int]] = {path: set() for path in videos}
    kept = rounds = 0
    try:
        start.wait(timeout=120)
        until = time.monotonic() + SECONDS_AT_ONCE
        while time.monotonic() < until or rounds < len(videos):
            video = videos[rounds % len(videos)]
            rounds += 1
            kept += FrameTableCache(Path(folder)).read(video, None) is not None
            with VideoReader(video) as reader:
                sums[video].add(int(reader.read([7, 3]).pixels.long().sum()))
            if deletes:
                # at moments of its own, while the others read and write: files, folders, everything
                for parent, folders, files in os.walk(folder, topdown=False):
                    for name in (*folders, *files):
                        if draw.random() < 0.3:
                            path = Path(parent, name)
                            path.unlink(missing_ok=True) if name in files else shutil.rmtree(path, ignore_errors=True)
                if draw.random() < 0.3:
                    shutil.rmtree(folder, ignore_errors=True)
        told.put(({path: sorted(found) for path, found in sums.items()}, kept, rounds))
    except BaseException as error:  # told to the test, which would wait
        told.put((repr(error), 0, rounds))
        raise


def test_eight_processes_that_read_write_and_delete_at_once_disturb_nobody(cache: FrameTableCache, video: Path) -> None:
    videos = [video, video.with_name("b.mp4"), video.with_name("c.mp4")]
    for path in videos[1:]:
        write_video(path, torch.randint(0, 256, (12, 3, 32, 48), dtype=torch.uint8), fps=10)
    expected = {}
    for path in videos:
        with VideoReader(path) as reader:
            expected[str(path)] = [int(reader.read([7, 3]).pixels.long().sum())]
    context: Any = worker_context()
    told, start = context.Queue(), context.Barrier(8)
    jobs = [
        context.Process(target=_read_for_a_while, args=(list(expected), str(cache.folder), seed, seed < 3, start, told))
        for seed in range(8)
    ]
    for job in jobs:
        job.start()
    found = [told.get(timeout=200) for _ in jobs]
    for job in jobs:
        job.join(timeout=60)
    assert [(job.exitcode, sums) for job, (sums, _, _) in zip(jobs, found, strict=True)] == [(0, expected)] * 8
    # some were found, others deleted and made anew
    kept, rounds = (sum(entry[column] for entry in found) for column in (1, 2))
    assert 0 < kept < rounds


WORKERS = """
import logging, os, sys
from pathlib import Path
from kinescan.data import AugmentConfig, TrainTransform, disk_cache, list_videos
from kinescan.data.datasets import VideoDataset
from kinescan.data.loader import LoaderConfig, make_loader
from kinescan.preprocessing import Preprocessing
from kinescan.runs.index import index

class Lines(logging.Handler):
    def emit(self, record):
        print(record.getMessage(), flush=True)

def change():
    disk_cache._told.clear()
    for path in Path("videos").rglob("*.mp4"):
        os.utime(path, ns=(1, os.stat(path).st_mtime_ns + 1))

if __name__ == "__main__":
    logging.getLogger("kinescan.data.disk_cache").addHandler(Lines())
    logging.getLogger("kinescan.data.disk_cache").setLevel(logging.INFO)
    index("videos", num_workers=2)
    change()
    index("videos", num_workers=2)
    change()
    settings = Preprocessing(num_frames=4, size=32)
    dataset = VideoDataset(list_videos("videos").items, ["a"], TrainTransform(settings, AugmentConfig()),
                           preprocessing=settings, mode="train")
    for batch in make_loader(dataset, LoaderConfig(batch_size=1, num_workers=2), shuffle=False, seed=0):
        assert len(batch.labels) == 1
"""


def test_what_worker_processes_make_anew_is_said_once_by_the_main_one(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        # of a size from which on tables are kept
        write_video(
            tmp_path / "videos/a" / f"{name}.mp4", torch.randint(0, 256, (24, 3, 256, 256), dtype=torch.uint8), fps=8
        )
    assert min(path.stat().st_size for path in (tmp_path / "videos/a").iterdir()) > kept_tables.LEAST_BYTES
    (tmp_path / "workers.py").write_text(WORKERS)
    done = subprocess.run(
        [sys.executable, "workers.py"],
        cwd=tmp_path,
        env={**os.environ, disk_cache.CACHE_VARIABLE: str(tmp_path / "tables")},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # of the second index, and of the batches
    assert [line.count("made anew") for line in lines] == [1, 1]
