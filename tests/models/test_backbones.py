"""Vision encoders beside CLIP's: each against transformers' own class, and under the other names it is published by."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kinescan.errors import CheckpointError, ConfigError
from kinescan.models.pks4 import PKS4
from kinescan.models.vit.vit import VisionTransformer
from kinescan.models.vit.vit_config import ViTConfig
from kinescan.models.weights.checkpoint_file import open_checkpoint
from kinescan.models.weights.layouts import translate
from kinescan.models.weights.vit_weights import load_pretrained, read_vision_encoder, resize_positions
from kinescan.models.zoo import create_model

State = dict[str, Tensor]
# Absolute and relative; float32.
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 12, "patch_size": 4}
BACKBONES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dinov2": ("Dinov2Model", "Dinov2Config", {"mlp_ratio": 2}),
    "registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {"mlp_ratio": 2, "num_register_tokens": 3}),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {"intermediate_size": 48, "num_register_tokens": 2}),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", {"intermediate_size": 48}),
    "mae": ("ViTMAEModel", "ViTMAEConfig", {"intermediate_size": 48, "mask_ratio": 0.0}),
    "vit": ("ViTModel", "ViTConfig", {"intermediate_size": 48}),
}
EXPECTED: dict[str, dict[str, Any]] = {
    "dinov2": {"layer_scale": True, "norm_eps": 1e-6, "activation": "gelu", "pooling": "class"},
    "registers": {"layer_scale": True, "num_registers": 3, "positions": "learned"},
    "dinov3": {"layer_scale": True, "num_registers": 2, "positions": "rotary", "rotary_theta": 100.0, "norm_eps": 1e-5},
    "siglip": {"class_token": False, "pooling": "attention", "activation": "gelu_tanh", "norm_eps": 1e-6},
    "mae": {"class_token": True, "norm_eps": 1e-12, "layer_scale": False},
    "vit": {"class_token": True, "norm_eps": 1e-12, "activation": "gelu"},
}


def _theirs(name: str) -> Any:
    """transformers' model with every weight sampled, those included that start as ones or zeros."""
    transformers = pytest.importorskip("transformers")
    model, config, options = BACKBONES[name]
    built = getattr(transformers, model)(getattr(transformers, config)(**SIZES, **options)).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return built


def _saved(name: str, folder: Path) -> Any:
    theirs = _theirs(name)
    theirs.save_pretrained(folder)
    return theirs


def _ours(folder: Path, **options: Any) -> VisionTransformer:
    pretrained = read_vision_encoder(open_checkpoint(folder), prefix="")
    vit = VisionTransformer(ViTConfig(**(pretrained.sizes | pretrained.conventions | options))).eval()
    assert load_pretrained(vit, pretrained).missing == ()
    return vit


@torch.no_grad()
def _hidden(theirs: nn.Module, pixels: Tensor, name: str) -> tuple[list[Tensor], Any]:
    extra = {"noise": torch.arange(9.0).expand(len(pixels), 9)} if name == "mae" else {}
    out = theirs(pixels, output_hidden_states=True, **extra)
    return list(out.hidden_states), out


@pytest.mark.parametrize("name", BACKBONES)
def test_tokens_match_transformers_after_every_block(name: str, tmp_path: Path) -> None:
    theirs = _saved(name, tmp_path)
    vit = _ours(tmp_path)
    pixels = torch.randn(2, 3, 12, 12)
    hidden, out = _hidden(theirs, pixels, name)
    with torch.no_grad():
        tokens = vit.embed(pixels)
        for index, expected in enumerate(hidden):
            if index:
                tokens = vit.blocks[index - 1](tokens)
            # The last of theirs may be normalised already.
            if index < 2:
                torch.testing.assert_close(tokens, expected, **TOLERANCE)
        pooled = vit.pool(tokens)
    if name == "siglip":
        torch.testing.assert_close(pooled, out.pooler_output, **TOLERANCE)
    else:
        torch.testing.assert_close(pooled, out.last_hidden_state[:, 0], **TOLERANCE)


