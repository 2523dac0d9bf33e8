"""Against torch's own batch norm, by a group of one process; test_processes.py has the case of two."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from kinescan.runtime.distributed import Processes
from kinescan.training.sync_batch_norm import SynchronisedNorms


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
@pytest.mark.usefixtures("group")
def test_synchronised_norm_of_one_process_is_torch_s(options: dict[str, object]) -> None:
    plain, own = nn.BatchNorm2d(5, **options), nn.Sequential(nn.BatchNorm2d(5, **options))  # type: ignore[arg-type]
    norms = SynchronisedNorms(Processes(0, 2))
    for _ in range(3):
        maps = (3 * torch.randn(4, 5, 3, 2) + 7).requires_grad_()
        gradient = torch.randn(4, 5, 3, 2)
        expected = torch.autograd.grad(plain(maps), [maps, *plain.parameters()], gradient)
        with norms.applied(own):
            torch.testing.assert_close(own(maps), plain(maps), rtol=1e-4, atol=1e-5)
            found = torch.autograd.grad(own(maps), [maps, *own.parameters()], gradient)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        for one, other in zip(own.buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(one, other)
    with norms.applied(own.eval()):
        torch.testing.assert_close(own(maps), plain.eval()(maps))
        assert own(maps.bfloat16().float()).dtype == torch.float32


@pytest.mark.usefixtures("group")
def test_synchronised_norm_gives_half_precision_back() -> None:
    own = nn.Sequential(nn.BatchNorm2d(5))
    maps = torch.randn(4, 5, 3, 2)
    with SynchronisedNorms(Processes(0, 2)).applied(own):
        half = own(maps.bfloat16())
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), own(maps), rtol=2e-2, atol=2e-2)


def test_norms_stay_as_they_are_alone_and_get_their_forward_back() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5))
    with SynchronisedNorms(Processes()).applied(model):
        assert "forward" not in vars(model[1])
    with SynchronisedNorms(Processes(0, 2)).applied(model):
        assert "forward" in vars(model[1])
        assert "forward" not in vars(model[0])
    assert "forward" not in vars(model[1])
