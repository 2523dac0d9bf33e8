"""`kill -9` of a worker of Ray and of the command itself, while a video is read; where Ray is installed.

A video at an address of a server that does not answer yet says when a worker is in the middle of a part.
"""

import json
import os
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

from kinescan.data.video import write_video
from kinescan.inference.batch_predictor import BatchPredictor
from kinescan.models.zoo import create_model

pytest.importorskip("ray.data", reason="ray is not installed: pip install 'kinescan[ray]'")
parquet = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.timeout(3600)

DEADLINE_SECONDS = 600.0
"""Of one wait: Ray takes a minute to start on a machine with other work."""
SLOW = 3
"""Which row's video the server is asked for."""


class Job:
    """A command with one worker and a part a row, which waits for the server in the middle of its list."""

    def __init__(self, folder: Path, url: str, served: Behaviour) -> None:
        self.served, self.output = served, folder / "out"
        torch.manual_seed(0)
        create_model("pks4_vit_ti16", labels=["left", "right"]).save_pretrained(str(folder / "model"))
        for seed in range(6):
            generator = torch.Generator().manual_seed(seed)
            pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
            write_video(folder / f"{seed}.mp4", pixels, fps=8)
        rows = [f"{seed}.mp4" for seed in range(6)]
        rows[SLOW] = f"{url}/{SLOW}.mp4"
        self._list = folder / "list.txt"
        self._list.write_text("\n".join(rows))
        self._folder = folder
        self._processes: list[subprocess.Popen[str]] = []
        paths = [row if "://" in row else str(folder / row) for row in rows]
        self.expected = BatchPredictor(str(folder / "model"), top=2, device="cpu").rows(paths)
        self.served.num_requests = 0

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "kinescan", "predict", str(self._list), "--engine", "ray", "--output", "out"]
        command += ["--model", "model", "--top", "2", "--device", "cpu", "--json"]
        command += ["--set", "ray.part_rows=1", "--set", "ray.workers=1"]
        process = subprocess.Popen(
            command,
            cwd=self._folder,
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def started_and_reading(self) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
        """The command while its worker waits for the server, and the processes that it started."""
        self.served.seconds = 3600.0
        process = self.start()
        wait_for(lambda: self.served.num_requests > 0 or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        # the driver writes in its own time what the worker has given back
        wait_for(lambda: len(self.parts()) >= 1)
        return process, psutil.Process(process.pid).children(recursive=True)

    def parts(self) -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in self.output.glob("part-*.parquet")}

    def rows(self) -> list[dict[str, Any]]:
        rows = [row for file in sorted(self.output.glob("*.parquet")) for row in parquet.read_table(file).to_pylist()]
        assert [row.pop("number") for row in rows] == list(range(len(rows)))
        return rows

    def end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
            process.communicate()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    with serve(tmp_path) as (url, served):
        found = Job(tmp_path, url, served)
        yield found
        found.end()


def wait_for(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not is_so():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def test_a_killed_worker_loses_nothing_and_doubles_nothing(job: Job) -> None:
    process, children = job.started_and_reading()
    [worker] = [child for child in children if "MapWorker" in " ".join(child.cmdline())]
    job.served.seconds = 0.0
    before = job.served.num_requests
    worker.send_signal(signal.SIGKILL)
    said, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, errors
    # another worker read that video anew
    assert job.served.num_requests > before
    assert job.rows() == job.expected
    assert json.loads(said)["num_failed"] == 0


def test_after_a_killed_driver_the_same_command_does_what_is_left(job: Job) -> None:
    process, children = job.started_and_reading()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # nothing of Ray continues without it
    _, alive = psutil.wait_procs(children, timeout=DEADLINE_SECONDS)
    assert not alive
    job.served.seconds = 0.0
    done = job.parts()
    assert 1 <= len(done) <= SLOW
    again = job.start()
    said, errors = again.communicate(timeout=DEADLINE_SECONDS)
    assert again.returncode == 0, errors
    assert job.rows() == job.expected
    assert json.loads(said)["num_skipped"] == len(done)
    assert {name: job.parts()[name] for name in done} == done
