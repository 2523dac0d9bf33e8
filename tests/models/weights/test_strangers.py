"""Files that look like a vision encoder of ours and are not, or are stored in other ways: right, or refused by name."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from tests.models.encoders import openai_state, timm_state
from torch import Tensor

from kinescan.errors import CheckpointError, ConfigError
from kinescan.models.vit.vit import VisionTransformer
from kinescan.models.vit.vit_config import ViTConfig
from kinescan.models.weights.checkpoint_file import Checkpoint
from kinescan.models.weights.vit_weights import Pretrained, load_pretrained, read_vision_encoder
from kinescan.models.zoo import create_model

State = dict[str, Tensor]
ONE = torch.ones(1)


def _read(state: State) -> Pretrained:
    return read_vision_encoder(Checkpoint(source="x", file=Path("x.pt"), tensors=state), prefix="")


def _load(state: State) -> None:
    pretrained = _read(state)
    config = pretrained.sizes | pretrained.conventions | {"heads": 2}
    load_pretrained(VisionTransformer(ViTConfig(**config)), pretrained)


def _add(**tensors: Tensor) -> Callable[[State], State]:
    return lambda state: state | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


def _without(*parts: str) -> Callable[[State], State]:
    return lambda state: {name: t for name, t in state.items() if not any(part in name for part in parts)}


def _changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: state | {name: change(state[name])}


STRANGERS: dict[str, tuple[Callable[[State], State], str]] = {
    "cait": (_add(blocks__0__attn__proj_l__weight=ONE), r"heads that are mixed"),
    "talking": (_add(blocks__0__attn__mixer=ONE), r"1 .*attn.mixer"),
    "rope mixed": (_add(rope__freqs=ONE), "rotary positions of another kind"),
    "rope of Eva": (
        lambda state: (
            {n: t for n, t in state.items() if "qkv.bias" not in n}
            | {f"blocks.{i}.attn.{p}_bias": torch.ones(24) for i in range(2) for p in "qv"}
        ),
        r"timm's class Eva .*rotary",
    ),
    "pe": (
        _add(attn_pool__latent=torch.ones(1, 1, 24), attn_pool__gate=ONE),
        r"is incomplete|nothing would use",
    ),
    "beit3": (_add(blocks__0__attn__norm__weight=ONE), "nothing would use 1 tensors.*attn.norm.weight"),
    "norms of queries": (_add(blocks__0__attn__q_norm__weight=ONE), "query and key norms"),
    "rms norms": (_without("norm1.bias", "norm2.bias", "norm.bias"), "RMS norms"),
    "no last norm": (_without("norm.weight", "norm.bias"), r"lacks ln_post.weight.*end without a norm"),
    "packed gate": (
        lambda state: state | {f"blocks.{i}.mlp.fc2.weight": torch.ones(24, 24) for i in range(2)},
        r"gated MLP \(SwiGLU\)",
    ),
    "transposed": (_changed("blocks.1.mlp.fc1.weight", lambda t: t.T.contiguous()), r"c_fc.weight is \[24, 48\]"),
    "pruned attention": (_changed("blocks.1.attn.qkv.weight", lambda t: t[:36]), "other sizes than plain attention"),
    "video": (
        _changed("patch_embed.proj.weight", lambda t: t[:, :, None].repeat(1, 1, 2, 1, 1)),
        "video model.*2 frames",
    ),
    "patches of pixels": (_changed("patch_embed.proj.weight", lambda t: t.flatten(1)), "flat vectors.*NaFlex"),
    "one number": (_changed("patch_embed.proj.weight", lambda t: t.flatten()[0]), r"\[W, 3, P, P\], is needed"),
    "grey": (_changed("patch_embed.proj.weight", lambda t: t[:, :1]), "images of 1 channels"),
    "oblong patches": (_changed("patch_embed.proj.weight", lambda t: t[..., :2]), "4 x 2 pixels.*must be square"),
    "oblong grid": (_changed("pos_embed", lambda t: t[:, :7]), "6 positions.*must be square"),
    "8 bit": (_changed("blocks.0.mlp.fc1.weight", lambda t: t.to(torch.int8)), r"fc1.weight is quantised \(int8\)"),
    "8 bit floats": (_changed("blocks.0.mlp.fc1.weight", lambda t: t.to(torch.float8_e4m3fn)), "quantised .float8"),
    "scales": (_add(blocks__0__mlp__fc1__SCB=ONE), "quantised weights"),
    "adapters beside": (_add(blocks__0__mlp__fc1__lora_A__default__weight=ONE), "adapters .LoRA. that are not merged"),
    "distilled": (_add(dist_token=ONE), "a distillation token"),
    "several class tokens": (_changed("cls_token", lambda t: t.repeat(1, 8, 1)), r"cls_token is \[1, 8, 24\]"),
    "a block that is lost": (_without("blocks.0."), r"lacks transformer.resblocks.0.ln_1.weight.*\(12 in all\)"),
    "a bias that is lost": (_without("blocks.0.attn.proj.bias"), "lacks transformer.resblocks.0.attn.out_proj.bias"),
    "absurd names": (_add(blocks__99999999999999__norm1__weight=ONE), "nothing would use"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_stranger_is_refused_and_says_what_it_is(kind: str) -> None:
    change, message = STRANGERS[kind]
    with pytest.raises(CheckpointError, match=message):
        _load(change(timm_state()))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("visual.head.mlp.fc1.weight", "visual.head.mlp.fc2.weight"), "2 tensors.*visual.head.mlp"),
        (("visual.head.proj.bias",), r"visual.head.proj.bias"),
        (("visual_projection.0.weight",), r"visual_projection.0"),
    ],
)
def test_projections_that_are_not_one_matrix_are_refused(names: tuple[str, ...], message: str) -> None:
    trunk = {f"visual.trunk.{name}": tensor for name, tensor in timm_state(class_token=False).items()}
    with pytest.raises(CheckpointError, match=message):
        _read(trunk | dict.fromkeys(names, ONE))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("visual.attn_pool.query", r"attentional pooler \(CoCa\)"),
        ("visual.attn_pool.probe", "nothing would use|incomplete"),
        ("visual.transformer.resblocks.0.ts_attn.weight", "nothing"),
        ("visual.layer1.0.conv1.weight", "a ResNet"),
    ],
)
def test_clip_encoders_with_more_in_them_are_refused(extra: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        _read(openai_state() | {extra: ONE})


def test_what_is_known_to_come_after_an_encoder_is_left_out_and_listed() -> None:
    known = ("head.weight", "head.bias", "mask_token", "decoder_embed.weight", "decoder_blocks.0.norm1.weight")
    pretrained = _read(timm_state() | dict.fromkeys((*known, "decoder_pos_embed"), ONE))
    assert set(pretrained.unexpected) == {*known, "decoder_pos_embed"}


def test_adapters_alone_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"adapters \(LoRA"):
        _read({"base_model.model.blocks.0.attn.qkv.lora_A.weight": ONE})


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "model.vision_tower.", "pretrained.", "encoder.", "a.b.c."])
def test_an_encoder_is_found_under_any_prefix(prefix: str) -> None:
    for state in (timm_state(), openai_state()):
        plain = _read(state)
        found = _read({prefix + name: tensor for name, tensor in state.items()} | {"other.weight": ONE})
        assert found.layout == plain.layout
        assert "other.weight" in found.unexpected
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in plain.tensors.items())


def test_several_encoders_are_refused() -> None:
    state = {f"{who}.{name}": t for who in ("student", "teacher") for name, t in timm_state().items()}
    with pytest.raises(CheckpointError, match=r"2.*\*, teacher.\*"):
        _read(state)


def test_state_dicts_under_keys_of_their_own(tmp_path: Path) -> None:
    options = {"num_classes": 2, "heads": 2, "kinematic_width": 8, "window": 3}
    torch.save({"weights": timm_state(), "epoch": 3, "args": {"lr": 1.0}}, tmp_path / "one.pt")
    model = create_model("pks4_vit_b16", weights=tmp_path / "one.pt", **options)
    assert model.load_report is not None
    assert model.load_report.layout == "timm"
    torch.save({"student": timm_state(), "teacher": timm_state()}, tmp_path / "two.pt")
    with pytest.raises(CheckpointError, match="several"):
        create_model("pks4_vit_b16", weights=tmp_path / "two.pt", **options)


@pytest.mark.parametrize("kept", ["q", "v", "qv", "k", "qkv", ""])
def test_biases_of_queries_keys_and_values_may_be_there_or_not(kept: str) -> None:
    named = {"q": "query", "k": "key", "v": "value"}
    state: State = {
        "embeddings.patch_embeddings.projection.weight": torch.randn(8, 3, 4, 4),
        "embeddings.patch_embeddings.projection.bias": torch.randn(8),
        "embeddings.cls_token": torch.randn(1, 1, 8),
        "embeddings.position_embeddings": torch.randn(1, 5, 8),
        "layernorm.weight": torch.ones(8),
        "layernorm.bias": torch.zeros(8),
    }
    layer = "encoder.layer.0."
    for part in ("layernorm_before", "layernorm_after"):
        state |= {f"{layer}{part}.weight": torch.ones(8), f"{layer}{part}.bias": torch.zeros(8)}
    products = {"attention.output.dense": (8, 8), "intermediate.dense": (16, 8), "output.dense": (8, 16)}
    state |= {f"{layer}{part}.weight": torch.randn(shape) for part, shape in products.items()}
    for letter, part in named.items():
        state[f"{layer}attention.attention.{part}.weight"] = torch.randn(8, 8)
        if letter in kept:
            state[f"{layer}attention.attention.{part}.bias"] = torch.randn(8)
    tensors = _read(state).tensors
    biases = tensors["transformer.resblocks.0.attn.in_proj_bias"].chunk(3)
    for letter, bias in zip("qkv", biases, strict=True):
        expected = state.get(f"{layer}attention.attention.{named[letter]}.bias", torch.zeros(8))
        assert torch.equal(bias, expected)
    # Products without a bias in any block are products with zeros.
    assert not tensors["transformer.resblocks.0.mlp.c_fc.bias"].any()


def _odd(tensor: Tensor, way: int) -> Tensor:
    """The tensor in another shape."""
    return (
        tensor.flatten()[:1],
        tensor.flatten()[0],
        tensor[None],
        tensor[:0],
        tensor.repeat(2, *[1] * (tensor.dim() - 1)),
        tensor.flatten(),
    )[way]


@pytest.mark.parametrize("kind", ["timm", "openai", "videomamba"])
def test_tensors_of_any_shape_are_read_or_refused(kind: str) -> None:
    model = create_model("videomamba_tiny", depth=2, width=16, image_size=16, patch_size=8, num_classes=2)
    made = {"timm": timm_state, "openai": openai_state, "videomamba": model.state_dict}
    state = made[kind]()
    for name, tensor in state.items():
        for way in range(6 if tensor.dim() else 0):
            checkpoint = Checkpoint(source="x", file=Path("x.pt"), tensors=state | {name: _odd(tensor, way)})
            # Anything but our own error fails the test.
            with suppress(CheckpointError, ConfigError):
                if kind == "videomamba":
                    model.load(model.translate(checkpoint))
                else:
                    _load(checkpoint.tensors)


def test_a_videomamba_with_more_in_its_blocks_is_refused() -> None:
    model = create_model("videomamba_tiny", depth=2, width=16, image_size=16, patch_size=8, num_classes=2)
    more = {f"layers.{i}.mixer.in_proj.bias": torch.ones(64) for i in range(2)}
    tensors = model.state_dict() | more
    pretrained = model.translate(Checkpoint(source="x", file=Path("x.pt"), tensors=tensors))
    with pytest.raises(CheckpointError, match=r"2.*layers.0.mixer.in_proj.bias"):
        model.load(pretrained)
