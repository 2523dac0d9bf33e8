import hashlib
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kinescan.data import (
    AugmentConfig,
    Batch,
    EvalTransform,
    LoaderConfig,
    TrainTransform,
    Unreadable,
    VideoDataset,
    VideoReader,
    Views,
    make_loader,
    read_items,
)
from kinescan.data.datasets import Sample
from kinescan.data.loader import collate, worker_lost
from kinescan.data.transforms import finish_clips
from kinescan.errors import CheckpointError, ConfigError, WorkerError
from kinescan.preprocessing import Preprocessing

SETTINGS = Preprocessing(num_frames=4, size=16)


@pytest.fixture
def folder(make_video: Callable[..., Path], tmp_path: Path) -> Path:
    """Seven videos of two classes, the third of them broken."""
    for number in range(7):
        make_video(f"videos/{'even' if number % 2 == 0 else 'odd'}/{number}.mp4", num_frames=6 + number, seed=number)
    (tmp_path / "videos/even/2.mp4").write_text("no video")
    return tmp_path / "videos"


def training_set(folder: Path, **changes: object) -> VideoDataset:
    items, classes = read_items(folder)
    options = {"preprocessing": SETTINGS, "mode": "train", "seed": 5, **changes}
    return VideoDataset(items, classes, TrainTransform(SETTINGS, AugmentConfig()), **options)  # type: ignore[arg-type]


def evaluation_set(folder: Path, views: Views, settings: Preprocessing = SETTINGS) -> VideoDataset:
    items, classes = read_items(folder)
    transform = EvalTransform(settings, crops=views.crops)
    return VideoDataset(items, classes, transform, preprocessing=settings, mode="test", views=views)


def digest(batches: list[Batch]) -> str:
    sha = hashlib.sha256()
    for batch in batches:
        sha.update(batch.clips.numpy().tobytes())
        sha.update(repr((batch.labels.tolist(), batch.item_indices, batch.unreadable)).encode())
    return sha.hexdigest()


def test_broken_videos_are_listed_and_swapped_for_none(folder: Path) -> None:
    dataset = training_set(folder)
    broken = dataset[1]
    assert isinstance(broken, Unreadable)
    assert (broken.path, broken.item_index) == (str(folder / "even/2.mp4"), 1)
    assert "opened" in broken.reason
    batches = list(make_loader(dataset, LoaderConfig(batch_size=4, num_workers=0), shuffle=True, seed=0))
    assert sorted(index for batch in batches for index in batch.item_indices) == [0, 2, 3, 4, 5, 6]
    assert [file.item_index for batch in batches for file in batch.unreadable] == [1]
    for batch in batches:
        assert batch.clips.shape == (len(batch.labels), 4, 3, 16, 16)
        assert batch.labels.tolist() == [dataset.items[index].label for index in batch.item_indices]


def test_batch_of_broken_videos_only_is_empty(folder: Path) -> None:
    dataset = training_set(folder)
    loader = make_loader(dataset, LoaderConfig(batch_size=1, num_workers=0), shuffle=False, seed=0)
    batch = list(loader)[1]
    assert len(batch.labels) == len(batch.clips) == 0
    assert len(batch.unreadable) == 1
    assert repr(batch) == "Batch(clips=[0], 1 unreadable)"


def test_missing_files_are_listed_too(folder: Path) -> None:
    dataset = training_set(folder)
    (folder / "odd/1.mp4").unlink()
    sample = dataset[4]
    assert isinstance(sample, Unreadable)
    assert "file" in sample.reason


def test_draws_depend_on_seed_epoch_and_video_only(folder: Path) -> None:
    dataset = training_set(folder)
    first = dataset[0]
    assert isinstance(first, Sample)
    torch.rand(7)
    assert torch.equal(first.clip, training_set(folder)[(0, 0)].clip)  # type: ignore[union-attr]
    assert not torch.equal(first.clip, dataset[(1, 0)].clip)  # type: ignore[union-attr]
    assert not torch.equal(first.clip, training_set(folder, seed=6)[0].clip)  # type: ignore[union-attr]
    dataset.set_epoch(1)
    assert torch.equal(dataset[0].clip, dataset[(1, 0)].clip)  # type: ignore[union-attr]
    fewer = training_set(folder)
    fewer.items = fewer.items[3:]
    assert torch.equal(fewer[0].clip, training_set(folder)[3].clip)  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than cores, on purpose
