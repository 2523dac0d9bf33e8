import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.mentions import mentions
from torch import Tensor

import kinescan as ks
from kinescan.errors import CheckpointError, ConfigError
from kinescan.models.pks4 import PKS4
from kinescan.models.pks4_config import PKS4Config
from kinescan.models.registry import MODELS, Architecture, list_models
from kinescan.models.weights.vit_weights import resize_positions
from kinescan.models.zoo import create_model, from_pretrained
from kinescan.preprocessing import Preprocessing

State = dict[str, Tensor]
TINY = {"image_size": 12, "patch_size": 4, "width": 24, "depth": 2, "heads": 3, "mlp_dim": 48, "embed_dim": 12}
SMALL = TINY | {"insert_after": 1, "window": 3, "kinematic_width": 8, "state_size": 4, "norm": "group"}


@pytest.fixture
def clip_file(published: dict[str, State], tmp_path: Path) -> Path:
    save_file(published["openai"], tmp_path / "clip.safetensors")
    return tmp_path / "clip.safetensors"


def _settings(name: str) -> PKS4Config:
    return PKS4Config(**MODELS[name].settings)


def test_names_and_their_sizes() -> None:
    assert {"vit_b16", "vit_l14", "vit_ti16", "pks4_vit_b16", "pks4_vit_l14", "pks4_vit_ti16"} <= set(list_models())
    assert list_models() == sorted(list_models())
    large = _settings("pks4_vit_l14")
    assert (large.width, large.depth, large.heads, large.mlp_dim) == (1024, 24, 16, 4096)
    assert (large.embed_dim, large.patch_size, large.insert_after) == (768, 14, 16)
    assert (_settings("pks4_vit_ti16").width, _settings("pks4_vit_ti16").heads) == (192, 3)
    for name in ("vit_ti16", "vit_b16", "vit_l14"):
        assert not _settings(name).has_module
        assert _settings(name).class_token_route == "none"


def test_public_names_are_these() -> None:
    assert (ks.create_model, ks.from_pretrained, ks.list_models) == (create_model, from_pretrained, list_models)


def test_labels_set_the_number_of_classes() -> None:
    model = create_model("vit_b16", labels=["a", "b"], **TINY)
    assert (model.config.num_classes, model.labels, model.name) == (2, ("a", "b"), "vit_b16")
    assert model.training
    assert create_model("vit_b16", num_classes=7, **TINY).head.out_features == 7
    with pytest.raises(ConfigError, match=r"2.*3 classes"):
        create_model("vit_b16", labels=["a", "b"], num_classes=3, **TINY)


def test_unknown_names_and_options_name_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"'pks4_vit_b_16'.*'pks4_vit_b16'\?"):
        create_model("pks4_vit_b_16")
    with pytest.raises(
        ConfigError, match=r"unknown model 'resnet'. Allowed: .*pks4_vit_b16, .* `kinescan list` shows all"
    ):
        create_model("resnet")
    with pytest.raises(ConfigError, match=r"pks4_vit_b16.*'windw'.*'window'\?"):
        create_model("pks4_vit_b16", windw=7)


def test_wrong_options_are_config_errors() -> None:
    with pytest.raises(ConfigError, match=r'window: .* got "wide"'):
        create_model("pks4_vit_b16", window="wide")
    with pytest.raises(ConfigError, match=r"window.*8"):
        create_model("pks4_vit_b16", window=8)
    with pytest.raises(ConfigError, match="norm: "):
        create_model("pks4_vit_b16", norm="layer")


def test_another_depth_keeps_the_relative_place() -> None:
    options = {key: value for key, value in SMALL.items() if key != "insert_after"}
    assert create_model("pks4_vit_b16", **(options | {"depth": 6})).config.insert_after == 4
    assert create_model("pks4_vit_l14", **(options | {"depth": 3})).config.insert_after == 2
    assert create_model("pks4_vit_b16", **(options | {"depth": 6, "insert_after": 5})).config.insert_after == 5


