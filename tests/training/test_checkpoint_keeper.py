import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kinescan.errors import CheckpointError, ConfigError
from kinescan.models.saving.saved_model import read_weights
from kinescan.training import Callback, OptimConfig, TrainConfig, checkpoint, checkpoint_keeper, fit
from kinescan.training.checkpoint import OPTIMIZER_FILE, STATE_FILE, load_state

EVERY_STEP = TrainConfig(device="cpu", trackers=(), keep_checkpoints=9, checkpoint_minutes=1e-9)
OPTIM = OptimConfig(lr=0.05, lr_batch_size=8, epochs=1, layer_decay=1.0, ema_decay=0.9)


class StepWatch(Callback):
    """Sets an event with the second step."""

    def __init__(self) -> None:
        self.second, self.steps = threading.Event(), 0

    def on_step(self, step: Any) -> None:
        self.steps = step.step
        if self.steps == 2:
            self.second.set()


def _run(make: Any, noise_clips: Any, folder: Path, **options: Any) -> None:
    torch.manual_seed(0)
    fit(make(), noise_clips(num_batches=4), output=folder, train=EVERY_STEP, optim=OPTIM, seed=1, **options)


@pytest.fixture
def make(tiny_model: Any) -> Any:
    """Equal models, one for each call."""
    own = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}

    def new() -> Any:
        model = type(tiny_model)(tiny_model.config, labels=("minus", "plus"))
        model.load_state_dict(own)
        return model

    return new