@pytest.mark.parametrize(
    ("num_workers", "start_method"),
    [
        (1, "auto"),
        (2, "spawn"),
        pytest.param(4, "auto", marks=pytest.mark.slow),
        pytest.param(8, "auto", marks=pytest.mark.slow),
    ],
)
def test_workers_change_nothing(folder: Path, num_workers: int, start_method: str) -> None:
    dataset = training_set(folder)
    expected = make_loader(dataset, LoaderConfig(batch_size=3, num_workers=0), shuffle=True, seed=1)
    config = LoaderConfig(batch_size=3, num_workers=num_workers, start_method=start_method)  # type: ignore[arg-type]
    loader = make_loader(dataset, config, shuffle=True, seed=1)
    seen = set()
    for epoch, start_item in ((0, 0), (1, 0), (1, 3), (0, 0)):
        loader.set_epoch(epoch, start_item=start_item)
        expected.set_epoch(epoch, start_item=start_item)
        ours = digest(list(loader))
        assert ours == digest(list(expected))
        seen.add(ours)
    assert len(seen) == 3


PROCESS = """
import hashlib, json, sys
import torch
from kinescan.data import AugmentConfig, LoaderConfig, TrainTransform, VideoDataset, make_loader, mix, read_items
from kinescan.preprocessing import Preprocessing

def digests(folder, batch_size, num_processes, process_index):
    settings, augment = Preprocessing(num_frames=4, size=16), AugmentConfig(flip_rate=0.5, color_jitter=0.4)
    items, classes = read_items(folder)
    dataset = VideoDataset(items, classes, TrainTransform(settings, augment), preprocessing=settings, mode="train")
    config = LoaderConfig(batch_size=batch_size, num_workers=0)
    processes = {"num_processes": num_processes, "process_index": process_index}
    loader = make_loader(dataset, config, shuffle=True, seed=1, **processes)
    found = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        for number, batch in enumerate(loader):
            clips, soft = batch.clips, torch.nn.functional.one_hot(batch.labels, 2).float()
            if batch.item_indices:
                generator = torch.Generator().manual_seed(100 * epoch + number)
                clips, soft = mix(clips, soft, augment, generator, positions=batch.positions)
            rows = [hashlib.sha256(c.numpy().tobytes() + s.numpy().tobytes()).hexdigest() for c, s in zip(clips, soft)]
            unreadable = [file.item_index for file in batch.unreadable]
            found.append([epoch, number, [list(row) for row in zip(batch.item_indices, rows)], unreadable])
    return found

if __name__ == "__main__":
    print(json.dumps(digests(sys.argv[1], *map(int, sys.argv[2:]))))
"""
"""A training process: hashes of its mixed clips and soft labels."""


