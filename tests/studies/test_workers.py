"""Signals to a study on several processes, and to its workers, as a user or the system sends them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kinescan.studies import read_study, run_study
from kinescan.studies.study import dump_study

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="workers are found through /proc")
CODE = """
import sys
from kinescan.errors import KinescanError
from kinescan.runtime.signals import Interruption
from kinescan.studies import run_study
try:
    with Interruption() as stop:
        stop.immediate = True
        run_study(sys.argv[1], output=sys.argv[2], processes=2, code="c")
except KinescanError as error:
    sys.exit(type(error).__name__)
"""
PATIENCE_SECONDS = 90.0


def _workers(process: subprocess.Popen[str]) -> list[int]:
    """Processes that train for it."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def _wait(done: Any) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_workers_that_are_killed_or_asked_to_stop_lose_nothing(small: Any, tmp_path: Path, how: signal.Signals) -> None:
    study = small()
    study.settings["optim.epochs"] = 12
    file, output = tmp_path / "small.toml", tmp_path / "out"
    file.write_text(dump_study(study), encoding="utf-8")
    begun = subprocess.Popen([sys.executable, "-c", CODE, file, output], stderr=subprocess.PIPE, text=True)
    _wait(lambda: len(list(output.glob("runs/*/*/checkpoints/last/model.safetensors"))) == 2)
    one, other = _workers(begun)
    os.kill(one, signal.SIGKILL)
    _wait(lambda: _is_gone(one))
    begun.send_signal(how)
    _, told = begun.communicate(timeout=PATIENCE_SECONDS)
    _wait(lambda: _is_gone(other))
    if how == signal.SIGKILL:
        assert begun.returncode == -signal.SIGKILL
    else:
        assert begun.returncode == 1
        assert told.splitlines()[-1] in ("TrainingInterrupted", "KinescanError")
    finished = run_study(output, code="c")
    assert finished.is_finished
    assert {(run.epochs, run.status) for run in finished.runs} == {(12, "done")}
    assert max(run.sessions for run in finished.runs) == 2
    assert read_study(output, code="c").runs == finished.runs
