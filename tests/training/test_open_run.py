"""A run that is opened once, and handed to `fit`."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from kinescan.errors import CheckpointError, ConfigError
from kinescan.runtime.distributed import Processes
from kinescan.training import OptimConfig, TrainConfig, fit, open_run

TRAIN = TrainConfig(device="cpu", trackers=())
OPTIM = OptimConfig(lr=0.05, lr_batch_size=8, epochs=1)


def test_fit_trains_into_an_opened_run_and_leaves_it_open(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    with open_run.open_run(tmp_path / "run", device="cpu", resume=False) as run:
        assert (run.checkpoint, run.resume, run.processes.count) == (None, False, 1)
        result = fit(tiny_model, noise_clips(), output=run, train=TRAIN, optim=OPTIM)
        assert (run.folder.path / ".lock").exists()
    assert result.last == run.folder.last
    with open_run.open_run(tmp_path / "run", device="cpu", resume=True) as again:
        assert again.checkpoint == run.folder.last


def test_a_folder_with_a_run_is_opened_to_resume_only(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM)
    with (
        pytest.raises(ConfigError, match="--resume"),
        open_run.open_run(tmp_path, device="cpu", resume=False),
    ):
        pass
    (tmp_path / "checkpoints" / "last" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="checksum"), open_run.open_run(tmp_path, device="cpu", resume=True):
        pass


def test_a_resumption_looks_at_the_checkpoint_once_and_makes_no_second_model(
    tiny_model: Any, noise_clips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM)
    trained = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    made, looked = [], []
    build, find = type(tiny_model).__init__, open_run.find_checkpoint

    def counted(self: Any, *arguments: Any, **keywords: Any) -> None:
        made.append(self)
        build(self, *arguments, **keywords)

    def looking(folder: Path) -> Path | None:
        looked.append(folder)
        return find(folder)

    monkeypatch.setattr(type(tiny_model), "__init__", counted)
    monkeypatch.setattr(open_run, "find_checkpoint", looking)
    with torch.no_grad():
        tiny_model.head.weight.zero_()
    with open_run.open_run(tmp_path, device="cpu", resume=True) as run:
        result = fit(tiny_model, noise_clips(), output=run, train=TRAIN, optim=OPTIM)
    assert (len(made), looked) == (0, [run.folder.last])
    assert result.steps == 4
    assert all(torch.equal(trained[name], tensor) for name, tensor in tiny_model.state_dict().items())


class _Apart(Processes):
    """The second of two processes, on a machine of its own; what the first one says is given."""

    def __init__(self, said: list[Any]) -> None:
        super().__init__(1, 2)
        self.said = said

    def broadcast(self, value: Any) -> Any:
        return self.said.pop(0)

    def gather(self, value: Any) -> list[Any]:
        return [("process 0 on first", True), value]


@pytest.mark.parametrize("shared", [True, False])
def test_a_machine_that_does_not_share_the_folder_refuses(
    shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_run, "SHARED_SECONDS", 0.2)
    if shared:
        (tmp_path / "token").touch()
    with nullcontext() if shared else pytest.raises(ConfigError) as refused:
        open_run._require_shared(tmp_path, _Apart(["token", None]))
    if not shared:
        assert "process 1" in str(refused.value)
        assert "process 0" not in str(refused.value)


def test_other_processes_take_what_the_main_one_found_and_read_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tmp_path / "checkpoints" / "last"
    (tmp_path / "token").touch()
    read: list[Path] = []

    @contextmanager
    def second(device: torch.device) -> Iterator[Processes]:
        # the folder, its lock, the file that all have to see, and the checkpoint
        yield _Apart([str(tmp_path), None, "token", None, (found, None)])

    monkeypatch.setattr(open_run, "open_processes", second)
    monkeypatch.setattr(open_run, "find_checkpoint", lambda folder: read.append(folder))
    with open_run.open_run(tmp_path / "its own", device="cpu", resume=True) as run:
        assert (run.folder.path, run.checkpoint) == (tmp_path, found)
    assert read == []
    assert not (tmp_path / "its own").exists()