def test_two_processes_give_the_mixed_clips_of_one(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    words = [sys.executable, str(script), str(folder), "2", "2"]
    started = [subprocess.Popen([*words, str(index)], stdout=subprocess.PIPE, text=True) for index in range(2)]
    parts = [json.loads(process.communicate(timeout=240)[0]) for process in started]
    together = [[*a[:2], a[2] + b[2], a[3] + b[3]] for a, b in zip(*parts, strict=True)]
    here: dict[str, Any] = {"__name__": "here"}
    exec(PROCESS, here)
    assert together == (expected := here["digests"](str(folder), 4, 1, 0))
    assert sorted(item for batch in expected[:2] for item, _ in batch[2]) == [0, 2, 3, 4, 5, 6]
    assert len({row for batch in expected for _, row in batch[2]}) == 12


@pytest.mark.parametrize(
    ("num_videos", "batch_size", "num_processes"), [(7, 2, 2), (9, 4, 3), (5, 1, 4), (6, 3, 2), (8, 2, 2)]
)
def test_every_video_is_given_by_one_process(
    folder: Path, num_videos: int, batch_size: int, num_processes: int
) -> None:
    dataset = training_set(folder)
    dataset.items = (dataset.items * 2)[:num_videos]
    for start_item in (0, min(num_processes * batch_size, num_videos)):
        loaders = [
            make_loader(
                dataset,
                LoaderConfig(batch_size=batch_size, num_workers=0),
                shuffle=True,
                seed=2,
                start_item=start_item,
                num_processes=num_processes,
                process_index=index,
            )
            for index in range(num_processes)
        ]
        orders = [[[item for _, item in batch] for batch in loader._order] for loader in loaders]
        assert {len(loader) for loader in loaders} == {len(order) for order in orders}
        assert all(len(batch) <= batch_size for order in orders for batch in order)
        together = [item for parts in zip(*orders, strict=True) for part in parts for item in part]
        alone = make_loader(dataset, LoaderConfig(num_workers=0), shuffle=True, seed=2, start_item=start_item)
        assert together == [item for batch in alone._order for _, item in batch]
        assert loaders[0].global_batch_size == num_processes * batch_size


def test_process_that_is_not_among_them_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"process_index.*\[0, 2.*2"):
        make_loader(training_set(folder), LoaderConfig(), shuffle=True, seed=0, num_processes=2, process_index=2)


def test_epoch_can_be_entered_in_its_middle(folder: Path) -> None:
    dataset = training_set(folder)
    config = LoaderConfig(batch_size=2, num_workers=0)
    whole = list(make_loader(dataset, config, shuffle=True, seed=1, epoch=3))
    loader = make_loader(dataset, config, shuffle=True, seed=1, epoch=3, start_item=4)
    assert len(loader) == 2
    assert digest(list(loader)) == digest(whole[2:])
    with pytest.raises(ConfigError, match=r"start_item.*\[0, 7\].*8"):
        loader.set_epoch(3, start_item=8)


def test_passes_of_an_epoch_are_the_epochs_of_one_pass_each(folder: Path) -> None:
    dataset, config = training_set(folder), LoaderConfig(batch_size=1, num_workers=0)
    epochs = (make_loader(dataset, config, shuffle=True, seed=1, epoch=epoch) for epoch in (3, 4, 5))
    alone = [batch for epoch in epochs for batch in epoch]
    loader = make_loader(dataset, config, shuffle=True, seed=1, epoch=1, num_passes=3, start_item=9)
    assert (len(loader), digest(list(loader))) == (12, digest(alone[9:]))
    with pytest.raises(ConfigError, match=r"num_passes.*0"):
        make_loader(dataset, config, shuffle=True, seed=1, num_passes=0)