def test_sizes_are_read_from_the_weights(clip_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        model = create_model("pks4_vit_l14", num_classes=5, weights=clip_file, heads=3)
    config = model.config
    assert {key: getattr(config, key) for key in TINY} == TINY
    assert (config.activation, config.insert_after) == ("quick_gelu", 1)
    assert model.preprocessing == Preprocessing(size=12)
    assert mentions(caplog.text, "pks4_vit_l14", "image_size=12, patch_size=4, width=24")
    report = model.load_report
    assert report is not None
    assert report.source == str(clip_file)
    assert {name.split(".")[0] for name in report.missing} == {"class_token_routes", "kinematic", "scanner", "head"}
    assert {name.split(".")[0] for name in report.loaded} == {"vit"}


def test_baseline_averages_clip_embeddings(clip_file: Path, golden: State) -> None:
    model = create_model("vit_b16", num_classes=5, weights=str(clip_file), heads=3).double().eval()
    logits = model(golden["pixels"].double()[None])
    torch.testing.assert_close(
        logits, model.head(golden["image_embeds_f64"].mean(0, keepdim=True)), atol=1e-10, rtol=1e-9
    )


def test_a_checkpoint_beside_its_config_needs_no_heads(
    published: dict[str, State], tmp_path: Path, golden: State
) -> None:
    save_file(published["hugging_face"], tmp_path / "model.safetensors")
    vision = {"num_attention_heads": 3, "hidden_act": "quick_gelu"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.2] * 3}))
    model = create_model("vit_b16", num_classes=5, weights=tmp_path).eval()
    assert model.config.heads == 3
    assert model.preprocessing == Preprocessing(size=12, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    embeds = model.vit(golden["pixels"])
    torch.testing.assert_close(embeds.double(), golden["image_embeds_f64"], atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"heads=4 contradicts.*3"):
        create_model("vit_b16", weights=tmp_path, heads=4)


def test_heads_that_nothing_tells_must_be_given(clip_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"24.*2 has.*Add heads="):
        create_model("vit_b16", weights=clip_file)


def test_options_that_contradict_the_weights_are_errors(clip_file: Path) -> None:
    for option, value in {"width": 48, "depth": 3, "patch_size": 6, "mlp_dim": 24, "embed_dim": 24}.items():
        with pytest.raises(
            ConfigError, match=rf"vit_b16: {option}={value} contradicts .*clip.safetensors, whose {option} is"
        ):
            create_model("vit_b16", weights=clip_file, heads=3, **{option: value})


def test_another_image_size_interpolates_positions(clip_file: Path, encoder: State) -> None:
    model = create_model("vit_b16", weights=clip_file, heads=3, image_size=20)
    assert model.preprocessing.size == 20
    assert model.load_report.resized == ("vit.positional_embedding",)
    assert torch.equal(model.vit.positional_embedding, resize_positions(encoder["positional_embedding"], 26))
    by_preprocessing = create_model("vit_b16", weights=clip_file, heads=3, preprocessing=Preprocessing(size=20))
    assert torch.equal(by_preprocessing.vit.positional_embedding, model.vit.positional_embedding)


def test_some_fields_of_preprocessing_leave_the_others_to_the_weights(tmp_path: Path) -> None:
    saved = create_model("vit_b16", labels=["a", "b"], preprocessing={"mean": [0.3, 0.3, 0.3]}, **TINY)
    assert saved.preprocessing == Preprocessing(size=12, mean=(0.3, 0.3, 0.3))
    saved.save_pretrained(tmp_path)
    model = create_model("vit_b16", weights=tmp_path, preprocessing={"num_frames": 5})
    assert model.preprocessing == Preprocessing(size=12, mean=(0.3, 0.3, 0.3), num_frames=5)
    larger = create_model("vit_b16", weights=tmp_path, preprocessing={"size": 16})
    assert (larger.config.image_size, larger.preprocessing.size) == (16, 16)
    with pytest.raises(ConfigError, match=r"unknown key 'preprocessing.frames'"):
        create_model("vit_b16", preprocessing={"frames": 5}, **TINY)
    with pytest.raises(ConfigError, match=r"16.*12"):
        create_model("vit_b16", preprocessing={"size": 16}, **TINY)


def test_projection_may_be_left_out_and_activation_chosen(clip_file: Path) -> None:
    model = create_model("vit_b16", weights=clip_file, heads=3, embed_dim=None, activation="gelu")
    assert model.vit.proj is None
    assert model.config.activation == "gelu"
    assert "vit.proj" in model.load_report.unexpected


def test_inserted_module_changes_nothing_at_the_start(clip_file: Path, golden: State) -> None:
    options = {"num_classes": 5, "weights": clip_file, "heads": 3, "class_token_route": "conv"}
    bare = create_model("vit_b16", **options).eval()
    full = create_model("pks4_vit_b16", **options).eval()
    full.head.load_state_dict(bare.head.state_dict())
    clip = golden["pixels"].repeat(1, 4, 1, 1, 1).view(2, 4, 3, 12, 12)
    assert torch.equal(bare(clip), full(clip))


def test_weights_from_the_hub(published: dict[str, State], tmp_path: Path, hub) -> None:
    save_file(published["timm"], tmp_path / "model.safetensors")
    settings = {
        "architecture": "vit_base_patch16_clip_224",
        "pretrained_cfg": {"tag": "openai", "mean": [0.4, 0.4, 0.4]},
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    hub("timm/vit_base_patch16_clip_224.openai", tmp_path)
    model = create_model("vit_b16", weights="timm/vit_base_patch16_clip_224.openai", heads=3)
    assert model.config.activation == "quick_gelu"
    assert model.preprocessing.mean == (0.4, 0.4, 0.4)
    assert model.load_report.source == "timm/vit_base_patch16_clip_224.openai"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True, "average": "exponential", "average_rate": 0.3},
        {"bidirectional": True, "residual": "literal", "border": "replicate", "norm": "batch"},
        {"correlation": False, "context_frames": 2, "class_token_route": "tsm"},
        {"scanner": False, "variation": False, "class_token_route": "token_shift"},
        {"embed_dim": None, "pre_norm": False, "patch_bias": True, "activation": "gelu", "norm_eps": 1e-6},
    ],
)
def test_round_trip_of_every_variant(tmp_path: Path, options: dict[str, object]) -> None:
    model = create_model("pks4_vit_b16", labels=["a", "b", "c"], **(SMALL | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert isinstance(again, PKS4)
    assert again.config == model.config
    clip = torch.randn(2, 3, 3, 12, 12)
    assert torch.equal(again(clip), model(clip))


def test_from_pretrained_of_an_unknown_model_names_the_closest(tmp_path: Path) -> None:
    create_model("vit_b16", labels=["a", "b"], **TINY).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"vit_b16"', '"vit_b17"'))
    with pytest.raises(CheckpointError, match=r"'vit_b17'.*'vit_b16'\?.*upgrade"):
        from_pretrained(tmp_path)


def test_from_pretrained_reads_from_the_hub(tmp_path: Path, hub) -> None:
    create_model("vit_b16", labels=["a", "b"], **TINY).save_pretrained(tmp_path)
    hub("me/mine", tmp_path)
    assert from_pretrained("me/mine").labels == ("a", "b")


def test_own_folder_of_the_same_model_goes_on_where_it_was(tmp_path: Path) -> None:
    preprocessing = Preprocessing(size=12, num_frames=4, mean=(0.3, 0.3, 0.3))
    saved = create_model("pks4_vit_b16", labels=["a", "b"], preprocessing=preprocessing, **SMALL).eval()
    saved.save_pretrained(tmp_path)
    model = create_model("pks4_vit_b16", weights=tmp_path).eval()
    assert (model.config, model.labels, model.preprocessing) == (saved.config, ("a", "b"), preprocessing)
    clip = torch.randn(1, 4, 3, 12, 12)
    assert torch.equal(model(clip), saved(clip))
    assert model.load_report.missing == model.load_report.unexpected == ()
    same_count = create_model("pks4_vit_b16", weights=tmp_path, num_classes=2, drop_path=0.1)
    assert same_count.labels == ("a", "b")
    assert same_count.config.drop_path == 0.1


def test_own_folder_with_other_classes_gets_a_new_head(tmp_path: Path) -> None:
    saved = create_model("pks4_vit_b16", labels=["a", "b"], **SMALL)
    saved.save_pretrained(tmp_path)
    for labels in (["a", "b", "c"], ["b", "c"]):
        model = create_model("pks4_vit_b16", weights=tmp_path, labels=labels)
        assert set(model.load_report.missing) == set(model.load_report.unexpected) == {"head.weight", "head.bias"}
        assert torch.equal(model.vit.proj, saved.vit.proj)
    assert create_model("pks4_vit_b16", weights=tmp_path, num_classes=5).head.out_features == 5


def test_own_baseline_becomes_the_backbone_of_another_model(tmp_path: Path) -> None:
    """As the demo does: stills first, then clips."""
    stills = Preprocessing(size=12, num_frames=1, mean=(0.3, 0.3, 0.3))
    saved = create_model("vit_b16", labels=["a", "b"], preprocessing=stills, drop_path=0.2, **TINY)
    saved.save_pretrained(tmp_path)
    model = create_model("pks4_vit_b16", weights=tmp_path, labels=["x", "y"], window=3)
    assert model.config.has_module
    assert (model.config.width, model.config.heads, model.config.drop_path) == (24, 3, 0.0)
    assert (model.preprocessing.mean, model.preprocessing.num_frames) == ((0.3, 0.3, 0.3), 8)
    own = saved.state_dict()
    assert all(torch.equal(t, own[name]) for name, t in model.state_dict().items() if name.startswith("vit."))
    with pytest.raises(ConfigError, match="heads=4 contradicts"):
        create_model("pks4_vit_b16", weights=tmp_path, heads=4)


def test_a_bare_file_of_ours_loads_with_its_head_if_that_fits(tmp_path: Path) -> None:
    saved = create_model("vit_b16", labels=["a", "b"], **TINY)
    save_file(saved.state_dict(), tmp_path / "weights.safetensors")
    options = {"weights": tmp_path / "weights.safetensors", "heads": 3}
    assert torch.equal(create_model("vit_b16", num_classes=2, **options).head.weight, saved.head.weight)
    other = create_model("vit_b16", num_classes=3, **options)
    assert set(other.load_report.unexpected) == {"head.weight", "head.bias"}


def test_a_new_model_is_one_dict_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(MODELS, "mine", Architecture(PKS4, SMALL | {"scanner": False}))
    create_model("mine", labels=["a", "b"], window=5).save_pretrained(tmp_path)
    assert from_pretrained(tmp_path).name == "mine"
    assert "mine" in list_models()


def test_weights_of_a_model_of_frames_start_one_of_clips_and_the_other_way_round(tmp_path: Path) -> None:
    frames = create_model("vit_ti16", labels=["background", "fall"], depth=1, output="frames", causal=True)
    frames.save_pretrained(tmp_path)
    assert create_model("vit_ti16", weights=tmp_path).answers_frames
    assert create_model("vit_ti16", weights=tmp_path, labels=["background", "fall"]).answers_frames
    clips = create_model("vit_ti16", weights=tmp_path, labels=["left", "right"])
    assert not clips.answers_frames
    clips.save_pretrained(tmp_path / "clips")
    options = {"output": "frames", "overlapping": True}
    again = create_model("vit_ti16", weights=tmp_path / "clips", labels=["walk", "sit"], **options)
    assert again.overlapping
    assert torch.equal(again.state_dict()["vit.conv1.weight"], frames.state_dict()["vit.conv1.weight"])
