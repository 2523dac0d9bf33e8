"""Runs whose storage, workers, terminal or log goes away meanwhile."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tests.loopback_store import Behaviour, serve
from tests.mentions import mentions

import kinescan as ks
from kinescan.runtime import remote
from kinescan.training.checkpoint import load_state
from kinescan.training.step import Stepper

SETTINGS = ("optim.epochs=2", "train.checkpoint_minutes=1e-9", "train.log_every=1")


@pytest.fixture
def own_videos(videos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(videos, tmp_path / "own"))


@pytest.fixture
def run(kinescan: Any, train_arguments: list[str], own_videos: Path) -> Callable[..., Any]:
    """Trains on `own_videos` into a folder."""

    def train(output: Path, *more: str, settings: tuple[str, ...] = ()) -> Any:
        words = [word for value in (*SETTINGS, f"data.train={own_videos}", *settings) for word in ("--set", value)]
        return kinescan(*train_arguments, *words, "--output", output, *more)

    return train


def after_steps(monkeypatch: pytest.MonkeyPatch, number: int, happens: Callable[[], None]) -> None:
    """Lets something happen once, when so many steps were taken."""
    original, taken = Stepper.take, []

    def take(self: Stepper, *arguments: Any, **keywords: Any) -> Any:
        result = original(self, *arguments, **keywords)
        taken.append(0)
        if len(taken) == number:
            happens()
        return result

    monkeypatch.setattr(Stepper, "take", take)


def assert_same_weights(*outputs: Path) -> None:
    first, second = (ks.from_pretrained(output / "checkpoints" / "last").state_dict() for output in outputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, videos: Path, tiny: list[str]) -> Path:
    """A run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.toml").write_text('model = "pks4_vit_ti16"\n', encoding="utf-8")
    ks.train(folder / "tiny.toml", overrides=[*tiny, *SETTINGS, f"data.train={videos}"], output=folder / "run")
    return folder / "run"


@pytest.mark.parametrize(("kind", "step"), [("moved", 1), ("moved", 3), ("half gone", 2), ("emptied", 1)])
def test_an_outage_of_the_storage_is_not_trained_through(
    run: Any, whole: Path, own_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, step: int
) -> None:
    aside = tmp_path / "aside"

    def happens() -> None:
        own_videos.rename(aside)
        if kind == "half gone":
            shutil.copytree(aside / "dark", own_videos / "dark")
        elif kind == "emptied":
            for path in aside.rglob("*.mp4"):
                copy = own_videos / path.relative_to(aside)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.touch()

    with monkeypatch.context() as patch:
        after_steps(patch, step, happens)
        stopped = run(tmp_path / "stopped")
    assert stopped.exit_code == 1, stopped.stderr
    assert f"VideoError: {own_videos}" in stopped.stderr
    assert "--resume" in stopped.stderr
    assert not (tmp_path / "stopped" / "unreadable.json").exists()
    still = run(tmp_path / "stopped", "--resume")
    assert still.exit_code != 0, still.stderr
    shutil.rmtree(own_videos, ignore_errors=True)
    aside.rename(own_videos)
    ended = run(tmp_path / "stopped", "--resume")
    assert ended.exit_code == 0, ended.stderr
    assert not (tmp_path / "stopped" / "unreadable.json").exists()
    assert_same_weights(tmp_path / "stopped", whole)


