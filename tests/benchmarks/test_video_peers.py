"""The video peers: the same outputs as transformers' on copied random weights, the start that their papers have."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinescan.models.zoo import create_model, from_pretrained
from kinescan.profiling.cost import count_cost
from kinescan.profiling.training_cost import count_training_macs

SIZES: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 4, "mlp_dim": 64}
PLAIN: dict[str, Any] = {**SIZES, "embed_dim": None, "pre_norm": False, "patch_bias": True, "activation": "gelu"}
CLIP = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PEERS = ("peer_timesformer", "peer_joint", "peer_st_adapter")


@pytest.fixture
def peers(script: Any) -> ModuleType:
    module: ModuleType = script("peers.registered")
    return module


@pytest.fixture
def image_weights(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    create_model("vit_ti16", num_classes=3, **SIZES).save_pretrained(tmp_path / "image")
    return tmp_path / "image"


def _make(name: str, weights: Path, **options: Any) -> Any:
    return create_model(name, num_classes=5, num_frames=4, heads=4, weights=weights, **options).eval()


def _copy_blocks(vit: Any, layers: nn.ModuleList, qkv: Any) -> None:
    for block, layer in zip(vit.blocks, layers, strict=True):
        weight, bias = qkv(layer.attention.attention)
        block.attn.in_proj_weight.copy_(weight)
        block.attn.in_proj_bias.copy_(bias)
        block.attn.out_proj.load_state_dict(layer.attention.output.dense.state_dict())
        block.ln_1.load_state_dict(layer.layernorm_before.state_dict())
        block.ln_2.load_state_dict(layer.layernorm_after.state_dict())
        block.mlp.c_fc.load_state_dict(layer.intermediate.dense.state_dict())
        block.mlp.c_proj.load_state_dict(layer.output.dense.state_dict())


def _with_random_weights(model: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.2)
    return model.eval()


@torch.no_grad()
def test_timesformer_is_that_of_transformers(peers: ModuleType) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.TimesformerConfig(
        **{"image_size": 32, "patch_size": 8, "num_frames": 4, "hidden_size": 32, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "intermediate_size": 64, "layer_norm_eps": 1e-6, "hidden_act": "gelu"},
    )
    theirs = _with_random_weights(transformers.TimesformerModel(config))
    ours = create_model("peer_timesformer", num_classes=5, num_frames=4, norm_eps=1e-6, **PLAIN).eval()
    embeddings = theirs.embeddings
    ours.vit.conv1.load_state_dict(embeddings.patch_embeddings.projection.state_dict())
    ours.vit.class_embedding.copy_(embeddings.cls_token[0, 0])
    ours.vit.positional_embedding.copy_(embeddings.position_embeddings[0])
    ours.times.copy_(embeddings.time_embeddings[0, :, None])
    _copy_blocks(ours.vit, theirs.encoder.layer, lambda attention: (attention.qkv.weight, attention.qkv.bias))
    for mine, layer in zip(ours.time_attentions, theirs.encoder.layer, strict=True):
        mine.norm.load_state_dict(layer.temporal_layernorm.state_dict())
        mine.attn.in_proj_weight.copy_(layer.temporal_attention.attention.qkv.weight)
        mine.attn.in_proj_bias.copy_(layer.temporal_attention.attention.qkv.bias)
        mine.attn.out_proj.load_state_dict(layer.temporal_attention.output.dense.state_dict())
        mine.out.load_state_dict(layer.temporal_dense.state_dict())
    ours.vit.ln_post.load_state_dict(theirs.layernorm.state_dict())
    class_token, patches = ours.forward_features(CLIP)
    # Theirs lie patch after patch, each with all its frames.
    tokens = torch.cat([class_token, patches.transpose(1, 2).flatten(1, 2)], dim=1)
    expected = theirs(CLIP).last_hidden_state
    torch.testing.assert_close(ours.vit.ln_post(tokens), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(CLIP), ours.head(expected[:, 0]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_joint_attention_is_that_of_videomae(peers: ModuleType) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        **{"image_size": 32, "patch_size": 8, "num_frames": 4, "tubelet_size": 2, "hidden_size": 32},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "layer_norm_eps": 1e-6},
        use_mean_pooling=False,
    )
    theirs = _with_random_weights(transformers.VideoMAEModel(config))
    options = PLAIN | {"class_token": False, "pooling": "mean_after_norm", "norm_eps": 1e-6}
    ours = create_model("peer_joint", num_classes=5, num_frames=4, **options).eval()
    ours.tubelets.load_state_dict(theirs.embeddings.patch_embeddings.projection.state_dict())
    ours.positions.copy_(theirs.embeddings.position_embeddings[0].view_as(ours.positions))

    def qkv(attention: Any) -> tuple[Tensor, Tensor]:
        biases = (attention.query.bias, torch.zeros(32), attention.value.bias)
        return torch.cat([attention.query.weight, attention.key.weight, attention.value.weight]), torch.cat(biases)

    _copy_blocks(ours.vit, theirs.encoder.layer, qkv)
    ours.vit.ln_post.load_state_dict(theirs.layernorm.state_dict())
    expected = theirs(CLIP).last_hidden_state
    assert expected.shape == (2, 2 * 16, 32)
    torch.testing.assert_close(ours.vit.ln_post(ours.forward_features(CLIP)), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(CLIP), ours.head(expected.mean(dim=1)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tsm_is_the_published_shift_of_every_token_before_each_branch() -> None:
    torch.manual_seed(0)
    model = create_model("vit_ti16", num_classes=5, class_token_route="tsm", **SIZES).eval()

    def shifted(tokens: Tensor) -> Tensor:
        """As in TSM's published code, with a fold of an eighth."""
        x, fold = tokens.unflatten(0, (2, 4)), 32 // 8
        out = torch.zeros_like(x)
        out[:, :-1, :, :fold] = x[:, 1:, :, :fold]
        out[:, 1:, :, fold : 2 * fold] = x[:, :-1, :, fold : 2 * fold]
        out[..., 2 * fold :] = x[..., 2 * fold :]
        return out.flatten(0, 1)

    tokens = model.vit.embed(CLIP.flatten(0, 1))
    for block in model.vit.blocks:
        tokens = tokens + block.attend(shifted(tokens))
        tokens = tokens + block.transform(shifted(tokens))
    expected = model.head(model.vit.pool(tokens).unflatten(0, (2, 4)).mean(dim=1))
    torch.testing.assert_close(model(CLIP), expected, atol=1e-5, rtol=1e-5)


