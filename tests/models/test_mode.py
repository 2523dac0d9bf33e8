"""Evaluation mode without a flag that threads would share."""

import threading
from functools import partial

import pytest
import torch
from torch import nn

from kinescan.models.mode import evaluation_view, train_mode, training_view


class Net(nn.Module):
    """Batch norm and dropout, a list of modules that is not registered, and a bound method kept as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout()
        self.shared = self.norm
        self.kept = [self.norm, self.drop]
        self.method = self.norm.forward
        self.partial = partial(_call, self.drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.partial(self.kept[1](self.method(self.kept[0](x))))


def _call(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return module(x)


def test_view_gives_what_eval_gives_and_changes_nothing() -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(8, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    view = evaluation_view(model)
    assert view.shared is view.norm is not model.norm
    given = view(x)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(given, model.eval()(x))
    assert not view.training
    assert {id(p) for p in view.parameters()} == {id(p) for p in model.parameters()}


def test_view_has_the_hooks_of_the_model_and_keeps_its_own() -> None:
    model, seen = Net().eval(), []
    model.norm.register_forward_hook(lambda *_: seen.append("model"))
    view = evaluation_view(model)
    view.drop.register_forward_hook(lambda *_: seen.append("view"))
    view(torch.zeros(2, 4))
    assert set(seen) == {"model", "view"}
    seen.clear()
    model(torch.zeros(2, 4))
    assert "view" not in seen


def test_view_of_a_compiled_module_is_uncompiled() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), torch.compile(nn.BatchNorm1d(4), backend="eager"))
    model[0].compile(backend="eager")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluation_view(model)(torch.randn(8, 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_training_view_leaves_modes() -> None:
    model = Net().eval()
    assert all(module.training for module in training_view(model).modules())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("others_train", [False, True])
def test_threads_that_predict_leave_batch_norms_as_they_are(others_train: bool) -> None:
    torch.manual_seed(0)
    model, alone = Net(), Net()
    alone.load_state_dict(model.state_dict())
    batches = torch.randn(40, 8, 4)
    stop = threading.Event()
    modes: list[bool] = []

    def predict() -> None:
        while not stop.is_set():
            evaluation_view(model)(batches[0] * 100)
            modes.append(model.training)

    threads = [threading.Thread(target=predict) for _ in range(3)]
    for thread in threads:
        thread.start()
    if others_train:
        for batch in batches:
            model.norm(batch)
            alone.norm(batch)
    while len(modes) < 50:
        threads[0].join(0.005)
    stop.set()
    for thread in threads:
        thread.join()
    assert all(modes)
    assert all(torch.equal(tensor, alone.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_norms_of_frozen_parts_stay_in_evaluation_mode() -> None:
    model = nn.ModuleDict(
        {
            "frozen": nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False)),
            "trained": nn.Sequential(nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False)),
            "apart": nn.BatchNorm1d(3),
        }
    )
    model["frozen"].requires_grad_(False)
    model["apart"].requires_grad_(False)
    assert [module.training for module in train_mode(model)["frozen"]] == [True, False, False]
    assert [module.training for module in model["trained"]] == [True, True, True]
    assert not model["apart"].training
    assert train_mode(nn.BatchNorm1d(3, affine=False)).training