def test_a_broken_file_ends_no_run_and_leaves_the_list_when_it_is_mended(
    run: Any, own_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = own_videos / "dark" / "1.mp4"
    content = broken.read_bytes()
    broken.write_bytes(b"no video")
    # a batch of one: some batches hold no clip
    ended = run(tmp_path / "run", settings=("loader.batch_size=1", "train.checkpoint_minutes=0"))
    assert ended.exit_code == 0, ended.stderr
    listed = json.loads((tmp_path / "run" / "unreadable.json").read_text())
    assert [row["path"] for row in listed] == [str(broken)]
    after_steps(monkeypatch, 9, lambda: broken.write_bytes(content) and None)
    broken.write_bytes(b"no video")
    assert run(tmp_path / "mended", settings=("loader.batch_size=1", "train.checkpoint_minutes=0")).exit_code == 0
    assert not (tmp_path / "mended" / "unreadable.json").exists()


@pytest.fixture
def far(
    own_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[tuple[str, ...], Behaviour]]:
    """Settings for lists of the videos at a server, the first of each class held out, and what the server does."""
    monkeypatch.setattr(remote, "_FIRST_WAIT_SECONDS", 0.001)
    with serve(own_videos) as (url, served):
        lists: dict[str, list[str]] = {"train": ["path,label"], "test": ["path,label"]}
        for path in sorted(own_videos.rglob("*.mp4")):
            name = path.relative_to(own_videos).as_posix()
            lists["test" if path.stem == "0" else "train"].append(f"{url}/{name},{path.parent.name}")
        for part, rows in lists.items():
            (tmp_path / f"{part}.csv").write_text("\n".join(rows))
        yield tuple(f"data.{part}={tmp_path / part}.csv" for part in lists), served


@pytest.mark.parametrize("fault", [{"status": 403}, {"status": 404}, {"status": 500}, {"short_by": 100}])
def test_one_file_that_a_store_does_not_give_out_ends_no_run(
    run: Any, far: tuple[tuple[str, ...], Behaviour], tmp_path: Path, fault: dict[str, int]
) -> None:
    settings, served = far
    vars(served).update(fault, failing="dark/1.mp4")
    ended = run(tmp_path / "run", settings=(*settings, "loader.batch_size=1"))
    assert ended.exit_code == 0, ended.stderr
    listed = json.loads((tmp_path / "run" / "unreadable.json").read_text())
    [path] = [row["path"] for row in listed]
    assert path.startswith("http://")
    assert path.endswith("/dark/1.mp4")


@pytest.mark.parametrize("kind", ["the store from the second step on", "a file that was read in the first epoch"])
def test_what_a_store_gave_out_and_does_not_any_more_ends_the_run(
    run: Any, far: tuple[tuple[str, ...], Behaviour], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    settings, served = far
    # what was read a moment ago is not kept, as with longer videos
    monkeypatch.setattr(remote, "_KEPT_SECONDS", 0.0)
    step, failing = (1, "") if kind.startswith("the store") else (10, "dark/1.mp4")
    with monkeypatch.context() as patch:
        after_steps(patch, step, lambda: vars(served).update(status=503, failing=failing))
        stopped = run(tmp_path / "stopped", settings=(*settings, "loader.batch_size=1"))
    assert stopped.exit_code == 1, stopped.stderr
    assert mentions(stopped.stderr, "VideoError", "--resume")
    assert not (tmp_path / "stopped" / "unreadable.json").exists()
    served.status = 0
    ended = run(tmp_path / "stopped", "--resume", settings=(*settings, "loader.batch_size=1"))
    assert ended.exit_code == 0, ended.stderr


WORKERS = """
import os, sys
from pathlib import Path
from kinescan.data import AugmentConfig, TrainTransform, VideoItem
from kinescan.data.datasets import VideoDataset
from kinescan.data.loader import LoaderConfig, make_loader
from kinescan.preprocessing import Preprocessing

def report(batch):
    print(batch, flush=True)

if __name__ == "__main__":
    settings = Preprocessing(num_frames=4, size=32)
    items = [VideoItem(path, 0, path.name) for path in sorted(Path(sys.argv[1]).rglob("*.mp4"))]
    transform = TrainTransform(settings, AugmentConfig())
    dataset = VideoDataset(items, ["a"], transform, preprocessing=settings, mode="train")
    loader = make_loader(dataset, LoaderConfig(batch_size=1, num_workers=2), shuffle=False, seed=0)
    for batch in loader:
        report(batch)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_workers_end_with_their_process_and_a_killed_one_is_an_error_of_ours(
    run: Any, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    command = [sys.executable, str(script), str(videos)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "Batch" in process.stdout.readline()
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) >= 2
        process.kill()
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive

    def kill_worker() -> None:
        workers = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
        for worker in workers:
            if not worker.children() and "resource_tracker" not in " ".join(worker.cmdline()):
                worker.kill()

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    settings = ("loader.num_workers=1", "loader.prefetch_batches=1", "loader.batch_size=1")
    with monkeypatch.context() as patch:
        after_steps(patch, 2, kill_worker)
        stopped = run(tmp_path / "stopped", settings=settings)
    assert stopped.exit_code == 1
    assert "WorkerError" in stopped.stderr
    assert "loader.num_workers" in stopped.stderr
    checkpoint = tmp_path / "stopped" / "checkpoints" / "last"
    assert mentions(stopped.stderr, str(checkpoint), "--resume")
    assert load_state(checkpoint).step >= 2


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals")
def test_a_closed_terminal_leaves_a_checkpoint(
    train_arguments: list[str], whole: Path, run: Any, own_videos: Path, tmp_path: Path
) -> None:
    pty = pytest.importorskip("pty")
    main, terminal = pty.openpty()
    output = tmp_path / "stopped"
    words = [
        word for value in (*SETTINGS, f"data.train={own_videos}", "optim.epochs=1000") for word in ("--set", value)
    ]
    command = [sys.executable, "-m", "kinescan", *train_arguments, *words, "--output", str(output)]
    process = subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(terminal)
    log = output / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("epoch") > 2) and time.monotonic() < deadline:
        os.set_blocking(main, False)
        try:
            os.read(main, 65536)
        except BlockingIOError:
            time.sleep(0.05)
    os.close(main)
    # as bash and the kernel both send it
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 1
    state = load_state(output / "checkpoints" / "last")
    assert state.step == json.loads(log.read_text().splitlines()[-1])["step"]
