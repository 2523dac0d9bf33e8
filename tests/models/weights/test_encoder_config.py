"""Heads, pooling, activation and epsilon of encoders: from the files beside the weights, or from published sizes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.encoders import openai_state, timm_state
from torch import Tensor

from kinescan.errors import CheckpointError, ConfigError
from kinescan.models.vit.vit import VisionTransformer
from kinescan.models.vit.vit_config import ViTConfig
from kinescan.models.weights.checkpoint_file import Checkpoint
from kinescan.models.weights.published_encoders import HUGGING_FACE_DEFAULTS
from kinescan.models.weights.vit_weights import Pretrained, load_pretrained, read_vision_encoder
from kinescan.models.zoo import create_model

State = dict[str, Tensor]


def _checkpoint(state: State, source: str = "x", **settings: Any) -> Checkpoint:
    return Checkpoint(source=source, file=Path("x.pt"), tensors=state, settings=settings)


def _read(state: State, source: str = "x", **settings: Any) -> dict[str, Any]:
    pretrained = read_vision_encoder(_checkpoint(state, source, **settings), prefix="")
    return pretrained.sizes | pretrained.conventions


def _vit(pretrained: Pretrained, **options: Any) -> VisionTransformer:
    vit = VisionTransformer(ViTConfig(**pretrained.sizes | pretrained.conventions | options)).eval()
    assert load_pretrained(vit, pretrained).missing == ()
    return vit


@pytest.mark.parametrize(
    ("width", "depth", "mlp_dim", "patch", "heads"),
    [
        *((192, 12, 768, 16, 3), (384, 12, 1536, 16, 6), (768, 12, 3072, 16, 12), (1024, 24, 4096, 14, 16)),
        # MAE's and CLIP's ViT-H/14, ViT-g/14, ViT-bigG/14, so400m, ViT-e/14: not width / 64.
        *((1280, 32, 5120, 14, 16), (1408, 40, 6144, 14, 16), (1664, 48, 8192, 14, 16), (1152, 27, 4304, 14, 16)),
        *((1792, 56, 15360, 14, 16), (768, 8, 2304, 16, 8), (896, 18, 2304, 16, 14)),
    ],
)
def test_published_encoders_have_their_heads(width: int, depth: int, mlp_dim: int, patch: int, heads: int) -> None:
    for make in (timm_state, openai_state):
        state = make(width=width, depth=depth, mlp_dim=mlp_dim, patch=patch, positions=256, device="meta")
        assert _read(state)["heads"] == heads


def test_encoders_that_were_not_published_ask_for_their_heads(tmp_path: Path) -> None:
    for sizes in ({"width": 128}, {"width": 768, "depth": 2}, {"width": 1536, "depth": 40, "device": "meta"}):
        assert _read(timm_state(**sizes))["heads"] is None
    torch.save(timm_state(64, 2, 128), tmp_path / "tiny.pt")
    with pytest.raises(ConfigError, match=r"64.*2 has.*heads="):
        create_model("vit_b16", weights=tmp_path / "tiny.pt", num_classes=2)
    assert create_model("vit_b16", weights=tmp_path / "tiny.pt", num_classes=2, heads=2).config.heads == 2


def test_siglip_s_largest_has_other_heads_than_others_of_its_width() -> None:
    assert _read(timm_state(1536, 40, 6144, patch=16, class_token=False, device="meta"))["heads"] == 16


@pytest.mark.parametrize(
    ("state", "settings", "heads"),
    [
        (openai_state, {"model_cfg": {"vision_cfg": {"width": 24, "head_width": 12}}}, 2),
        (openai_state, {"model_type": "clip", "vision_config": {"num_attention_heads": 4}}, 4),
        (timm_state, {"architecture": "my_vit", "model_args": {"num_heads": 6}}, 6),
        (timm_state, {"model_type": "vit", "num_attention_heads": 8}, 8),
    ],
)
def test_configs_tell_the_heads(state: Any, settings: dict[str, Any], heads: int) -> None:
    assert _read(state(), **settings)["heads"] == heads


def test_open_clip_s_heads_are_64_wide_where_its_config_does_not_say() -> None:
    state = openai_state(width=128)
    assert _read(state, model_cfg={"vision_cfg": {"width": 128, "layers": 2}})["heads"] == 2


@pytest.mark.parametrize(
    ("vision", "pooling"),
    [
        ({}, "class"),
        ({"pool_type": "tok"}, "class"),
        ({"pool_type": "avg"}, "mean_after_norm"),
        ({"global_average_pool": True}, "mean_after_norm"),
        ({"pool_type": "avg", "final_ln_after_pool": True}, "mean"),
    ],
)
def test_open_clip_s_pooling_is_read(vision: dict[str, Any], pooling: str) -> None:
    pretrained = read_vision_encoder(_checkpoint(openai_state(), model_cfg={"vision_cfg": vision}), prefix="")
    vit = _vit(pretrained, heads=2)
    assert vit.config.pooling == pooling
    tokens = torch.randn(2, 10, 24)
    with torch.no_grad():
        expected = {
            "class": vit.ln_post(tokens)[:, 0],
            "mean": vit.ln_post(tokens[:, 1:].mean(1)),
            "mean_after_norm": vit.ln_post(tokens)[:, 1:].mean(1),
        }[pooling]
        torch.testing.assert_close(vit.pool(tokens), expected @ vit.proj)


def test_timm_s_pooling_is_read_from_names_and_config() -> None:
    # siglip_gap has a norm of every token; others that average have one of the mean.
    assert _read(timm_state(class_token=False))["pooling"] == "mean_after_norm"
    state = timm_state()
    assert _read(state, architecture="vit_base_patch16_224", global_pool="avg")["pooling"] == "mean_after_norm"
    state = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: t for name, t in state.items()}
    assert _read(state, architecture="vit_base_patch16_224", global_pool="avg")["pooling"] == "mean"
    assert _read(state)["pooling"] == "mean"


@pytest.mark.parametrize("pool", ["max", "avgmax", "prr"])
def test_other_poolings_are_refused(pool: str) -> None:
    with pytest.raises(CheckpointError, match=f"pools by '{pool}'.*token, avg, map"):
        _read(timm_state(), architecture="vit_base_patch16_224", global_pool=pool)


@pytest.mark.parametrize(
    ("state", "settings", "activation", "norm_eps"),
    [
        (timm_state(class_token=False), {}, "gelu_tanh", 1e-6),
        (timm_state(class_token=False), {"architecture": "vit_so400m_patch16_siglip_256"}, "gelu_tanh", 1e-6),
        (timm_state(class_token=False, registers=4), {}, "gelu", 1e-6),
        (openai_state(), {"model_cfg": {"vision_cfg": {"act_kwargs": {"approximate": "tanh"}}}}, "gelu_tanh", 1e-5),
        (openai_state(), {"model_cfg": {"vision_cfg": {"norm_kwargs": {"eps": 1e-6}}}}, "gelu", 1e-6),
        (openai_state(), {"model_cfg": {"quick_gelu": True}}, "quick_gelu", 1e-5),
        (timm_state(), {"architecture": "vit_x", "model_args": {"act_layer": "gelu_tanh"}}, "gelu_tanh", 1e-6),
        (timm_state(), {"model_type": "vit_msn"}, "gelu", 1e-6),
    ],
)
def test_activation_and_epsilon(state: State, settings: dict[str, Any], activation: str, norm_eps: float) -> None:
    fields = _read(state, **settings)
    assert (fields["activation"], fields["norm_eps"]) == (activation, norm_eps)


def test_open_clip_s_timm_encoders_are_read_as_timm_s() -> None:
    trunk = {f"visual.trunk.{name}": tensor for name, tensor in timm_state(class_token=False).items()}
    vision = {"timm_model_name": "vit_base_patch16_siglip_gap_224", "timm_pool": "avg"}
    fields = _read(trunk, model_cfg={"vision_cfg": vision})
    assert (fields["activation"], fields["norm_eps"], fields["pooling"]) == ("gelu_tanh", 1e-6, "mean_after_norm")
    plain = {f"visual.trunk.{name}": tensor for name, tensor in timm_state().items()}
    assert _read(plain)["norm_eps"] == 1e-6


def test_layer_scale_in_a_clip_encoder_keeps_clip_s_epsilon() -> None:
    scales = {f"visual.transformer.resblocks.{i}.ls_{k}.gamma": torch.ones(24) for i in range(2) for k in (1, 2)}
    fields = _read(openai_state() | scales)
    assert (fields["layer_scale"], fields["norm_eps"], fields["activation"]) == (True, 1e-5, "quick_gelu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "vit_pe_core_base_patch16_224"}, "vit_pe_core_base_patch16_224"),
        ({"architecture": "vit_base_patch16_rope_ape_224"}, "rotary"),
        ({"model_cfg": {"vision_cfg": {"timm_model_name": "eva02_base_patch14_224"}}}, "rotary"),
        ({"model_type": "aimv2_vision_model"}, "'aimv2_vision_model'.*Known: .*clip_vision_model"),
        ({"model_type": "vit", "hidden_act": "relu"}, "the activation 'relu'"),
        ({"model_type": "vit", "hidden_size": 768}, "hidden_size = 768.*24"),
        ({"model_type": "vit", "num_hidden_layers": 12}, "num_hidden_layers = 12.*2"),
        ({"model_type": "vit", "num_attention_heads": "two"}, "num_attention_heads"),
        ({"model_type": "vit", "num_attention_heads": -2}, "num_attention_heads.*1"),
        ({"model_type": "vit", "layer_norm_eps": float("inf")}, "layer_norm_eps"),
        ({"model_type": "vit", "vision_config": []}, "vision_config"),
        ({"model_cfg": "ViT-B-32"}, "model_cfg"),
        ({"model_cfg": {"vision_cfg": {"pool_type": "attn"}}}, "pools by 'attn'"),
        ({"architecture": ["vit"]}, "architecture"),
        ({"model_type": ["vit"]}, "model_type"),
        ({"model_type": "clip_vision_model"}, "'clip_vision_model'.*ViT"),
        ({"model_type": "llava", "vision_config": {"model_type": "siglip_vision_model"}}, "'siglip_vision_model', its"),
        ({"image_mean": 0.5, "image_std": 0.5}, "3 numbers"),
    ],
)
def test_configs_of_other_encoders_and_of_the_wrong_kind_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        _read(timm_state(), **settings)


@pytest.mark.parametrize(
    "source", ["timm/vit_pe_core_base_patch16_224.fb", "PE-Core-B16-224.pt", "a/rope_vit_small.pt"]
)
def test_names_of_rotary_encoders_are_refused(source: str) -> None:
    with pytest.raises(CheckpointError, match="rotary"):
        _read(openai_state(), source)
    assert _read(openai_state(), "europe/type-core.pt")["width"] == 24


def test_positions_of_registers_go_into_their_tokens() -> None:
    state = timm_state(class_token=False, registers=4) | {"pos_embed": torch.randn(1, 4 + 9, 24)}
    pretrained = read_vision_encoder(_checkpoint(state), prefix="")
    torch.testing.assert_close(
        pretrained.tensors["register_tokens"], state["reg_token"][0] + state["pos_embed"][0, :4], atol=0, rtol=0
    )
    vit = _vit(pretrained, heads=2)
    pixels = torch.randn(1, 3, 12, 12)
    with torch.no_grad():
        patches = torch.nn.functional.conv2d(
            pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=4
        )
        expected = torch.cat([state["reg_token"], patches.flatten(2).transpose(1, 2)], dim=1) + state["pos_embed"]
        torch.testing.assert_close(vit.embed(pixels), expected)


def test_defaults_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    mapping = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    checked = 0
    for kind, (activation, norm_eps, heads) in HUGGING_FACE_DEFAULTS.items():
        if kind not in mapping:
            continue
        config = mapping[kind]()
        config = getattr(config, "vision_config", None) or config
        assert (config.hidden_act, config.layer_norm_eps, config.num_attention_heads) == (activation, norm_eps, heads)
        checked += 1
    assert checked > 20


def test_a_config_says_no_more_than_the_caller() -> None:
    state = openai_state()
    pretrained = read_vision_encoder(_checkpoint(state, model_cfg={"vision_cfg": {"pool_type": "avg"}}), prefix="")
    assert "pooling" in pretrained.conventions
    assert dataclasses.replace(pretrained).sizes.get("pooling") is None
