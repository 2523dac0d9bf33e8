import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kinescan.errors import CheckpointError
from kinescan.models.weights.torchscript import is_torchscript, read_torchscript


class Inner(nn.Module):
    sizes: list[int]

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.table = nn.Parameter(torch.randn(4, 2).half().T)  # half, not contiguous
        self.register_buffer("count", torch.tensor([1, 2, 3]))
        self.sizes = [1, 2]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x * len(self.sizes)


class Outer(nn.Module):
    names: dict[str, int]

    def __init__(self) -> None:
        super().__init__()
        self.visual = Inner()
        self.names = {"a": 1}

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x) + self.names["a"]


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    model = Outer()
    torch.jit.script(model).save(str(tmp_path / "scripted.pt"))
    return tmp_path / "scripted.pt", model.state_dict()


def test_reads_the_state_dict_of_a_scripted_module(archive: tuple[Path, dict[str, Tensor]]) -> None:
    path, state = archive
    assert is_torchscript(path)
    tensors = read_torchscript(path)
    assert tensors.keys() == state.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name])


def test_traced_modules_too(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)).eval()
    torch.jit.trace(model, torch.randn(1, 3, 4, 4)).save(str(tmp_path / "traced.pt"))
    tensors = read_torchscript(tmp_path / "traced.pt")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())


def test_a_saved_state_dict_is_no_torchscript(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "state.pt")
    (tmp_path / "text.pt").write_text("hello")
    assert not is_torchscript(tmp_path / "state.pt")
    assert not is_torchscript(tmp_path / "text.pt")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("run",))


def test_names_other_than_tensors_are_refused(
    archive: tuple[Path, dict[str, Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same archive with a pickle that would call a function."""
    path = tmp_path / "evil.pt"
    with zipfile.ZipFile(archive[0]) as original, zipfile.ZipFile(path, "w") as changed:
        for name in original.namelist():
            content = original.read(name)
            changed.writestr(name, pickle.dumps(Evil(), protocol=2) if name.endswith("/data.pkl") else content)
    with pytest.raises(CheckpointError, match=r"TorchScript.*print"):
        read_torchscript(path)
    assert capsys.readouterr().out == ""


def test_a_missing_storage_is_an_error(archive: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    with zipfile.ZipFile(archive[0]) as original, zipfile.ZipFile(path, "w") as changed:
        for name in original.namelist():
            if not name.endswith("/data/0"):
                changed.writestr(name, original.read(name))
    with pytest.raises(CheckpointError, match=r"Fetch.*convert"):
        read_torchscript(path)
