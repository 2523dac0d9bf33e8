from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kinescan.errors import ConfigError
from kinescan.layers.kinematic import CorrelationOperator, KinematicEncoder, VariationOperator, kinematic_offsets

PUBLISHED_NAMES = {
    "corr": {
        "sim.downsample.0": "reduce.conv",
        "sim.downsample.1": "reduce.norm",
        "uv2c.conv0.0": "encode.0.conv",
        "uv2c.conv0.1": "encode.0.norm",
        "uv2c.conv1.0": "encode.1.conv",
        "uv2c.conv1.1": "encode.1.norm",
        "sim2vis.conv1.0": "encode.2.conv",
        "sim2vis.conv1.1": "encode.2.norm",
        "sim2vis.conv2.0": "encode.3.conv",
        "sim2vis.conv2.1": "encode.3.norm",
        "sim2vis.conv3_fuse.1": "fuse.conv",
        "sim2vis.conv3_fuse.2": "fuse.norm",
        "sim2vis.upsample.0": "expand",
    },
    "diff": {
        "downsample.0": "reduce.conv",
        "downsample.1": "reduce.norm",
        "diff2vis.conv1.0": "encode.0.conv",
        "diff2vis.conv1.1": "encode.0.norm",
        "diff2vis.conv2.0": "encode.1.conv",
        "diff2vis.conv2.1": "encode.1.norm",
        "diff2vis.conv3_fuse.1": "fuse.conv",
        "diff2vis.conv3_fuse.2": "fuse.norm",
        "diff2vis.upsample.0": "expand",
    },
}


def _published_operator(kind: str, values: dict[str, torch.Tensor]) -> CorrelationOperator | VariationOperator:
    operator = CorrelationOperator(16) if kind == "corr" else VariationOperator(16)
    state = {}
    for key, value in values.items():
        if key.startswith(f"{kind}/state_dict/"):
            part, leaf = key.removeprefix(f"{kind}/state_dict/").rsplit(".", 1)
            name = f"{PUBLISHED_NAMES[kind][part]}.{leaf}"
            state[name] = value.squeeze(2) if value.ndim == 5 else value  # published as (1, k, k) in three dimensions
    result = operator.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in result.missing_keys)
    return operator.double()


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind", ["corr", "diff"])
def test_operator_matches_published_block(kind: str, mode: str, shared: Path) -> None:
    values = load_file(shared / "fixtures" / "kinematic_blocks.safetensors")
    operator = _published_operator(kind, values).train(mode == "train")
    x = values["x"].double().requires_grad_()
    prior, _ = operator(x.unsqueeze(0))
    expected = values[f"{kind}/{mode}/branch_out_before_residual_relu_f64"]
    torch.testing.assert_close(prior[0], expected, atol=1e-10, rtol=1e-9)
    block_out = torch.relu(x + prior[0])  # the published block ends so; PKS4 adds the prior instead
    torch.testing.assert_close(block_out, values[f"{kind}/{mode}/block_out_f64"], atol=1e-10, rtol=1e-9)
    (grad,) = torch.autograd.grad((block_out * values[f"{kind}/loss_w_f32"].double()).sum(), x)
    expected = values[f"{kind}/{mode}/dx_f64"]
    assert (grad - expected).abs().max() < 1e-8 * expected.abs().max()


@pytest.mark.parametrize(("width", "correlation", "variation"), [(768, 833_856, 750_080), (1024, 997_696, 913_920)])
def test_operator_parameter_counts(width: int, correlation: int, variation: int) -> None:
    with torch.device("meta"):
        operators = CorrelationOperator(width), VariationOperator(width)
    counts = [sum(p.numel() for p in operator.parameters()) for operator in operators]
    assert counts == [correlation, variation]


def test_group_norm_has_the_same_parameter_count() -> None:
    count = {norm: sum(p.numel() for p in KinematicEncoder(32, norm=norm).parameters()) for norm in ("batch", "group")}
    assert count["batch"] == count["group"]


def _awake(encoder: nn.Module) -> nn.Module:
    for name, parameter in encoder.named_parameters():
        if "expand" in name:
            nn.init.normal_(parameter, std=0.5)
    return encoder


def test_encoder_adds_nothing_at_the_start() -> None:
    prior, _ = KinematicEncoder(16, 16)(torch.randn(2, 3, 16, 5, 5))
    assert torch.count_nonzero(prior) == 0


@pytest.mark.parametrize("border", ["zeros", "replicate"])
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("context_frames", [0, 2, 4])
def test_causal_encoder_in_pieces_equals_whole(context_frames: int, norm: str, border: str) -> None:
    encoder = _awake(
        KinematicEncoder(16, 16, context_frames=context_frames, window=5, causal=True, norm=norm, border=border)
    ).eval()
    maps = torch.randn(2, 9, 16, 6, 5)
    with torch.no_grad():
        whole, _ = encoder(maps)
        state, chunks = None, []
        for start, end in ((0, 1), (1, 2), (2, 5), (5, 6), (6, 9)):
            chunk, state = encoder(maps[:, start:end], state)
            chunks.append(chunk)
    torch.testing.assert_close(torch.cat(chunks, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert state.correlation.shape == state.variation.shape == (2, context_frames, 16, 6, 5)


def test_encoder_of_a_still_clip_sees_no_change() -> None:
    encoder = KinematicEncoder(16, 16, border="replicate")
    still = torch.randn(1, 1, 16, 6, 6).expand(-1, 5, -1, -1, -1)
    reduced = torch.rand(1, 1, 16, 6, 6).expand(-1, 5, -1, -1, -1)
    assert encoder.variation is not None
    assert torch.count_nonzero(encoder.variation.differences(reduced)) == 0
    prior, _ = _awake(encoder).eval()(still)
    torch.testing.assert_close(prior, prior[:, :1].expand_as(prior))


@pytest.mark.parametrize("switch", ["correlation", "variation"])
def test_single_operator_variants(switch: str) -> None:
    encoder = _awake(KinematicEncoder(16, 16, **{switch: False}))
    assert getattr(encoder, switch) is None
    prior, _ = encoder(torch.randn(1, 3, 16, 4, 4))
    assert prior.abs().max() > 0


def test_offsets() -> None:
    assert kinematic_offsets(6, causal=False) == (-3, -2, -1, 0, 1, 2, 3)
    assert kinematic_offsets(0, causal=True) == (0,)
    with pytest.raises(ConfigError, match=r"context_frames.*3"):
        kinematic_offsets(3, causal=False)


def test_group_norm_refuses_widths_that_do_not_divide() -> None:
    with pytest.raises(ConfigError, match="8 channels; kinematic_width 12"):
        KinematicEncoder(16, 12, norm="group")
