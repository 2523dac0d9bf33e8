import pytest
import torch
from torch import nn

from kinescan.training.ema import WeightEma


def _model() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model[0].bias.requires_grad_(False)
    return model


def test_average_covers_what_is_trained_and_statistics_and_is_put_in_and_out() -> None:
    model = _model()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ema = WeightEma(model, decay=0.9)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    ema.update(step=1)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with ema.in_model():
        for name, tensor in model.state_dict().items():
            # Early steps count more: 2 / 11 of the start values are left.
            moved = 1 if name in ("0.bias", "1.num_batches_tracked") else 9 / 11
            torch.testing.assert_close(tensor.double(), start[name].double() + moved)
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


def test_average_is_restored_from_a_model_that_holds_it() -> None:
    model = _model()
    ema = WeightEma(model, decay=0.5)
    nn.init.ones_(model[0].weight)
    ema.update(step=50)
    weights = ema.weights()
    ema.leave_in_model()
    again = WeightEma(model, decay=0.5)
    again.restore(weights)
    assert torch.equal(model[0].weight, torch.ones(3, 2))
    for kept in (ema, again):
        kept.update(step=51)
    with again.in_model():
        resumed = model[0].weight.clone()
    with ema.in_model():
        assert torch.equal(model[0].weight, resumed)


def test_average_refuses_weights_of_another_model() -> None:
    with pytest.raises(KeyError, match="averaged"):
        WeightEma(_model(), decay=0.5).restore({"0.weight": torch.zeros(3, 2)})
