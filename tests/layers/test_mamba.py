from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kinescan.layers.mamba import Mamba

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "mamba_block.safetensors")


def _published_block(values: dict[str, torch.Tensor]) -> Mamba:
    block = Mamba(32)
    state = {k.removeprefix("state_dict/"): v for k, v in values.items() if k.startswith("state_dict/")}
    block.load_state_dict(state, strict=True)
    return block


def test_mamba_matches_published_values() -> None:
    block = _published_block(GOLDEN)
    x = GOLDEN["L8/x"].clone().requires_grad_()
    y, _ = block(x)
    torch.testing.assert_close(y.double(), GOLDEN["L8/y_f64"], atol=1e-5, rtol=1e-5)
    (grad,) = torch.autograd.grad(y, x, GOLDEN["L8/grad_out"])
    expected = GOLDEN["L8/dx_f64"]
    assert (grad.double() - expected).abs().max() < 1e-4 * expected.abs().max()


def test_mamba_step_by_step_matches_published_steps_and_states() -> None:
    block = _published_block(GOLDEN)
    x, state = GOLDEN["L8/x"], None
    with torch.no_grad():
        for t in range(8):
            y, state = block(x[:, t : t + 1], state)
            torch.testing.assert_close(y[:, 0], GOLDEN["L8/step_y_f32"][:, t], atol=1e-5, rtol=1e-5)
    assert state is not None
    torch.testing.assert_close(state.scan, GOLDEN["L8/step_ssm_state_f32"], atol=1e-5, rtol=1e-5)
    tail = GOLDEN["L8/step_conv_state_f32"].transpose(1, 2)[
        :, 1:
    ]  # the published one also keeps the newest input's slot
    torch.testing.assert_close(state.conv_tail, tail, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 8, 33])
def test_mamba_matches_every_published_length_and_gradient(length: int, shared: Path) -> None:
    values = load_file(shared / "fixtures" / "mamba_block.safetensors")
    values = {k.removeprefix("mamba1_d32/"): v for k, v in values.items() if k.startswith("mamba1_d32/")}
    block = _published_block(values)
    y, _ = block(values[f"L{length}/x"])
    torch.testing.assert_close(y.double(), values[f"L{length}/y_f64"], atol=1e-5, rtol=1e-5)
    y.backward(values[f"L{length}/grad_out"])
    for name, parameter in block.named_parameters():
        expected = values[f"L{length}/grad_f64/{name}"]
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert (grad.double() - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1e-6), name


def test_mamba_start_values() -> None:
    block = Mamba(64, zero_output=True)
    step_size = torch.nn.functional.softplus(block.dt_proj.bias)
    assert step_size.min() > 0.9e-3
    assert step_size.max() < 0.11
    assert torch.equal(-torch.exp(block.A_log[3]).round(), -torch.arange(1.0, 17.0))
    assert torch.count_nonzero(block(torch.randn(2, 5, 64))[0]) == 0


def test_mamba_in_pieces_equals_whole() -> None:
    block = Mamba(16)
    x = torch.randn(3, 9, 16)
    whole, end = block(x)
    state, chunks = None, []
    for start, stop in ((0, 1), (1, 4), (4, 9)):
        chunk, state = block(x[:, start:stop], state)
        chunks.append(chunk)
    torch.testing.assert_close(torch.cat(chunks, dim=1), whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(state.scan, end.scan, atol=1e-6, rtol=1e-5)
    assert torch.equal(state.conv_tail, end.conv_tail)


def test_mamba_takes_a_few_trajectories_at_a_time_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    block, tokens = Mamba(8), torch.randn(7, 5, 8)
    whole, end = block(tokens)
    monkeypatch.setattr("kinescan.layers.chunks.CHUNK_VALUES", 3 * 5 * 32)
    with torch.no_grad():
        out, state = block(tokens)
        alone, none = block(tokens, keep_state=False)
    for given, expected in ((out, whole), (state.scan, end.scan), (state.conv_tail, end.conv_tail)):
        torch.testing.assert_close(given, expected.detach(), atol=1e-6, rtol=1e-5)
    assert none is None
    assert torch.equal(alone, out)
    assert block(tokens, keep_state=False)[1] is None
