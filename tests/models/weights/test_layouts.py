import pytest
import torch
from torch import Tensor

from kinescan.errors import CheckpointError
from kinescan.models.weights.layout_names import MARKERS
from kinescan.models.weights.layouts import describe_layouts, detect_layout, translate

State = dict[str, Tensor]


@pytest.mark.parametrize(
    ("kind", "layout", "public"),
    [
        ("openai", "openai", "openai"),
        ("openai encoder", "openai_encoder", "openai"),
        ("hugging_face", "hugging_face", "hugging_face"),
        ("timm", "timm", "timm"),
        ("timm without bias", "timm", "timm"),
        ("open_clip trunk", "open_clip_trunk", "open_clip"),
    ],
)
def test_translate_gives_our_encoder_bit_for_bit(
    published: dict[str, State], encoder: State, kind: str, layout: str, public: str
) -> None:
    assert detect_layout(published[kind]) == layout
    translated = translate(published[kind], layout, "x")
    assert translated.layout == public
    assert translated.tensors.keys() == encoder.keys()
    assert all(torch.equal(translated.tensors[name], tensor) for name, tensor in encoder.items())


def test_translate_lists_what_is_no_part_of_the_encoder(published: dict[str, State]) -> None:
    assert set(translate(published["openai"], "openai", "x").unexpected) == {"logit_scale", "token_embedding.weight"}
    hugging_face = translate(published["hugging_face"], "hugging_face", "x")
    assert hugging_face.unexpected == ("vision_model.embeddings.position_ids",)
    trunk = translate(published["open_clip trunk"], "open_clip_trunk", "x")
    assert set(trunk.unexpected) == {"logit_scale", "token_embedding.weight"}


def test_vision_model_alone_has_no_projection(published: dict[str, State], encoder: State) -> None:
    state = published["hugging_face encoder"]
    translated = translate(state, "hugging_face_encoder", "x")
    assert detect_layout(state) == "hugging_face_encoder"
    assert translated.layout == "hugging_face"
    assert set(encoder) - set(translated.tensors) == {"proj"}


def test_a_classifier_head_of_timm_stays_behind(published: dict[str, State]) -> None:
    with_bias = published["timm"] | {"head.bias": torch.ones(12)}
    translated = translate(with_bias, "timm", "x")
    assert "proj" not in translated.tensors
    assert set(translated.unexpected) == {"head.weight", "head.bias"}
    plain = {name: t for name, t in published["timm without bias"].items() if not name.startswith("norm_pre")}
    assert "proj" not in translate(plain, "timm", "x").tensors


def test_attention_without_bias_gets_zeros(published: dict[str, State]) -> None:
    state = {name: tensor for name, tensor in published["timm"].items() if not name.endswith("qkv.bias")}
    translated = translate(state, "timm", "x")
    bias = translated.tensors["transformer.resblocks.1.attn.in_proj_bias"]
    assert bias.shape == (72,)
    assert not bias.any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dist_token", "dist_token.*VisionTransformer"),
        ("blocks.1.attn.q_norm.weight", "query"),
        ("blocks.1.mlp.w12.weight", "MLP"),
        ("rope.periods", "positions"),
        ("blocks.0.attn.relative_position_bias_table", "positions"),
    ],
)
def test_parts_that_we_do_not_have_are_refused(published: dict[str, State], name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        translate(published["timm"] | {name: torch.ones(1)}, "timm", "x")


def test_a_resnet_and_a_clip_encoder_without_class_token_are_refused(published: dict[str, State]) -> None:
    resnet = {"visual.conv1.weight": torch.ones(1), "visual.layer1.0.conv1.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"has a ResNet \(visual.layer1.0.conv1.weight\)"):
        translate(resnet, "openai", "x")
    cut = {name: t for name, t in published["hugging_face"].items() if not name.endswith("class_embedding")}
    with pytest.raises(CheckpointError, match=r"class_embedding \(1.*all\)"):
        translate(cut, "hugging_face", "x")


def test_an_incomplete_encoder_is_refused(published: dict[str, State]) -> None:
    state = {name: t for name, t in published["hugging_face"].items() if "layers.0.self_attn.k_proj" not in name}
    with pytest.raises(CheckpointError, match=r"x.*CLIPModel.*SiglipModel.*incomplete.*in_proj"):
        translate(state, "hugging_face", "x")
    shard = {name: t for name, t in published["openai"].items() if "resblocks.0" not in name}
    with pytest.raises(CheckpointError, match=r"resblocks.0.ln_1.weight.*\(12 in all\). .*give all shards"):
        translate(shard, "openai", "x")


def test_every_layout_is_described() -> None:
    text = describe_layouts()
    assert all(marker in text and what in text for marker, what in MARKERS.values())
    assert detect_layout(["bert.embeddings.word_embeddings.weight"]) is None