def test_order_changes_with_the_epoch_and_not_without_shuffling(folder: Path) -> None:
    dataset = training_set(folder)
    config = LoaderConfig(batch_size=7, num_workers=0)
    orders = [
        next(iter(make_loader(dataset, config, shuffle=shuffle, seed=1, epoch=epoch))).item_indices
        for shuffle in (True, False)
        for epoch in (0, 1)
    ]
    assert orders[0] != orders[1]
    assert orders[2] == orders[3] == [0, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("sampling", ["segments", "dense"])
def test_views_are_clips_by_crops(folder: Path, sampling: str) -> None:
    settings = Preprocessing(num_frames=4, size=16, sampling=sampling, frame_stride=2)  # type: ignore[arg-type]
    dataset = evaluation_set(folder, Views.parse("4x2x3"), settings)
    sample = dataset[6]
    assert isinstance(sample, Sample)
    assert sample.clip.shape == (6, 4, 3, 16, 16)
    assert torch.equal(sample.clip, dataset[(9, 6)].clip)  # type: ignore[union-attr]
    transform = EvalTransform(settings, crops=3)
    with VideoReader(dataset.items[6].path) as video:
        expected_indices = {"segments": [[0, 3, 6, 8], [2, 4, 7, 10]], "dense": [[0, 2, 4, 6], [4, 6, 8, 10]]}[sampling]
        expected = torch.cat([transform(video.read(clip).pixels) for clip in expected_indices])
    assert torch.equal(sample.clip, expected)


def test_dense_training_clips_are_drawn(folder: Path) -> None:
    settings = Preprocessing(num_frames=4, size=16, sampling="dense", frame_stride=1)
    sample = training_set(folder, preprocessing=settings)[0]
    assert isinstance(sample, Sample)
    assert repr(sample) == "Sample(clip=[4, 3, 16, 16], label=0, item_index=0)"


def test_more_frames_than_the_video_has(folder: Path) -> None:
    sample = evaluation_set(folder, Views(frames=32, clips=1, crops=1))[0]
    assert isinstance(sample, Sample)
    assert sample.clip.shape == (1, 32, 3, 16, 16)


def mirrored_set(make_video: Callable[..., Path], tmp_path: Path, flip_rate: float, labels: list[str]) -> VideoDataset:
    for label in labels:
        make_video(f"{label}/{label}.avi", codec="ffv1", height=16, width=16)
    items, classes = read_items(tmp_path)
    augment = AugmentConfig(
        crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), rand_augment_operations=0, erase_rate=0, flip_rate=flip_rate
    )
    return VideoDataset(items, classes, TrainTransform(SETTINGS, augment), preprocessing=SETTINGS, mode="train")


def test_mirrored_clips_take_the_label_of_the_opposite_direction(
    make_video: Callable[..., Path], tmp_path: Path
) -> None:
    labels = ["left", "right", "still", "turn_left"]
    plain, mirrored = (mirrored_set(make_video, tmp_path, rate, labels) for rate in (0.0, 1.0))
    for index, label in enumerate((1, 0, 2, 3)):
        before, after = plain[(0, index)], mirrored[(0, index)]
        assert isinstance(before, Sample)
        assert isinstance(after, Sample)
        assert (before.label, after.label) == (index, label)
        # nobody turns right here: such clips stay as they are
        assert torch.equal(after.clip, before.clip if label == 3 else before.clip.flip(3))
    sometimes = mirrored_set(make_video, tmp_path, 0.5, labels)
    sampled = [[sometimes[(epoch, index)].label for index in range(2)] for epoch in range(20)]  # type: ignore[union-attr]
    assert {tuple(pair) for pair in sampled} == {(0, 1), (1, 1), (0, 0), (1, 0)}
    batch = next(iter(make_loader(mirrored, LoaderConfig(batch_size=4, num_workers=0), shuffle=False, seed=0)))
    assert batch.labels.tolist() == [1, 0, 2, 3]


