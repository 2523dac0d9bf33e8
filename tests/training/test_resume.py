"""Runs that are killed, again and again, and end as if nothing had happened."""

import contextlib
import hashlib
import importlib.util
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from kinescan.config import RunConfig, flat_settings
from kinescan.errors import ConfigError, TrainingInterrupted
from kinescan.settings import to_plain
from kinescan.training import Callback, OptimConfig, TrainConfig, fit
from kinescan.training.checkpoint import find_checkpoint, load_state
from kinescan.training.resume_check import ADDED, refuse_changes

SCRIPT = Path(__file__).with_name("killed_run.py")
TIMES = ("clips_per_second", "seconds")


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("killed_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    _script().run(folder)
    return folder


def _log(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flat(value: Any) -> list[Any]:
    """Every number of nested values, tensors as lists."""
    if isinstance(value, torch.Tensor):
        return [value.tolist()]
    if isinstance(value, dict):
        return [entry for key in sorted(value, key=str) for entry in [key, *_flat(value[key])]]
    if isinstance(value, list | tuple):
        return [entry for part in value for entry in _flat(part)]
    return [value]


def _assert_same(killed: Path, whole: Path) -> None:
    for name in ("last", "best"):
        files = [folder / "checkpoints" / name / "model.safetensors" for folder in (killed, whole)]
        assert _hash(files[0]) == _hash(files[1])
    states = [vars(load_state(folder / "checkpoints" / "last")) for folder in (killed, whole)]
    assert _flat(states[0]) == _flat(states[1])
    assert _log(killed) == _log(whole)
    kept = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (killed, whole)]
    assert kept[0] == kept[1] == ["best", "last", "step-0000000018", "step-0000000019"]


def _start(folder: Path, *end: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", str(SCRIPT), str(folder), *end]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_killed_at_random_moments_ends_as_if_undisturbed(undisturbed: Path, tmp_path: Path) -> None:
    moments, num_killed = random.Random(5), 0
    for _ in range(3):
        process = _start(tmp_path)
        _wait_for_a_new_checkpoint(process, tmp_path / "checkpoints" / "last")
        time.sleep(moments.uniform(0.0, 0.05))
        process.kill()
        _, errors = process.communicate(timeout=120)
        assert process.returncode != 1, errors
        num_killed += process.returncode != 0
        # Whatever was cut off, there is a whole checkpoint.
        assert find_checkpoint(tmp_path / "checkpoints" / "last") is not None
    assert num_killed > 0
    _script().run(tmp_path)
    _assert_same(tmp_path, undisturbed)


def _wait_for_a_new_checkpoint(process: subprocess.Popen[str], last: Path) -> None:
    """Returns when the process has written a checkpoint of its own, or has ended."""
    before = last.stat().st_ino if last.exists() else None
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if last.stat().st_ino != before:
                return
        time.sleep(0.002)


def test_a_run_that_dies_between_two_renames_ends_as_if_undisturbed(undisturbed: Path, tmp_path: Path) -> None:
    # After that of the log, four of the first checkpoint, and four of the second: the old one has been put aside.
    function, number = "os.replace", 10
    script = _script()
    died = _start(tmp_path, function, str(number))
    _, errors = died.communicate(timeout=120)
    assert died.returncode == 9, errors
    assert find_checkpoint(tmp_path / "checkpoints" / "last") is not None
    script.run(tmp_path)
    _assert_same(tmp_path, undisturbed)


def test_checkpoints_without_a_newer_setting_mean_what_was_done_then(tmp_path: Path) -> None:
    now = to_plain(RunConfig())
    flat = flat_settings(now)
    # the default of the split's seed was the run's seed, and is a number now: 0, which the run's seed is here
    assert {key: flat[key] for key in ADDED} == {**ADDED, "data.split_seed": 0}, "each is the default"

    def without(values: dict[str, object], where: str = "") -> dict[str, object]:
        return {
            key: without(value, f"{where}{key}.") if isinstance(value, dict) else value
            for key, value in values.items()
            if f"{where}{key}" not in ADDED
        }

    before = without(now)
    refuse_changes(before, now, tmp_path)
    with pytest.raises(ConfigError, match=r"data\.group"):
        refuse_changes(before, {**now, "data": {**now["data"], "group": "column person"}}, tmp_path)


class _TwoSignals(Callback):
    """A scheduler's SIGTERM, and that of the launcher behind it, within one step."""

    def on_step(self, step: Any) -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("launched", [True, False])
def test_under_a_launcher_the_second_signal_ends_no_run_without_its_checkpoint(
    launched: bool, tiny_model: Any, noise_clips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if launched:
        monkeypatch.setenv("RANK", "0")
    else:
        monkeypatch.delenv("RANK", raising=False)
    train, optim = TrainConfig(device="cpu", trackers=()), OptimConfig(lr=0.05, lr_batch_size=8, epochs=2)
    with pytest.raises(TrainingInterrupted if launched else KeyboardInterrupt):
        fit(tiny_model, noise_clips(), output=tmp_path, train=train, optim=optim, callbacks=[_TwoSignals()])
    assert (find_checkpoint(tmp_path / "checkpoints" / "last") is not None) == launched
