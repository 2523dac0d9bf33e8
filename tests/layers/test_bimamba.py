from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kinescan.layers.bimamba import BidirectionalMamba
from kinescan.training.optim import OptimConfig, parameter_groups

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "bimamba_block.safetensors")


def _published_block(values: dict[str, Tensor]) -> BidirectionalMamba:
    block = BidirectionalMamba(32)
    state = {k.removeprefix("state_dict/"): v for k, v in values.items() if k.startswith("state_dict/")}
    block.load_state_dict(state, strict=True)
    return block


def _assert_gradient(gradient: Tensor, expected: Tensor, fraction: float, name: str = "") -> None:
    assert (gradient.double() - expected).abs().max() <= fraction * expected.abs().max().clamp(min=1e-6), name


def test_bimamba_matches_published_values() -> None:
    block = _published_block(GOLDEN)
    x = GOLDEN["L8/x"].clone().requires_grad_()
    y = block(x)
    torch.testing.assert_close(y.double(), GOLDEN["L8/y_f64"], atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(y, x, GOLDEN["L8/grad_out"])
    _assert_gradient(gradient, GOLDEN["L8/dx_f64"], 1e-4)


@pytest.mark.parametrize("length", [1, 2, 8, 33])
@pytest.mark.parametrize(
    ("dtype", "tolerance", "fraction"), [(torch.float64, (1e-10, 1e-9), 1e-8), (torch.float32, (1e-5, 1e-5), 1e-4)]
)
def test_bimamba_matches_every_published_length_and_gradient(
    length: int, dtype: torch.dtype, tolerance: tuple[float, float], fraction: float, shared: Path
) -> None:
    values = load_file(shared / "fixtures" / "mamba_block.safetensors")
    values = {k.removeprefix("bimamba_v2_d32/"): v for k, v in values.items() if k.startswith("bimamba_v2_d32/")}
    block = _published_block(values).to(dtype)
    x = values[f"L{length}/x"].to(dtype).requires_grad_()
    y = block(x)
    torch.testing.assert_close(y.double(), values[f"L{length}/y_f64"], atol=tolerance[0], rtol=tolerance[1])
    y.backward(values[f"L{length}/grad_out"].to(dtype))
    _assert_gradient(x.grad, values[f"L{length}/dx_f64"], fraction)
    for name, parameter in block.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        _assert_gradient(gradient, values[f"L{length}/grad_f64/{name}"], fraction, name)


def test_every_token_sees_both_sides() -> None:
    block, tokens = BidirectionalMamba(16), torch.randn(1, 7, 16)
    changed = tokens.clone()
    changed[:, 3] += 1
    difference = (block(changed) - block(tokens)).abs().amax(dim=(0, 2))
    assert (difference > 0).all()


def test_start_values() -> None:
    block = BidirectionalMamba(64)
    for projection in (block.dt_proj, block.dt_proj_b):
        assert torch.count_nonzero(projection.bias) == 0
    assert torch.equal(torch.exp(block.A_b_log[5]).round(), torch.arange(1.0, 17.0))


def test_decay_rates_and_skips_of_both_directions_get_no_weight_decay() -> None:
    groups = parameter_groups(BidirectionalMamba(16), OptimConfig(), layer_depths={}, num_layers=1)
    kept = {name for group in groups if group["weight_decay"] == 0 for name in group["param_names"]}
    assert {"A_log", "A_b_log", "D", "D_b"} <= kept
