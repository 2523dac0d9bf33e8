import pytest
import torch
from torch import nn

from kinescan.errors import ConfigError
from kinescan.layers.gate import GatedScanner, TrajectoryGate
from kinescan.layers.scanner import Scanner

ATOL = 1e-5


def _awake(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module


def _inputs(num_frames: int = 5, num_patches: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, num_frames, num_patches, 16), torch.randn(2, num_frames, num_patches, 16)


def test_the_gate_chooses_where_the_prior_is_strongest() -> None:
    prior = torch.ones(1, 2, 6, 16) * torch.tensor([1.0, 5.0, 2.0, 4.0, 3.0, 0.5])[:, None]
    gates, chosen = TrajectoryGate(16, 0.5)(prior)
    assert chosen.tolist() == [[[1, 3, 4]] * 2]
    assert (gates.gather(2, chosen) > 0.5).all()
    assert int((gates > 0.5).sum()) == 6
    # 2 and 3 lie on both sides of the threshold, at equal distance from it
    torch.testing.assert_close(gates[..., 2] + gates[..., 4], torch.ones(1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("ratio", "count"), [(1.0, 7), (0.5, 4), (0.01, 1)])
def test_the_number_of_chosen_locations_is_rounded_up(ratio: float, count: int) -> None:
    gate = TrajectoryGate(16, ratio)
    assert gate(torch.randn(1, 1, 7, 16))[1].shape[2] == gate.num_chosen(7) == count


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_ratio_1_is_the_scanner_bit_for_bit(bidirectional: bool, train: bool) -> None:
    gated = _awake(GatedScanner(16, gate_ratio=1.0, bidirectional=bidirectional)).train(train)
    plain = Scanner(16, bidirectional=bidirectional)
    plain.load_state_dict({name: p for name, p in gated.state_dict().items() if not name.startswith("gate.")})
    tokens, prior = _inputs()
    torch.testing.assert_close(gated(tokens, None, prior)[0], plain(tokens)[0], atol=0, rtol=0)


def test_a_stream_gives_what_the_whole_clip_gives() -> None:
    gated = _awake(GatedScanner(16, gate_ratio=0.4)).eval()
    tokens, prior = _inputs(7)
    whole, last = gated(tokens, None, prior)
    state, parts = None, []
    for start, stop in ((0, 1), (1, 4), (4, 7)):
        part, state = gated(tokens[:, start:stop], state, prior[:, start:stop])
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=ATOL, rtol=ATOL)
    torch.testing.assert_close(state.scan, last.scan, atol=ATOL, rtol=ATOL)
    torch.testing.assert_close(state.conv_tail, last.conv_tail, atol=ATOL, rtol=ATOL)


def test_locations_that_are_not_chosen_get_nothing_and_keep_their_state() -> None:
    gated = _awake(GatedScanner(16, gate_ratio=0.5)).eval()
    tokens, prior = _inputs(1, 6)
    state = gated(*_inputs(3, 6)[:1], None, _inputs(3, 6)[1])[1]
    before = state.scan.clone(), state.conv_tail.clone()
    out, after = gated(tokens, state, prior)
    chosen = torch.zeros(2, 6, dtype=torch.bool).scatter(1, gated.gate(prior)[1][:, 0], True)
    assert torch.equal((out[:, 0] != 0).any(-1), chosen)
    moved = (after.scan != before[0]).flatten(1).any(1).view(2, 6)
    assert torch.equal(moved, chosen)
    assert torch.equal(state.scan, before[0]), "the state that was given is left as it was"
    assert torch.equal(state.conv_tail, before[1])


def test_soft_training_with_closed_or_open_gates_is_what_evaluation_computes() -> None:
    """Without a convolution over time, the soft form at gates of 0 and 1 is the hard one."""
    gated = _awake(GatedScanner(16, gate_ratio=0.5, conv_kernel=1)).eval()
    nn.init.constant_(gated.gate.strength, 1e4)
    nn.init.zeros_(gated.gate.direction)
    tokens, prior = _inputs(5, 6)
    hard, last = gated(tokens, None, prior)
    soft, soft_last = gated.train()(tokens, None, prior)
    torch.testing.assert_close(soft, hard, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(soft_last.scan, last.scan, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("train", [False, True])
def test_gradients_are_those_of_finite_differences(train: bool) -> None:
    gated = _awake(GatedScanner(16, gate_ratio=0.5, expand=1)).double().train(train)
    tokens, prior = (part[:1, :3, :3].double().requires_grad_() for part in _inputs())
    weights = torch.randn(1, 3, 3, 16, dtype=torch.float64)
    inputs = (tokens, prior, gated.gate.strength, gated.gate.direction)
    grads = torch.autograd.grad((gated(tokens, None, prior)[0] * weights).sum(), inputs)
    for tensor, grad in zip(inputs, grads, strict=True):
        direction, step = torch.randn_like(tensor), 1e-6
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor += sign * step * direction
                sides.append((gated(tokens, None, prior)[0] * weights).sum())
                tensor -= sign * step * direction
        expected = (sides[0] - sides[1]) / (2 * step)
        # The threshold lies between two scores and moves with them; it is held fixed, so its part is missing.
        if tensor is tokens:
            torch.testing.assert_close((grad * direction).sum(), expected, atol=1e-5, rtol=1e-3)
        assert grad.abs().max() > 0


def test_no_prior_is_refused() -> None:
    with pytest.raises(ConfigError, match="prior"):
        GatedScanner(16, gate_ratio=0.5)(torch.randn(1, 2, 4, 16))