@pytest.mark.parametrize("name", BACKBONES)
def test_create_model_sets_the_config_from_the_weights(name: str, tmp_path: Path) -> None:
    _saved(name, tmp_path)
    options = {"kinematic_width": 8, "window": 3}
    model = create_model("pks4_vit_b16", weights=tmp_path, labels=["a", "b"], **options)
    assert isinstance(model, PKS4)
    fields = {key: getattr(model.config, key) for key in EXPECTED[name]}
    assert fields == EXPECTED[name]
    config = model.config
    assert (config.width, config.depth, config.heads, config.mlp_dim, config.image_size) == (24, 2, 2, 48, 12)
    assert config.class_token_route == ("none" if name == "siglip" else "conv")
    report = model.load_report
    assert report is not None
    assert report.layout == "hugging_face"
    assert not [missing for missing in report.missing if missing.startswith("vit.")]
    left = {"dinov2": {"embeddings.mask_token"}, "vit": {"pooler.dense.weight", "pooler.dense.bias"}}
    wanted = {**left, "registers": left["dinov2"], "dinov3": left["dinov2"]}.get(name, set())
    assert set(report.unexpected) == wanted


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", BACKBONES)
def test_module_starts_as_nothing_and_streams_on_every_backbone(name: str, causal: bool, tmp_path: Path) -> None:
    _saved(name, tmp_path)
    options: dict[str, Any] = {"weights": tmp_path, "num_classes": 3, "kinematic_width": 8, "window": 3}
    full = create_model("pks4_vit_b16", causal=causal, norm="group", **options).eval()
    parts = {"scanner": False, "correlation": False, "variation": False}
    bare = create_model("pks4_vit_b16", causal=causal, norm="group", **parts, **options).eval()
    bare.load_state_dict(full.state_dict(), strict=False)
    clip = torch.randn(2, 3, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(full(clip), bare(clip))
        for parameter in full.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
        assert not torch.equal(full(clip), bare(clip))
        if causal:
            assert isinstance(full, PKS4)
            first, state = full.forward_stream(clip[:, :2])
            last, _ = full.forward_stream(clip[:, 2:], state)
            torch.testing.assert_close(last[:, -1], full(clip), **TOLERANCE)
            torch.testing.assert_close(first[:, -1], full(clip[:, :2]), **TOLERANCE)


def _timm_from_ours(vit: VisionTransformer) -> State:
    """Our tensors under timm's names, written down from its documentation, not with our tables."""
    swaps = [
        *((r"^conv1\.", "patch_embed.proj."), (r"^transformer\.resblocks\.", "blocks."), (r"^ln_post\.", "norm.")),
        *((r"\.ln_1\.", ".norm1."), (r"\.ln_2\.", ".norm2."), (r"\.in_proj_", ".qkv."), (r"\.out_proj\.", ".proj.")),
        *((r"\.c_fc\.", ".fc1."), (r"\.c_proj\.", ".fc2."), (r"\.ls_([12])\.", r".ls\1.")),
        *(
            (r"^class_embedding$", "cls_token"),
            (r"^positional_embedding$", "pos_embed"),
            ("^register_tokens$", "reg_token"),
        ),
    ]
    extra = {"cls_token": 2, "pos_embed": 1, "reg_token": 1}
    renamed = {}
    for name, tensor in vit.state_dict().items():
        for old, new in swaps:
            name = re.sub(old, new, name)
        renamed[name] = tensor.reshape((1,) * extra.get(name, 0) + tuple(tensor.shape))
    return renamed


def _tiny(**options: Any) -> VisionTransformer:
    sizes: dict[str, Any] = {"image_size": 12, "patch_size": 4, "width": 24, "depth": 2, "heads": 2, "mlp_dim": 48}
    plain = {"embed_dim": None, "pre_norm": False, "patch_bias": True, "activation": "gelu"}
    vit = VisionTransformer(ViTConfig(**(sizes | plain | options))).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return vit


def _as_meta_registers(state: State) -> State:
    state["register_tokens"] = state.pop("reg_token")
    return state | {"mask_token": torch.zeros(1, 24)}


def _without_class_position(state: State) -> State:
    state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
    state["pos_embed"] = state["pos_embed"][:, 1:]
    return state


def _as_meta_dinov3(state: State) -> State:
    state["storage_tokens"] = state.pop("reg_token")
    mask = torch.ones(72)
    mask[24:48] = 0
    for index in range(2):
        # Meta's files keep a bias for the keys, and a mask that takes it out.
        state[f"blocks.{index}.attn.qkv.bias"] = state[f"blocks.{index}.attn.qkv.bias"] + (1 - mask) * 7
        state[f"blocks.{index}.attn.qkv.bias_mask"] = mask
    return state | {"rope_embed.periods": 100.0 ** (torch.arange(3) / 3)}


def _as_timm_dinov3(state: State) -> State:
    for index in range(2):
        for number in (1, 2):
            state[f"blocks.{index}.gamma_{number}"] = state.pop(f"blocks.{index}.ls{number}.gamma")
        bias = state.pop(f"blocks.{index}.attn.qkv.bias")
        state[f"blocks.{index}.attn.q_bias"], state[f"blocks.{index}.attn.v_bias"] = bias[:24], bias[48:]
    return state


def _as_timm_siglip(state: State) -> State:
    """Its attention pool has names of its own, and query apart from keys and values."""
    pool = {name: state.pop(name) for name in list(state) if name.startswith("attn_pool.")}
    for leaf in ("weight", "bias"):
        joined = pool.pop(f"attn_pool.attn.qkv.{leaf}")
        pool[f"attn_pool.q.{leaf}"], pool[f"attn_pool.kv.{leaf}"] = joined[:24], joined[24:]
        pool[f"attn_pool.proj.{leaf}"] = pool.pop(f"attn_pool.attn.proj.{leaf}")
    pool["attn_pool.latent"] = pool.pop("attn_pool.probe").reshape(1, 1, 24)
    return state | pool


def _as_averaging(state: State) -> State:
    for leaf in ("weight", "bias"):
        state[f"fc_norm.{leaf}"] = state.pop(f"norm.{leaf}")
    return state | {"head.weight": torch.ones(5, 24), "head.bias": torch.ones(5)}


DINO3 = {"layer_scale": True, "num_registers": 2, "positions": "rotary", "norm_eps": 1e-5}
SIGLIP = {"class_token": False, "pooling": "attention", "activation": "gelu_tanh", "norm_eps": 1e-6}
PUBLISHED: dict[str, tuple[dict[str, Any], Callable[[State], State]]] = {
    "plain ImageNet ViT of timm, or MAE's own file": ({"norm_eps": 1e-6}, lambda state: state),
    "fine-tuned MAE, averaging": ({"norm_eps": 1e-6, "pooling": "mean"}, _as_averaging),
    "DINOv2's own file": ({"layer_scale": True, "num_registers": 4, "norm_eps": 1e-6}, _as_meta_registers),
    "DINOv2 of timm": ({"layer_scale": True, "num_registers": 4, "norm_eps": 1e-6}, _without_class_position),
    "DINOv3's own file": (DINO3, _as_meta_dinov3),
    "DINOv3 of timm": (DINO3, _as_timm_dinov3),
    "SigLIP of timm": (SIGLIP, _as_timm_siglip),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_other_published_names_give_the_same_encoder(kind: str, tmp_path: Path) -> None:
    options, published = PUBLISHED[kind]
    vit = _tiny(**options)
    if "rotary" in options.values():
        with torch.no_grad():
            for block in vit.blocks:
                block.attn.in_proj_bias[24:48] = 0
    state = published(_timm_from_ours(vit))
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    pretrained = read_vision_encoder(open_checkpoint(tmp_path / "model.safetensors"), prefix="")
    again = _ours(tmp_path / "model.safetensors", heads=2, image_size=12)
    assert {**pretrained.sizes, **pretrained.conventions}.items() >= options.items()
    pixels = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(again(pixels), vit(pixels), **TOLERANCE)


@pytest.mark.parametrize("name", ["vit", "mae", "dinov2"])
def test_names_that_transformers_saved_before_its_version_5(name: str) -> None:
    state = _theirs(name).state_dict()
    swaps = [("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value")]
    swaps += [("o_proj", "output.dense")]
    if name != "dinov2":
        swaps += [("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense")]
    old = {}
    for key, tensor in state.items():
        for new_name, old_name in swaps:
            key = key.replace(new_name, old_name)
        old["vit." * (name != "dinov2") + re.sub(r"^layers\.", "encoder.layer.", key)] = tensor
    layout = "hugging_face_vit" if name == "dinov2" else "hugging_face_vit_headed"
    ours, theirs = translate(old, layout, "x"), translate(state, "hugging_face_vit", "x")
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(ours.tensors[key], tensor) for key, tensor in theirs.tensors.items())


def test_siglip_without_its_head_averages(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.SiglipVisionConfig(**SIZES, intermediate_size=48, vision_use_head=False)
    transformers.SiglipVisionModel(config).save_pretrained(tmp_path)
    vit = _ours(tmp_path)
    assert vit.config.pooling == "mean_after_norm"
    tokens = torch.randn(2, 9, 24)
    torch.testing.assert_close(vit.pool(tokens), vit.ln_post(tokens).mean(1))


def test_preprocessing_follows_the_family_unless_a_file_tells(tmp_path: Path) -> None:
    _saved("siglip", tmp_path / "siglip")
    _saved("dinov2", tmp_path / "dinov2")
    usual = create_model("vit_b16", weights=tmp_path / "siglip")
    assert usual.preprocessing.mean == (0.5, 0.5, 0.5)
    assert create_model("vit_b16", weights=tmp_path / "dinov2").preprocessing.std == (0.229, 0.224, 0.225)
    scale = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "dinov2" / "preprocessor_config.json").write_text(json.dumps(scale), encoding="utf-8")
    assert create_model("vit_b16", weights=tmp_path / "dinov2").preprocessing.mean == (0.1, 0.2, 0.3)


def test_another_image_size_interpolates_or_turns(tmp_path: Path) -> None:
    for name in ("siglip", "registers", "dinov3"):
        _saved(name, tmp_path / name)
        model = create_model("pks4_vit_b16", weights=tmp_path / name, image_size=16, kinematic_width=8, window=3)
        assert model(torch.randn(1, 2, 3, 16, 16)).shape == (1, 400)
        assert model.load_report is not None
        assert model.load_report.resized == (() if name == "dinov3" else ("vit.positional_embedding",))


def test_positions_without_class_token_are_resized_whole() -> None:
    torch.testing.assert_close(resize_positions(torch.ones(9, 4), 16), torch.ones(16, 4))


def test_rotary_positions_do_not_turn_class_token_and_registers() -> None:
    vit = _tiny(**DINO3)
    rotary = vit.blocks[0].attn.rotary
    assert rotary is not None
    query, key = torch.randn(1, 2, 12, 12), torch.randn(1, 2, 12, 12)
    turned, _ = rotary.turn(query, key)
    assert torch.equal(turned[:, :, :3], query[:, :, :3])
    torch.testing.assert_close(turned.norm(dim=3), query.norm(dim=3))
    moved = (turned[:, :, 3:] - query[:, :, 3:]).abs().amax(dim=(0, 1, 3))
    # The patch in the middle of the frame is at 0, 0.
    assert [number for number, by in enumerate(moved.tolist()) if by < 1e-3] == [4]


def test_new_parts_train_and_sit_at_their_depth() -> None:
    vit = _tiny(num_registers=2, layer_scale=True, pooling="attention")
    vit(torch.randn(2, 3, 12, 12)).square().sum().backward()
    assert [name for name, p in vit.named_parameters() if p.grad is None or not p.grad.any()] == []
    depths = vit.layer_depths()
    assert (depths["register_tokens"], depths["transformer.resblocks.1.ls_2.gamma"]) == (0, 2)
    assert depths["attn_pool.probe"] == vit.num_layers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_token": False}, '", "mean_after_norm"'),
        ({"num_registers": -1}, "num_registers"),
        ({"positions": "rotary", "heads": 4}, "divides"),
        ({"rotary_theta": 1.0}, "rotary_theta"),
    ],
)
def test_variants_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        _tiny(**options)


def test_routes_of_the_class_token_need_one(tmp_path: Path) -> None:
    _saved("siglip", tmp_path)
    with pytest.raises(ConfigError, match=r"class_token_route='conv'.*\"tsm\""):
        create_model("pks4_vit_b16", weights=tmp_path, class_token_route="conv")
    model = create_model("pks4_vit_b16", weights=tmp_path, class_token_route="tsm", kinematic_width=8, window=3)
    assert model(torch.randn(1, 2, 3, 12, 12)).shape == (1, 400)


def test_gated_mlps_are_refused() -> None:
    transformers = pytest.importorskip("transformers")
    state = transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, use_swiglu_ffn=True)).state_dict()
    with pytest.raises(CheckpointError, match=r"a gated MLP \(encoder.layer.0.mlp.gate_proj.weight\).*up to size L"):
        translate(state, "hugging_face_vit", "x")
