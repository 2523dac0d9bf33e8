import errno
import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kinescan.errors import CheckpointError
from kinescan.models.classifier import VideoClassifier
from kinescan.runtime import atomic_write
from kinescan.training import checkpoint
from kinescan.training.checkpoint import (
    CHECKSUM_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    TrainState,
    earlier_name,
    find_checkpoint,
    load_state,
    read_rng,
    remove_earlier,
    write_checkpoint,
    write_rng,
)
from kinescan.training.progress import memory_gib

Save = Callable[..., None]
LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.fixture
def save(tiny_model: VideoClassifier) -> Save:
    def write(folder: Path, step: int = 3, earlier: Path | None = None) -> None:
        state = TrainState(epoch=1, step=step, best_score=0.5, rng=[read_rng()])
        write_checkpoint(folder, tiny_model.files_to_save(), state, earlier=earlier)

    return write


def test_save_checkpoint_gives_back_weights_and_state(save: Save, tiny_model: VideoClassifier, tmp_path: Path) -> None:
    save(tmp_path / "last")
    found = find_checkpoint(tmp_path / "last")
    assert found == tmp_path / "last"
    state = load_state(found)
    assert (state.epoch, state.step, state.best_score) == (1, 3, 0.5)
    read = type(tiny_model).from_pretrained(found).state_dict()
    assert all(torch.equal(tensor, read[name]) for name, tensor in tiny_model.state_dict().items())