def test_steps_are_taken_while_a_checkpoint_is_written(
    make: Any, noise_clips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(make, noise_clips, tmp_path / "plain")
    write, watch, waited = checkpoint_keeper.write_checkpoint, StepWatch(), []

    def slow(folder: Path, *arguments: Any, **options: Any) -> Any:
        if not waited:
            waited.append(watch.second.wait(timeout=60))
        return write(folder, *arguments, **options)

    monkeypatch.setattr(checkpoint_keeper, "write_checkpoint", slow)
    _run(make, noise_clips, tmp_path / "slow", callbacks=[watch])
    assert waited == [True]
    # What was written late is what was there when it was saved.
    for name in ("last", "step-0000000001", "step-0000000002"):
        ours, theirs = (tmp_path / run / "checkpoints" / name for run in ("slow", "plain"))
        for key, tensor in load_file(ours / "model.safetensors").items():
            assert torch.equal(tensor, load_file(theirs / "model.safetensors")[key])
        first, second = load_state(ours), load_state(theirs)
        assert (first.step, first.batches_done) == (second.step, second.batches_done)
        assert first.epoch_sums == second.epoch_sums
        for index, own in first.optimizer["state"].items():
            assert torch.equal(own["exp_avg"], second.optimizer["state"][index]["exp_avg"])
        assert all(torch.equal(tensor, second.weights[key]) for key, tensor in first.weights.items())


def test_what_the_disk_refuses_ends_the_run_soon(
    make: Any, noise_clips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, reached = StepWatch(), []

    def full(*_: object, **__: object) -> None:
        reached.append(watch.steps)
        raise CheckpointError("No space left on device")

    monkeypatch.setattr(checkpoint_keeper, "write_checkpoint", full)
    with pytest.raises(CheckpointError, match="No space"):
        _run(make, noise_clips, tmp_path, callbacks=[watch])
    assert len(reached) == 1
    assert watch.steps <= reached[0] + 1


def test_two_checkpoints_of_a_step_are_written_and_hashed_once(
    make: Any, noise_clips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    sha256 = checkpoint._sha256
    monkeypatch.setattr(checkpoint, "_sha256", lambda path: hashed.append(path.name) or sha256(path))
    train = TrainConfig(device="cpu", trackers=())
    evaluate = {"evaluate": lambda model: {"top1": 0.5}}
    fit(make(), noise_clips(), output=tmp_path / "linked", train=train, optim=OPTIM, seed=1, **evaluate)
    last, best = (tmp_path / "linked" / "checkpoints" / name for name in ("last", "best"))
    assert os.path.samefile(last / "model.safetensors", best / "model.safetensors")
    # before the evaluation, the best, and after it: one of each large file, though three checkpoints were written
    assert [hashed.count(name) for name in ("model.safetensors", OPTIMIZER_FILE, STATE_FILE)] == [1, 1, 2]
    for folder in (last, best):
        assert checkpoint.find_checkpoint(folder) == folder

    def no_links(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    fit(make(), noise_clips(), output=tmp_path / "copied", train=train, optim=OPTIM, seed=1, **evaluate)
    other = tmp_path / "copied" / "checkpoints"
    assert not os.path.samefile(other / "last" / "model.safetensors", other / "best" / "model.safetensors")
    for name in ("last", "best"):
        assert checkpoint.find_checkpoint(other / name) == other / name
        ours, theirs = (load_file(run / name / "model.safetensors") for run in (last.parent, other))
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def _write_as_before(last: Path, **changes: Any) -> dict[str, Any]:
    """Makes a checkpoint one of format 2, which held all of the state in one file; gives that state."""
    state = {**torch.load(last / STATE_FILE), **torch.load(last / OPTIMIZER_FILE), "format": 2, **changes}
    torch.save(state, last / STATE_FILE)
    (last / OPTIMIZER_FILE).unlink()
    sums = {path.name: checkpoint._sha256(path) for path in last.iterdir() if path.name != checkpoint.CHECKSUM_FILE}
    (last / checkpoint.CHECKSUM_FILE).write_text(json.dumps(sums))
    return state


def test_a_checkpoint_in_one_file_of_an_earlier_version_is_resumed(make: Any, noise_clips: Any, tmp_path: Path) -> None:
    whole = OptimConfig(**{**vars(OPTIM), "epochs": 2})
    model = make()
    fit(model, noise_clips(), output=tmp_path / "whole", train=EVERY_STEP, optim=whole, seed=1)
    fit(make(), noise_clips(), output=tmp_path / "old", train=EVERY_STEP, optim=OPTIM, seed=1)
    last = tmp_path / "old" / "checkpoints" / "last"
    state = _write_as_before(last)
    assert load_state(last).optimizer["state"].keys() == state["optimizer"]["state"].keys()
    resumed = make()
    fit(resumed, noise_clips(), output=tmp_path / "old", train=EVERY_STEP, optim=whole, seed=1, resume=True)
    assert resumed.state_dict().keys() == model.state_dict().keys()


def test_one_of_two_processes_and_an_earlier_version_is_resumed_by_one(
    make: Any, noise_clips: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where batches of all processes together stay the same; else it is refused, and nothing is lost."""
    fit(make(), noise_clips(), output=tmp_path, train=EVERY_STEP, optim=OPTIM, seed=1)
    last = tmp_path / "checkpoints" / "last"
    [rng] = torch.load(last / STATE_FILE)["rng"]
    half = noise_clips().batch_size // 2
    settings = {"processes": 2, "loader": {"batch_size": half}}
    _write_as_before(last, settings=settings, rng=[rng, rng])
    whole = OptimConfig(**{**vars(OPTIM), "epochs": 2})

    def resume(batch_size: int) -> int:
        own = {"loader": {"batch_size": batch_size}}
        options = {"train": EVERY_STEP, "optim": whole, "seed": 1, "resume": True, "settings": own}
        return fit(make(), noise_clips(batch_size=batch_size), output=tmp_path, **options).steps

    before = {path.name: path.read_bytes() for path in last.iterdir()}
    with pytest.raises(ConfigError) as refused:
        resume(half)
    assert "processes" in str(refused.value)
    assert before == {path.name: path.read_bytes() for path in last.iterdir()}
    assert resume(2 * half) == 2 * noise_clips().num_batches
    assert "processes was 2, is 1" in caplog.text


@pytest.mark.bad_input
def test_a_checkpoint_without_its_optimizer_is_refused(make: Any, noise_clips: Any, tmp_path: Path) -> None:
    _run(make, noise_clips, tmp_path)
    last = tmp_path / "checkpoints" / "last"
    (last / OPTIMIZER_FILE).unlink()
    with pytest.raises(CheckpointError, match=OPTIMIZER_FILE):
        load_state(last)
    torch.save([1], last / OPTIMIZER_FILE)
    with pytest.raises(CheckpointError, match=OPTIMIZER_FILE):
        load_state(last)


def test_processes_of_a_machine_share_what_is_read(make: Any, noise_clips: Any, tmp_path: Path) -> None:
    _run(make, noise_clips, tmp_path)
    state = load_state(tmp_path / "checkpoints" / "last")
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert any(OPTIMIZER_FILE in line for line in maps)
    assert state.optimizer["state"]


def test_a_model_is_read_from_a_checkpoint_without_what_only_training_needs(
    make: Any, noise_clips: Any, tmp_path: Path
) -> None:
    _run(make, noise_clips, tmp_path)
    last = tmp_path / "checkpoints" / "last"
    small = torch.load(last / STATE_FILE)
    assert not {"optimizer", "weights"} & small.keys()
    assert not any(isinstance(value, torch.Tensor) for value in small.values())
    weights = read_weights(last)
    for name in (OPTIMIZER_FILE, STATE_FILE):
        (last / name).unlink()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in read_weights(last).items())