def test_image_weights_are_loaded_and_time_starts_at_nothing(peers: ModuleType, image_weights: Path) -> None:
    image = from_pretrained(image_weights)
    timesformer = _make("peer_timesformer", image_weights)
    for attention, block in zip(timesformer.time_attentions, image.vit.blocks, strict=True):
        assert torch.equal(attention.attn.in_proj_weight, block.attn.in_proj_weight)
        assert torch.count_nonzero(attention(torch.randn(2, 4, 16, 32))) == 0
    adapter = _make("peer_st_adapter", image_weights)
    averaging = create_model("vit_ti16", num_classes=5, weights=image_weights)
    averaging.head.load_state_dict(adapter.head.state_dict())
    torch.testing.assert_close(adapter(CLIP), averaging.eval()(CLIP))
    joint, still = _make("peer_joint", image_weights), CLIP[:, :1].expand(-1, 4, -1, -1, -1)
    frames = image.vit.conv1(CLIP[:, 0]).flatten(2).transpose(1, 2) + image.vit.positional_embedding[1:]
    steps = joint.tubelets(still.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1) + joint.positions
    torch.testing.assert_close(steps, frames[:, None].expand_as(steps), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PEERS)
def test_peers_train_and_come_back(peers: ModuleType, image_weights: Path, tmp_path: Path, name: str) -> None:
    model = _make(name, image_weights).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    model(CLIP).square().sum().backward()
    for key, parameter in model.named_parameters():
        frozen = not parameter.requires_grad
        assert frozen == ((name == "peer_st_adapter" and key.startswith("vit.")) or _unused(name, key)), key
        assert (parameter.grad is None) == frozen, key
        assert frozen or torch.count_nonzero(parameter.grad), key
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(from_pretrained(tmp_path / "saved")(CLIP), model.eval()(CLIP))


def _unused(name: str, key: str) -> bool:
    return name == "peer_joint" and key in ("vit.conv1.weight", "vit.positional_embedding")


def test_training_of_peers_is_counted(peers: ModuleType, image_weights: Path) -> None:
    macs = {name: count_training_macs(_make(name, image_weights)) for name in PEERS}
    plain = count_training_macs(create_model("vit_ti16", num_classes=5, weights=image_weights), num_frames=4)
    # An attention along time is as large as that of the frame, and a map of one more; there are fewer class tokens.
    layer = 2 * 4 * 16 * (3 + 1 + 1) * 32 * 32
    assert macs["peer_timesformer"].products - plain.products == pytest.approx(3 * layer, rel=0.1)
    # Two frames in a token: half of the tokens, but as many pixels.
    pixels = 2 * 4 * 16 * 32 * 3 * 8 * 8
    assert macs["peer_joint"].products - pixels == pytest.approx((plain.products - pixels) / 2, rel=0.08)
    # Nothing is trained below the first adapter, nor in the frozen blocks.
    forward = count_cost(_make("peer_st_adapter", image_weights)).macs
    assert macs["peer_st_adapter"].products < 2.6 * forward.products