def test_save_checkpoint_replaces_the_one_before_and_leaves_nothing_aside(save: Save, tmp_path: Path) -> None:
    save(tmp_path / "last", step=1)
    save(tmp_path / "last", step=2)
    assert load_state(tmp_path / "last").step == 2
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_save_checkpoint_that_fails_leaves_the_one_before(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "last", step=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kinescan.training.checkpoint.torch.save", full)
    with pytest.raises(CheckpointError, match=r"written.*No space left.*what"):
        save(tmp_path / "last", step=2)
    monkeypatch.undo()
    assert load_state(tmp_path / "last").step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_with_its_errno(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own writer raises RuntimeError without a reason; a file of Python raises OSError."""
    real = torch.save

    def full(values: object, file: Any) -> None:
        with Path("/dev/full").open("wb") as device:
            real(values, device if hasattr(file, "write") else "/dev/full")

    monkeypatch.setattr("kinescan.training.checkpoint.torch.save", full)
    with pytest.raises(CheckpointError) as raised:
        save(tmp_path / "last", step=2)
    assert isinstance(raised.value.__cause__, OSError)
    assert raised.value.__cause__.errno == errno.ENOSPC


@pytest.mark.parametrize("kept", [False, True])
def test_save_checkpoint_that_ends_anywhere_leaves_a_whole_one(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    calls_of = [
        (atomic_write.os, "replace"),
        (atomic_write.shutil, "rmtree"),
        (checkpoint.torch, "save"),
        (atomic_write, "_sync"),
    ]
    for owner, name in calls_of:
        original = getattr(owner, name)
        for number in range(1, 12):
            folder = tmp_path / f"{name}-{number}" / "last"
            save(folder, step=1)
            calls: list[int] = []

            def counted(*arguments: Any, calls: list[int] = calls, original: Any = original, end: int = number) -> Any:
                calls.append(1)
                if len(calls) == end:
                    raise Killed
                return original(*arguments)

            monkeypatch.setattr(owner, name, counted)
            earlier = earlier_name(folder, 1) if kept else None
            try:
                save(folder, step=2, earlier=earlier)
            except Killed:
                pass
            else:
                assert len(calls) < number
            monkeypatch.undo()
            found = find_checkpoint(folder)
            assert found is not None
            assert load_state(found).step in (1, 2)
            reached = load_state(found).step
            monkeypatch.setattr(checkpoint.torch, "save", killed)
            with pytest.raises(Killed):
                save(folder, step=3, earlier=earlier)
            monkeypatch.undo()
            again = find_checkpoint(folder)
            assert again is not None
            assert load_state(again).step == reached
            save(folder, step=3, earlier=earlier)
            assert load_state(folder).step == 3
            if len(calls) < number:
                break


def test_earlier_checkpoints_are_kept_removed_and_stand_in_for_a_lost_one(save: Save, tmp_path: Path) -> None:
    last = tmp_path / "last"
    save(last, step=1)
    for step in (2, 3, 4):
        save(last, step=step, earlier=earlier_name(last, step - 1))
    remove_earlier(last, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"last", "step-0000000002", "step-0000000003"}
    (last / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="step-0000000003"):
        find_checkpoint(last)
    shutil.rmtree(last)
    assert find_checkpoint(last) == earlier_name(last, 3)
    (earlier_name(last, 3) / STATE_FILE).write_bytes(b"cut")
    assert find_checkpoint(last) == earlier_name(last, 2)
    assert find_checkpoint(tmp_path / "best") is None


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of file sizes")
def test_save_checkpoint_on_a_full_disk_leaves_the_one_before(save: Save, tmp_path: Path) -> None:
    import resource

    save(tmp_path / "last", step=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        with pytest.raises(CheckpointError, match=r"last.*Free"):
            save(tmp_path / "last", step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    assert load_state(tmp_path / "last").step == 1


def test_find_checkpoint_takes_the_new_one_when_killed_between_the_two_renames(save: Save, tmp_path: Path) -> None:
    save(tmp_path / "last", step=1)
    (tmp_path / "last").rename(tmp_path / ".last.old")
    assert find_checkpoint(tmp_path / "last") == tmp_path / ".last.old"
    save(tmp_path / "other", step=2)
    (tmp_path / "other").rename(tmp_path / ".last.new")
    assert find_checkpoint(tmp_path / "last") == tmp_path / ".last.new"


def test_find_checkpoint_passes_over_an_unfinished_one_aside(save: Save, tmp_path: Path) -> None:
    save(tmp_path / ".last.new")
    (tmp_path / ".last.new" / CHECKSUM_FILE).unlink()
    assert find_checkpoint(tmp_path / "last") is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "model.safetensors"),
        (lambda folder: (folder / STATE_FILE).unlink(), "training_state.pt is missing"),
        (lambda folder: (folder / CHECKSUM_FILE).write_text("{"), "checksums.json"),
        (lambda folder: (folder / CHECKSUM_FILE).unlink(), "checksums.json"),
    ],
)
def test_find_checkpoint_refuses_a_damaged_one(
    save: Save, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    save(tmp_path / "last")
    damage(tmp_path / "last")
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(tmp_path / "last")


def test_load_state_refuses_a_folder_without_a_run(tiny_model: VideoClassifier, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "best", tiny_model.files_to_save(), None)
    with pytest.raises(CheckpointError, match="resume"):
        load_state(tmp_path / "best")


def test_load_state_refuses_another_format(tmp_path: Path) -> None:
    torch.save({"format": 99}, tmp_path / STATE_FILE)
    with pytest.raises(CheckpointError, match=r"99.*2"):
        load_state(tmp_path)


def test_load_state_refuses_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match="read"):
        load_state(tmp_path)


def test_write_rng_puts_every_generator_back(tmp_path: Path) -> None:
    torch.save(read_rng(), tmp_path / "rng.pt")
    first = (random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist())
    write_rng(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert (random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()) == first


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"epoch": -1}, "epoch"),
        ({"step": True}, "step"),
        ({"step": 2**70}, "step"),
        ({"log_lines": 1.5}, "log_lines"),
        ({"best_score": "high"}, "best_score"),
        ({"unreadable": {"a": 1}}, "unreadable"),
        ({"rng": [1]}, "rng"),
        ({"weights": {"w": 1}}, "weights"),
        ({"optimizer": []}, "optimizer"),
        ({"other": 1}, r"other \(unknown\)"),
        ({"step": None}, "step"),
        ({"settings": {"a": LOOP}}, "settings"),
        ({"settings": {"a": torch.zeros(1)}}, "settings"),
    ],
)
def test_load_state_refuses_fields_of_the_wrong_kind(
    save: Save, tmp_path: Path, changes: dict[str, Any], missing: str
) -> None:
    save(tmp_path / "last")
    file = tmp_path / "last" / (OPTIMIZER_FILE if changes.keys() & {"optimizer", "weights"} else STATE_FILE)
    torch.save({**torch.load(file), **changes}, file)
    with pytest.raises(CheckpointError, match=f"missing.*{missing}"):
        load_state(tmp_path / "last")
    values = torch.load(tmp_path / "last" / STATE_FILE)
    del values["step"]
    torch.save(values, tmp_path / "last" / STATE_FILE)
    with pytest.raises(CheckpointError, match="wrong"):
        load_state(tmp_path / "last")


@pytest.mark.parametrize("content", ["[]", "{", '{"../../etc/passwd": "0"}', '{"/etc/passwd": "0"}', "[" * 9999])
def test_find_checkpoint_refuses_lists_of_files_that_lead_elsewhere(save: Save, tmp_path: Path, content: str) -> None:
    save(tmp_path / "last")
    (tmp_path / "last" / CHECKSUM_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=r"checksums\.json"):
        find_checkpoint(tmp_path / "last")


@pytest.mark.parametrize("states", [{}, {"python": 1}, {"python": [3, [], None]}, {"python": [3, [-1] * 625, None]}])
def test_write_rng_refuses_other_states(states: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="random generators"):
        write_rng(states)


class _Gpu:
    """Stands in for torch.cuda's generators."""

    def __init__(self) -> None:
        self.states = {index: torch.full((4,), index, dtype=torch.uint8) for index in range(2)}

    def get(self, device: torch.device) -> torch.Tensor:
        return self.states[device.index or 0]

    def put(self, state: torch.Tensor, device: torch.device) -> None:
        self.states[device.index or 0] = state


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> _Gpu:
    found = _Gpu()
    monkeypatch.setattr(torch.cuda, "get_rng_state", found.get)
    monkeypatch.setattr(torch.cuda, "set_rng_state", found.put)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return found


def test_the_random_state_of_a_process_s_own_gpu_is_kept(gpu: _Gpu, caplog: pytest.LogCaptureFixture) -> None:
    device = torch.device("cuda", 1)
    states = read_rng(device)
    gpu.states = {0: torch.zeros(4, dtype=torch.uint8)}
    write_rng(states, torch.device("cuda", 0))
    assert gpu.states[0].tolist() == [1] * 4
    # Earlier versions kept all that were visible.
    write_rng({**read_rng(), "cuda": [torch.full((4,), 7, dtype=torch.uint8)]}, torch.device("cuda", 0))
    assert gpu.states[0].tolist() == [7] * 4
    assert not caplog.records
    write_rng(read_rng(), torch.device("cuda", 0))
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_the_random_state_of_an_apple_gpu_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[torch.Tensor] = []
    own, device = torch.arange(4, dtype=torch.uint8), torch.device("mps")
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: own)
    monkeypatch.setattr(torch.mps, "set_rng_state", put.append)
    write_rng(read_rng(device), device)
    assert put == [own]


def test_a_run_on_the_cpu_does_not_touch_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("get_rng_state_all", "get_rng_state", "max_memory_allocated", "current_device"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    write_rng(read_rng(torch.device("cpu")), torch.device("cpu"))
    assert memory_gib(torch.device("cpu")) > 0.01
