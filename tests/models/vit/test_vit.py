import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from kinescan.errors import ConfigError, ShapeError
from kinescan.models.vit.vit import VisionTransformer, sincos_positions
from kinescan.models.vit.vit_block import DropPath, QuickGELU
from kinescan.models.vit.vit_config import ViTConfig

TINY = ViTConfig(image_size=12, patch_size=4, width=24, depth=2, heads=3, mlp_dim=48, embed_dim=12)


@pytest.fixture
def vit(encoder: dict[str, Tensor]) -> VisionTransformer:
    model = VisionTransformer(TINY).eval()
    model.load_state_dict(encoder)
    return model


@torch.no_grad()
def _hidden_states(vit: VisionTransformer, pixels: Tensor) -> list[Tensor]:
    states = [vit.embed(pixels)]
    for block in vit.blocks:
        states.append(block(states[-1]))
    return states


def test_float64_matches_clip_after_every_block(vit: VisionTransformer, golden: dict[str, Tensor]) -> None:
    pixels = golden["pixels"].double()
    for index, state in enumerate(_hidden_states(vit.double(), pixels)):
        torch.testing.assert_close(state, golden[f"hidden_states/{index}_f64"], atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(vit(pixels), golden["image_embeds_f64"], atol=1e-10, rtol=1e-9)


def test_float32_matches_clip(vit: VisionTransformer, golden: dict[str, Tensor]) -> None:
    torch.testing.assert_close(vit(golden["pixels"]).double(), golden["image_embeds_f64"], atol=1e-5, rtol=1e-5)


def test_matches_the_shared_reference_values(shared: Path) -> None:
    weights = load_file(shared / "fixtures" / "clip_openai.safetensors")
    outputs = load_file(shared / "fixtures" / "clip_outputs.safetensors")
    vit = VisionTransformer(
        ViTConfig(image_size=32, patch_size=8, width=64, depth=4, heads=4, mlp_dim=256, embed_dim=32)
    ).double()
    vit.load_state_dict({name.removeprefix("visual."): tensor for name, tensor in weights.items()})
    for index, state in enumerate(_hidden_states(vit, outputs["x"].double())):
        torch.testing.assert_close(state, outputs[f"hidden_states.{index}_f64"], atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(vit(outputs["x"].double()), outputs["image_embeds_f64"], atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(vit.float()(outputs["x"]).double(), outputs["image_embeds_f64"], atol=1e-5, rtol=1e-5)


def test_block_is_its_branches_with_residuals(vit: VisionTransformer) -> None:
    x = torch.randn(2, 10, 24)
    block = vit.blocks[1]
    between = x + block.attend(x)
    assert torch.equal(block(x), between + block.transform(between))


def test_frames_do_not_see_each_other(vit: VisionTransformer, golden: dict[str, Tensor]) -> None:
    pixels = golden["pixels"]
    torch.testing.assert_close(vit(pixels.flip(0)).flip(0), vit(pixels), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(vit(pixels[:1]), vit(pixels)[:1], atol=1e-6, rtol=1e-6)


def test_gradients_reach_every_parameter(vit: VisionTransformer, golden: dict[str, Tensor]) -> None:
    vit(golden["pixels"]).square().sum().backward()
    without = [name for name, p in vit.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_quick_gelu_is_x_sigmoid_of_1_702_x() -> None:
    x = torch.linspace(-20, 20, 101, dtype=torch.float64)
    torch.testing.assert_close(QuickGELU()(x), x * torch.sigmoid(1.702 * x), atol=1e-15, rtol=1e-12)


def test_activation_gelu_is_exact() -> None:
    mlp = VisionTransformer(dataclasses.replace(TINY, activation="gelu")).blocks[0].mlp
    x = torch.randn(1, 3, 24)
    assert torch.equal(mlp(x), mlp.c_proj(F.gelu(mlp.c_fc(x))))


def test_without_projection_and_pre_norm() -> None:
    config = dataclasses.replace(TINY, embed_dim=None, pre_norm=False, patch_bias=True)
    vit = VisionTransformer(config)
    names = set(vit.state_dict())
    assert "proj" not in names
    assert "ln_pre.weight" not in names
    assert "conv1.bias" in names
    pixels = torch.randn(2, 3, 12, 12)
    assert torch.equal(vit(pixels), vit.ln_post(vit.forward_features(pixels)[:, 0]))


def test_drop_path_drops_whole_frames_and_keeps_the_mean() -> None:
    drop = DropPath(0.25)
    dropped = drop(torch.ones(4000, 2, 3))
    rows = dropped.flatten(1)
    assert torch.equal(rows.amin(1), rows.amax(1))
    assert set(rows[:, 0].tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(rows.mean().item() - 1) < 0.05
    assert torch.equal(drop.eval()(rows), rows)


def test_drop_path_grows_linearly_over_the_blocks() -> None:
    vit = VisionTransformer(dataclasses.replace(TINY, depth=5, drop_path=0.4))
    assert [round(block.drop_path.rate, 6) for block in vit.blocks] == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert vit.blocks[4].drop_path.training


def test_drop_path_of_every_frame_leaves_the_residual() -> None:
    block = VisionTransformer(dataclasses.replace(TINY, drop_path=0.999999)).blocks[1]
    x = torch.randn(2, 10, 24)
    assert torch.equal(block(x), x)
    assert not torch.equal(block.eval()(x), x)


def test_sincos_positions_tell_row_and_column() -> None:
    positions = sincos_positions((3, 3), 24)
    assert positions.shape == (10, 24)
    assert not positions[0].any()
    patches = positions[1:].view(3, 3, 24)
    assert torch.equal(patches[0, :, 12:], patches[0, :1, 12:].expand(3, 12))
    assert torch.equal(patches[:, 0, :12], patches[:1, 0, :12].expand(3, 12))
    assert torch.cdist(positions[1:], positions[1:]).add(torch.eye(9)).min() > 0.1
    torch.testing.assert_close(patches[2, 1, 12], torch.tensor(2.0).sin())


def test_position_init_sincos_is_learned_and_the_same_every_time() -> None:
    config = dataclasses.replace(TINY, position_init="sincos")
    vit = VisionTransformer(config)
    assert torch.equal(vit.positional_embedding, sincos_positions((3, 3), 24))
    assert vit.positional_embedding.requires_grad


def test_reset_parameters_draws_at_clip_scales() -> None:
    vit = VisionTransformer(ViTConfig(image_size=32, patch_size=8, width=256, depth=2, heads=4, mlp_dim=1024))
    block = vit.blocks[0]
    expected = {
        vit.positional_embedding: 1 / 16,
        block.attn.in_proj_weight: 1 / 16,
        block.attn.out_proj.weight: (2 * 256 * 2) ** -0.5,
        block.mlp.c_fc.weight: 512**-0.5,
        block.mlp.c_proj.weight: (2 * 256 * 2) ** -0.5,
        vit.proj: 1 / 16,
    }
    for parameter, std in expected.items():
        assert parameter is not None
        assert parameter.std().item() == pytest.approx(std, rel=0.05)
    assert not block.attn.in_proj_bias.any()
    assert torch.equal(vit.ln_pre.weight, torch.ones(256))
    before = block.attn.in_proj_weight.clone()
    with torch.no_grad():
        vit.ln_pre.weight.fill_(3)
    vit.reset_parameters()
    assert not torch.equal(block.attn.in_proj_weight, before)
    assert torch.equal(vit.ln_pre.weight, torch.ones(256))


def test_layer_depths_cover_every_parameter(vit: VisionTransformer) -> None:
    depths = vit.layer_depths(prefix="vit.")
    assert set(depths) == {f"vit.{name}" for name, _ in vit.named_parameters()}
    assert vit.num_layers == 3
    shown = ("conv1.weight", "class_embedding", "positional_embedding", "ln_pre.bias")
    assert {depths[f"vit.{name}"] for name in shown} == {0}
    assert depths["vit.transformer.resblocks.0.ln_1.weight"] == 1
    assert depths["vit.transformer.resblocks.1.mlp.c_proj.bias"] == 2
    assert depths["vit.ln_post.weight"] == depths["vit.proj"] == 3


def test_bf16_autocast_stays_close(vit: VisionTransformer, golden: dict[str, Tensor]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = vit(golden["pixels"])
    expected = golden["image_embeds_f64"]
    assert out.dtype == torch.bfloat16
    assert (out.double() - expected).abs().max() < 2e-2 * expected.abs().max()


@pytest.mark.compile
def test_compiles_without_a_graph_break(vit: VisionTransformer, golden: dict[str, Tensor]) -> None:
    compiled = torch.compile(vit, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(golden["pixels"]), vit(golden["pixels"]), atol=1e-6, rtol=1e-6)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(3, 12, 12), r"4 axes, got \[3, 12, 12\]. Allowed: \[F, 3, 12, 12\]"),
        (torch.zeros(1, 2, 3, 12, 12), r"4 axes, got \[1, 2, 3, 12, 12\]"),
        (torch.zeros(1, 1, 12, 12), "3.*channels.*1"),
        (torch.zeros(1, 3, 16, 16), "12 x 12.*16 x 16"),
        (torch.zeros(1, 3, 12, 16), "must be 12 x 12, got 12 x 16"),
        (torch.zeros(1, 3, 12, 12, dtype=torch.uint8), "floating.*uint8"),
    ],
)
def test_embed_refuses_other_pixels(vit: VisionTransformer, pixels: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        vit(pixels)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("depth", 0, "depth.*1.*0"),
        ("patch_size", 5, "image_size 12.*patch_size 5. Use 10.*15"),
        ("heads", 5, "heads.*24.*5"),
        ("embed_dim", 0, "embed_dim.*1"),
        ("drop_path", 1.0, r"drop_path.*\[0, 1.*1.0"),
        ("norm_eps", 0.0, "norm_eps"),
    ],
)
def test_config_refuses_values_out_of_range(field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **{field: value})


def test_config_refuses_sincos_in_odd_widths() -> None:
    with pytest.raises(ConfigError, match=r"4.*18"):
        dataclasses.replace(TINY, width=18, position_init="sincos")


def test_a_stem_keeps_the_patches_and_sees_beyond_their_edges() -> None:
    plain, stem = VisionTransformer(TINY), VisionTransformer(dataclasses.replace(TINY, stem_convolutions=1)).eval()
    pixels = torch.randn(2, 3, 12, 12)
    assert stem.embed(pixels).shape == plain.embed(pixels).shape == (2, 10, 24)
    with torch.no_grad():
        maps = F.conv2d(pixels, stem.state_dict()["stem.0.weight"], stride=2, padding=1)
        norm = (stem.state_dict()["stem.1.running_var"] + 1e-5).sqrt()
        patches = F.conv2d((maps / norm[:, None, None]).relu(), stem.conv1.weight, stride=2).flatten(2).transpose(1, 2)
        torch.testing.assert_close(stem.embed(pixels), stem.embed(torch.zeros_like(pixels), patches))
        pixels[:, :, 3, 0] += 1  # the last row of the first patch is the neighbour of the one below
        moved = (stem.embed(pixels) - stem.embed(torch.zeros_like(pixels), patches)).abs().amax(dim=(0, 2)) > 0
    assert moved.nonzero().flatten().tolist() == [1, 4]
    assert stem.layer_depths()["stem.0.weight"] == stem.layer_depths()["conv1.weight"] == 0


@pytest.mark.parametrize(("number", "patch", "width"), [(3, 4, 24), (-1, 4, 24), (9, 512, 1024), (3, 8, 18)])
def test_a_stem_that_does_not_fit_is_refused(number: int, patch: int, width: int) -> None:
    with pytest.raises(ConfigError, match="stem_convolutions"):
        dataclasses.replace(
            TINY, image_size=patch, patch_size=patch, width=width, heads=1, embed_dim=4, stem_convolutions=number
        )