@pytest.mark.parametrize("in_worker", [False, True])
def test_clips_of_a_batch_lie_in_one_block(folder: Path, in_worker: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if in_worker:
        monkeypatch.setattr("torch.utils.data.get_worker_info", lambda: object())
    for dataset, shape in (
        (training_set(folder), (2, 4, 3, 16, 16)),
        (evaluation_set(folder, Views.parse("4x2x3")), (2, 6, 4, 3, 16, 16)),
    ):
        samples = dataset.__getitems__([(0, 6), (0, 3)])
        assert repr(samples) == f"Samples(2, clips={list(shape)})"
        batch = collate(samples)
        assert batch.clips.shape == shape
        assert batch.clips.data_ptr() == samples.clips.data_ptr()
        assert batch.clips.is_shared() == in_worker
        for clip, index in zip(batch.clips, (6, 3), strict=True):
            assert torch.equal(clip, dataset[(0, index)].clip)  # type: ignore[union-attr]
        assert [sample.clip.data_ptr() for sample in samples.samples] == [clip.data_ptr() for clip in batch.clips]  # type: ignore[union-attr]


@pytest.mark.parametrize("num_clips", [1, 4])
def test_windows_of_long_videos(make_video: Callable[..., Path], tmp_path: Path, num_clips: int) -> None:
    make_video("run/a.mp4", num_frames=64)
    settings = Preprocessing(num_frames=4, size=16, sampling="windows", num_windows=4)
    dataset = evaluation_set(tmp_path, Views(frames=4, clips=num_clips), settings)
    with VideoReader(dataset.items[0].path) as video:
        expected_indices = [26, 30, 34, 38] if num_clips == 1 else range(2, 64, 4)
        expected = EvalTransform(settings)(video.read(list(expected_indices)).pixels)[0].unflatten(0, (num_clips, 4))
    sample = dataset[0]
    assert isinstance(sample, Sample)
    assert torch.equal(sample.clip, expected)
    assert training_set(tmp_path, preprocessing=settings)[0].clip.shape == (4, 3, 16, 16)  # type: ignore[union-attr]


def test_data_set_checks_what_it_is_given(folder: Path) -> None:
    items, classes = read_items(folder)
    train, test = TrainTransform(SETTINGS, AugmentConfig()), EvalTransform(SETTINGS, crops=3)
    with pytest.raises(ConfigError, match="video"):
        VideoDataset([], classes, train, preprocessing=SETTINGS, mode="train")
    with pytest.raises(ConfigError, match=r"label 1.*1 classes"):
        VideoDataset(items, classes[:1], train, preprocessing=SETTINGS, mode="train")
    with pytest.raises(ConfigError, match='mode="test" takes a EvalTransform, got TrainTransform'):
        VideoDataset(items, classes, train, preprocessing=SETTINGS, mode="test")
    with pytest.raises(ConfigError, match=r"views 4x1x1.*1.*3"):
        VideoDataset(items, classes, test, preprocessing=SETTINGS, mode="test", views=Views.parse("4x1x1"))


@pytest.mark.parametrize("name", ["batch_size", "prefetch_batches", "num_workers"])
def test_loader_settings_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        LoaderConfig(**{name: -1})


def test_start_method_that_is_not_there_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(ConfigError, match="start_method 'fork'"):
        make_loader(training_set(folder), LoaderConfig(num_workers=1, start_method="fork"), shuffle=False, seed=0)


def test_training_clips_tell_how_far_apart_their_frames_are(make_video: Callable[..., Path], tmp_path: Path) -> None:
    for number, (fps, num_frames) in enumerate(((10.0, 24), (20.0, 24), (10.0, 1), (10.0, 5))):
        make_video(f"videos/{'ab'[number % 2]}/{number}.mp4", num_frames=num_frames, fps=fps)
    dense = Preprocessing(num_frames=4, size=16, sampling="dense", frame_stride=2)
    dataset = training_set(tmp_path / "videos", preprocessing=dense)
    [batch] = make_loader(dataset, LoaderConfig(num_workers=0, batch_size=4), shuffle=False, seed=0)
    told = dict(zip([dataset.items[index].path.stem for index in batch.item_indices], batch.frame_seconds, strict=True))
    assert told == pytest.approx({"0": 0.2, "1": 0.1, "2": 0.0, "3": 0.2})


def test_batch_has_the_old_name_of_positions() -> None:
    batch = Batch(torch.zeros(1), torch.zeros(1), [0], [], positions=[3])
    with pytest.warns(DeprecationWarning, match="positions"):
        assert batch.places == [3]


def test_clips_in_bytes_are_finished_to_the_same_clips(folder: Path) -> None:
    augment = AugmentConfig(flip_rate=0.5, color_jitter=0.4, erase_rate=1.0)
    items, classes = read_items(folder)
    batches = []
    for in_bytes in (False, True):
        dataset = VideoDataset(items, classes, TrainTransform(SETTINGS, augment), preprocessing=SETTINGS, mode="train")
        dataset.in_bytes = in_bytes
        batches.append(list(make_loader(dataset, LoaderConfig(batch_size=4, num_workers=1), shuffle=True, seed=0)))
    for finished, raw in zip(*batches, strict=True):
        assert (finished.clips.dtype, raw.clips.dtype) == (torch.float32, torch.uint8)
        assert len(raw.left) == len(raw.clips)
        assert not finished.left
        assert torch.equal(finish_clips(raw.clips, raw.left, SETTINGS), finished.clips)


class Breaks:
    """Gives no batch of what one worker reads, but an error."""

    def __init__(self, worker: Any, error: Exception) -> None:
        self._workers, self.error = [worker], error

    def __next__(self) -> Batch:
        raise self.error


@pytest.fixture
def worker(lives: bool) -> Iterator[Any]:
    """A process as a worker is one: it lives, or it has ended."""
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60 if lives else 0,))
    process.start()
    if not lives:
        process.join()
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize("lives", [True, False])
def test_an_ended_worker_is_told_by_its_process_whatever_the_error_says(
    folder: Path, worker: Any, lives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly" if lives else "anything")
    breaks = Breaks(worker, error)
    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", lambda _: breaks)
    loader = make_loader(training_set(folder), LoaderConfig(batch_size=2), shuffle=False, seed=0)
    with pytest.raises(RuntimeError) as raised:
        next(iter(loader))
    assert (raised.value is error) is lives
    assert isinstance(raised.value, WorkerError) is not lives
    assert worker_lost(error) is None  # told once


class Gives(Breaks):
    """An iterator that always has a batch."""

    def __next__(self) -> Any:
        return Batch(torch.empty(0), torch.empty(0), [], [])


@pytest.mark.parametrize("lives", [True, False])
def test_an_ended_worker_is_told_while_a_batch_is_in_use_once_and_for_no_error_of_ours(
    folder: Path, worker: Any, lives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gives = Gives(worker, RuntimeError("not raised"))
    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", lambda _: gives)
    batches = iter(make_loader(training_set(folder), LoaderConfig(batch_size=2), shuffle=False, seed=0))
    next(batches)
    assert worker_lost(CheckpointError("the disk is full")) is None
    assert (worker_lost(RuntimeError("anything")) is None) is lives
    assert worker_lost(RuntimeError("of the next run")) is None
    batches = iter(make_loader(training_set(folder), LoaderConfig(batch_size=2), shuffle=False, seed=0))
    next(batches)
    batches.close()
    assert worker_lost(RuntimeError("after the epoch")) is None


@pytest.mark.parametrize(
    ("error", "ends"),
    [(ConnectionResetError, True), (EOFError, True), (FileNotFoundError, True), (ConnectionResetError, False)],
)
def test_connection_that_breaks_since_a_worker_ends_is_an_error_of_ours(
    folder: Path, error: type[Exception], ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0.5 if ends else 60,))
    worker.start()  # the connection ends before the process does
    breaks = Breaks(worker, error())
    loader = make_loader(training_set(folder), LoaderConfig(batch_size=2), shuffle=False, seed=0)
    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", lambda _: breaks)
    try:
        with pytest.raises(WorkerError if ends else error):
            next(iter(loader))
    finally:
        worker.kill()
        worker.join()


@pytest.mark.parametrize(
    ("name", "text", "is_named"),
    [
        ("mine.py", "import kinescan as ks\nks.train('own_videos_cpu')\n", True),
        ("mine.py", "import kinescan as ks\nif __name__ == '__main__':\n    ks.train('own_videos_cpu')\n", False),
        ("kinescan", "from kinescan.cli.main import main\nmain()\n", False),
        ("gone.py", None, False),
    ],
)
def test_a_script_that_every_worker_would_run_again_is_named(
    name: str, text: str | None, is_named: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0,))
    worker.start()
    worker.join()
    breaks = Breaks(worker, RuntimeError("anything"))
    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", lambda _: breaks)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / name), raising=False)
    with pytest.raises(WorkerError, match=r"loader\.num_workers") as raised:
        next(iter(make_loader(training_set(folder), LoaderConfig(batch_size=2), shuffle=False, seed=0)))
    assert (name in str(raised.value) and "__main__" in str(raised.value)) is is_named
