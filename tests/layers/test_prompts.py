import pytest
import torch
from torch import nn

from kinescan.errors import ConfigError
from kinescan.layers.prompts import IntraFrameGathering, PromptAttention, SpreadingGate, frame_importance


def _awake(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def test_gathering_is_the_two_maps_with_the_depthwise_convolution_between() -> None:
    module = _awake(IntraFrameGathering(12, 6, grid=(3, 4)))
    patches = torch.randn(2, 5, 12, 12)
    gathered, gate = module(patches)
    maps = module.fc1(patches).unflatten(2, (3, 4)).permute(0, 4, 1, 2, 3)  # [B, C, T, Hp, Wp]
    scaled = module.conv(maps)
    torch.testing.assert_close(gathered, module.fc2(scaled.permute(0, 2, 3, 4, 1)).flatten(2, 3))
    read = module.inter.convs(scaled)[..., 0, 0].transpose(1, 2)
    torch.testing.assert_close(gate, module.inter.heads(read))


def test_gate_sends_no_gradient_back() -> None:
    module = _awake(IntraFrameGathering(8, 4, grid=(2, 2)))
    patches = torch.randn(1, 3, 4, 8, requires_grad=True)
    module(patches)[1].sum().backward()
    assert patches.grad is None
    assert module.fc1.weight.grad is None
    assert module.inter.convs.weight.grad is not None


def test_start_adds_nothing_and_the_gate_is_shut() -> None:
    gathered, gate = IntraFrameGathering(8, 4, grid=(2, 2))(torch.randn(1, 3, 4, 8))
    assert torch.count_nonzero(gathered) == torch.count_nonzero(gate) == 0
    assert SpreadingGate(4, 8, grid=(2, 2)).heads.weight.abs().max() > 0


def test_attention_is_that_of_torch() -> None:
    module = _awake(PromptAttention(12, 16, heads=4))
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(module.attention.state_dict())
    tokens = torch.randn(2, 5, 12)
    inner = module.down_proj(tokens)
    expected = module.up_proj(theirs(inner, inner, inner)[0]) * module.scale
    torch.testing.assert_close(module(tokens), expected)


def test_importance_by_hand() -> None:
    # Frame 0 says nothing (uniform: the largest entropy, log 2), frame 1 all in one channel (entropy 0).
    gathered = torch.tensor([[[[0.0, 0.0]], [[50.0, -50.0]]]])
    expected = torch.softmax(torch.tensor([[0.0, 1.0]]), dim=1)
    torch.testing.assert_close(frame_importance(gathered), expected, atol=1e-6, rtol=1e-6)


def test_importance_of_a_sample_does_not_depend_on_its_batch_unless_asked() -> None:
    # The second clip has patches of larger entropy, which the published code compares the first one's with.
    gathered = torch.cat([3 * torch.randn(1, 4, 6, 8), torch.zeros(1, 4, 6, 8)])
    alone = frame_importance(gathered[:1])
    assert torch.equal(frame_importance(gathered)[:1], alone)
    torch.testing.assert_close(frame_importance(gathered[:1], scope="batch"), alone)
    assert (frame_importance(gathered, scope="batch")[:1] - alone).abs().max() > 1e-4


@pytest.mark.parametrize(("width", "heads", "near"), [(20, 8, 16), (4, 8, 8), (0, 8, 8)])
def test_width_that_the_heads_do_not_divide_is_refused(width: int, heads: int, near: int) -> None:
    message = rf"attention_width must be a multiple of attention_heads, got {width} and {heads}\. Try .*={near}\."
    with pytest.raises(ConfigError, match=message):
        PromptAttention(12, width, heads=heads)
