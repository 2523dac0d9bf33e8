import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.mentions import mentions
from torch import Tensor

from kinescan.errors import CheckpointError, ConfigError
from kinescan.models.vit.vit import VisionTransformer
from kinescan.models.vit.vit_config import ViTConfig
from kinescan.models.weights.checkpoint_file import Checkpoint, open_checkpoint
from kinescan.models.weights.layouts import translate
from kinescan.models.weights.vit_weights import (
    Pretrained,
    infer_vit_config,
    load_pretrained,
    read_vision_encoder,
    read_vision_tower,
    resize_positions,
)
from kinescan.models.zoo import create_model

State = dict[str, Tensor]
SIZES = {"image_size": 12, "patch_size": 4, "width": 24, "depth": 2, "mlp_dim": 48, "embed_dim": 12}
PLAIN = {
    **{"pre_norm": True, "patch_bias": False, "class_token": True, "num_registers": 0, "layer_scale": False},
    **{"positions": "learned", "pooling": "class", "stem_convolutions": 0},
}


def _checkpoint(state: State, **settings: object) -> Checkpoint:
    return Checkpoint(source="x", file=Path("x.pt"), tensors=state, settings=settings)


def _vit(**fields: object) -> VisionTransformer:
    return VisionTransformer(ViTConfig(**(SIZES | {"heads": 3} | fields)))


def _load(vit: VisionTransformer, state: State) -> object:
    return load_pretrained(vit, read_vision_encoder(_checkpoint(state), prefix=""))


def test_every_layout_and_kind_of_file_gives_the_same_outputs(
    published: dict[str, State], golden: State, tmp_path: Path
) -> None:
    expected = None
    for kind in ("openai", "openai encoder", "hugging_face", "timm", "timm without bias", "open_clip trunk"):
        for ending in ("safetensors", "pt"):
            path = tmp_path / f"{kind}.{ending}"
            (save_file if ending == "safetensors" else torch.save)(published[kind], path)
            vit = _vit().eval()
            report = load_pretrained(vit, read_vision_encoder(open_checkpoint(path), prefix=""))
            assert report.source == str(path)
            assert report.missing == report.resized == ()
            out = vit(golden["pixels"])
            expected = out if expected is None else expected
            assert torch.equal(out, expected), path
    torch.testing.assert_close(expected.double(), golden["image_embeds_f64"], atol=1e-5, rtol=1e-5)


def test_half_precision_becomes_float32(published: dict[str, State], encoder: State) -> None:
    vit = _vit()
    _load(vit, published["openai half"])
    assert vit.proj is not None
    assert vit.proj.dtype == torch.float32
    assert torch.equal(vit.proj, encoder["proj"].half().float())


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-L-14"])
def test_published_sizes_are_read_from_the_tensors(shared: Path, name: str) -> None:
    layout = json.loads((shared / "fixtures" / "clip_fullsize_layouts.json").read_text())[name]
    state = {key: torch.empty(shape, device="meta") for key, shape in layout["shapes"].items()}
    pretrained = read_vision_encoder(_checkpoint(state))
    large = name == "ViT-L-14"
    expected = (
        ViTConfig(patch_size=14, width=1024, depth=24, heads=16, mlp_dim=4096, embed_dim=768) if large else ViTConfig()
    )
    fields = pretrained.sizes | pretrained.conventions
    assert ViTConfig(**fields) == expected
    with torch.device("meta"):
        own = VisionTransformer(expected).state_dict()
    assert {f"vit.{key}": tensor.shape for key, tensor in own.items()} == {
        key: tensor.shape for key, tensor in pretrained.tensors.items()
    }
    assert sum(tensor.numel() for tensor in own.values()) == layout["params"]


def test_infer_vit_config_reads_every_size(encoder: State) -> None:
    assert infer_vit_config(encoder) == SIZES | PLAIN | {"heads": None}
    plain = {name: tensor for name, tensor in encoder.items() if name != "proj" and not name.startswith("ln_pre")}
    found = infer_vit_config(plain | {"conv1.bias": torch.zeros(24)})
    assert (found["embed_dim"], found["pre_norm"], found["patch_bias"]) == (None, False, True)


def test_grids_that_are_not_square_are_refused(encoder: State) -> None:
    with pytest.raises(CheckpointError, match=r"4 x 4.*10"):
        infer_vit_config(encoder | {"positional_embedding": torch.zeros(11, 24)})


@pytest.mark.parametrize(
    ("kind", "settings", "activation"),
    [
        ("openai", {}, "quick_gelu"),
        ("hugging_face", {}, "quick_gelu"),
        ("hugging_face", {"model_type": "clip", "vision_config": {"hidden_act": "gelu"}}, "gelu"),
        ("hugging_face", {"model_type": "clip", "vision_config": {}}, "quick_gelu"),
        ("hugging_face", {"model_type": "clip_vision_model", "hidden_act": "gelu"}, "gelu"),
        ("openai", {"model_cfg": {"quick_gelu": True}}, "quick_gelu"),
        ("openai", {"model_cfg": {}}, "gelu"),
        ("open_clip trunk", {}, "gelu"),
        ("timm", {}, "gelu"),
        ("timm", {"architecture": "vit_base_patch16_clip_quickgelu_224"}, "quick_gelu"),
        ("timm", {"architecture": "vit_base_patch16_clip_224", "pretrained_cfg": {"tag": "openai"}}, "quick_gelu"),
        ("timm", {"architecture": "vit_base_patch16_clip_224", "pretrained_cfg": {"tag": "laion2b"}}, "gelu"),
    ],
)
def test_activation_is_read_or_the_usual_one(
    published: dict[str, State], kind: str, settings: dict[str, object], activation: str
) -> None:
    assert read_vision_encoder(_checkpoint(published[kind], **settings)).conventions["activation"] == activation


def test_names_tell_the_activation_where_no_config_does(published: dict[str, State]) -> None:
    openai = dataclasses.replace(_checkpoint(published["timm"]), source="timm/vit_base_patch16_clip_224.openai")
    assert read_vision_encoder(openai).conventions["activation"] == "quick_gelu"
    open_clip = dataclasses.replace(_checkpoint(published["openai"]), file=Path("open_clip_pytorch_model.bin"))
    assert read_vision_encoder(open_clip).conventions["activation"] == "gelu"
    assert read_vision_encoder(open_clip).layout == "open_clip"


def test_an_assumed_activation_is_said(published: dict[str, State], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        read_vision_encoder(_checkpoint(published["openai"], model_cfg={}))
        assert "activation" not in caplog.text
        read_vision_encoder(_checkpoint(published["openai"]))
    assert "quick_gelu" in caplog.text


def test_heads_and_eps_come_from_the_config(published: dict[str, State]) -> None:
    vision = {"num_attention_heads": 3, "layer_norm_eps": 1e-6}
    pretrained = read_vision_encoder(_checkpoint(published["hugging_face"], model_type="clip", vision_config=vision))
    assert pretrained.sizes["heads"] == 3
    assert pretrained.conventions["norm_eps"] == 1e-6
    model_cfg = {"vision_cfg": {"width": 24, "head_width": 8}}
    assert read_vision_encoder(_checkpoint(published["openai"], model_cfg=model_cfg)).sizes["heads"] == 3


def test_imagenet_vits_of_timm_have_another_eps(published: dict[str, State]) -> None:
    plain = {name: t for name, t in published["timm"].items() if not name.startswith(("norm_pre", "head"))}
    pretrained = read_vision_encoder(_checkpoint(plain | {"patch_embed.proj.bias": torch.zeros(24)}))
    assert pretrained.conventions["norm_eps"] == 1e-6
    assert pretrained.sizes["patch_bias"]
    assert pretrained.sizes["embed_dim"] is None
    vit = _vit(pre_norm=False, patch_bias=True, embed_dim=None)
    report = load_pretrained(vit, dataclasses.replace(pretrained, tensors=_without_prefix(pretrained.tensors)))
    assert report.missing == ()


def test_an_unknown_activation_is_refused(published: dict[str, State]) -> None:
    settings = {"model_type": "clip", "hidden_act": "relu"}
    with pytest.raises(CheckpointError, match=r"'relu'; VisionTransformer.*quick_gelu"):
        read_vision_encoder(_checkpoint(published["hugging_face"], **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}},
        {"architecture": "x", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}},
        {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]},
    ],
)
def test_mean_and_std_come_with_the_weights(published: dict[str, State], settings: dict[str, object]) -> None:
    told = read_vision_encoder(_checkpoint(published["timm"], **settings)).preprocessing
    assert told == {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rescale_factor": 1 / 255, "do_rescale": True, "do_normalize": True}, (0.5, 0.25)),
        ({"do_normalize": False}, (0.0, 1.0)),
        ({"do_rescale": False}, (0.5 / 255, 0.25 / 255)),
        ({"rescale_factor": 1 / 127.5}, (0.25, 0.125)),
        ({"rescale_factor": 1 / 127.5, "do_normalize": False}, (0.0, 0.5)),
    ],
)
def test_pixels_are_scaled_as_the_processor_of_the_weights_does(
    published: dict[str, State], settings: dict[str, object], expected: tuple[float, float]
) -> None:
    given = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, **settings}
    told = read_vision_encoder(_checkpoint(published["timm"], **given)).preprocessing
    pixels = torch.arange(256.0)
    factor = 1.0 if settings.get("do_rescale") is False else float(str(settings.get("rescale_factor", 1 / 255)))
    theirs = pixels * factor if settings.get("do_normalize") is False else (pixels * factor - 0.5) / 0.25
    torch.testing.assert_close((pixels / 255 - told["mean"][0]) / told["std"][0], theirs)
    assert (told["mean"][0], told["std"][0]) == pytest.approx(expected)


@pytest.mark.parametrize("factor", [0, -1, True, "x", float("nan"), 255])
def test_a_senseless_rescale_factor_is_refused(published: dict[str, State], factor: object) -> None:
    with pytest.raises(CheckpointError, match="rescale_factor"):
        read_vision_encoder(
            _checkpoint(published["timm"], image_mean=[0.5] * 3, image_std=[0.5] * 3, rescale_factor=factor)
        )


def test_a_checkpoint_that_fits_nothing_shows_what_was_expected() -> None:
    state = {f"bert.layer.{i}.weight": torch.ones(1) for i in range(7)}
    with pytest.raises(CheckpointError) as caught:
        read_vision_encoder(_checkpoint(state))
    message = str(caught.value)
    assert mentions(message, "x", "7 tensors: bert.layer.0.weight")
    assert "Hugging Face CLIPModel or SiglipModel: vision_model.embeddings.patch_embedding.weight" in message
    assert mentions(message, "DINOv2, DINOv3", "MAE: patch_embed.proj.weight")
    assert "OpenAI CLIP or open_clip: visual.conv1.weight" in message


def test_load_reports_missing_left_over_and_resized(
    published: dict[str, State], caplog: pytest.LogCaptureFixture
) -> None:
    vit = _vit(image_size=20)
    with caplog.at_level(logging.INFO):
        report = _load(vit, published["openai"])
    assert report.resized == ("positional_embedding",)
    assert set(report.unexpected) == {"logit_scale", "token_embedding.weight"}
    assert report.missing == ()
    assert len(report.loaded) == len(vit.state_dict())
    assert str(report) in caplog.text


def test_parts_of_the_model_without_weights_are_missing_and_kept(published: dict[str, State]) -> None:
    model = torch.nn.ModuleDict({"vit": _vit(), "head": torch.nn.Linear(12, 3)})
    before = model["head"].weight.clone()
    report = load_pretrained(model, read_vision_encoder(_checkpoint(published["openai"])))
    assert report.missing == ("head.weight", "head.bias")
    assert torch.equal(model["head"].weight, before)


def test_another_shape_is_an_error(published: dict[str, State]) -> None:
    with pytest.raises(CheckpointError, match=r"conv1.weight.*\[24, 3, 4, 4\].*\[24, 3, 6, 6\]"):
        _load(_vit(patch_size=6), published["openai"])


def test_nothing_that_fits_is_an_error() -> None:
    pretrained = Pretrained(source="x", layout="kinescan", tensors={"other": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"1.*class_embedding,"):
        load_pretrained(_vit(), pretrained)


def test_positions_of_the_same_grid_stay_and_a_plane_stays_a_plane() -> None:
    positions = torch.randn(10, 4)
    torch.testing.assert_close(resize_positions(positions, 10), positions)
    rows = torch.arange(8.0).view(8, 1).expand(8, 8).reshape(64, 1)
    resized = resize_positions(torch.cat([torch.full((1, 1), 9.0), rows]), 1 + 16 * 16)
    assert resized[0].item() == 9
    grid = resized[1:].view(16, 16)
    # Pixel centres: row i of 16 lies at (i + 0.5) / 2 - 0.5 of the old rows; the border is left out.
    torch.testing.assert_close(grid[4:12, 3], (torch.arange(4.0, 12) + 0.5) / 2 - 0.5, atol=1e-4, rtol=0)
    torch.testing.assert_close(grid[:, 0], grid[:, 15])


def test_smaller_grids_are_averaged() -> None:
    stripes = torch.tensor([1.0, -1.0]).repeat(8).expand(16, 16).reshape(256, 1)
    small = resize_positions(torch.cat([torch.zeros(1, 1), stripes]), 1 + 16)
    assert small[1:].abs().max() < 0.2


def test_a_file_of_ours_without_config_is_read_by_its_tensors(encoder: State, tmp_path: Path) -> None:
    own = {f"vit.{name}": tensor for name, tensor in encoder.items()} | {"head.weight": torch.ones(5, 12)}
    save_file(own, tmp_path / "model.safetensors")
    pretrained = read_vision_encoder(open_checkpoint(tmp_path))
    assert pretrained.layout == "kinescan"
    assert pretrained.sizes == SIZES | PLAIN
    assert pretrained.labels is None
    assert pretrained.tensors.keys() == own.keys()


@pytest.mark.parametrize(("stem", "patch"), [(0, 8), (2, 8), (5, 32)])
def test_a_model_of_ours_with_a_stem_and_without_class_token_is_a_start(tmp_path: Path, stem: int, patch: int) -> None:
    sizes: dict[str, Any] = {
        "image_size": 2 * patch, "patch_size": patch, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 32,
        "embed_dim": 8, "pooling": "mean", "class_token": False, "class_token_route": "none", "insert_after": 1,
        "window": 3,
    }  # fmt: skip
    model = create_model("pks4_vit_ti16", num_classes=2, stem_convolutions=stem, **sizes)
    model.save_pretrained(tmp_path)
    started = create_model("pks4_vit_ti16", num_classes=3, weights=tmp_path)
    held = started.state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in model.state_dict().items() if "head" not in name)
    with pytest.raises(ConfigError, match="stem_convolutions"):
        create_model("pks4_vit_ti16", num_classes=3, weights=tmp_path, stem_convolutions=1)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"vit.conv1.weight": torch.zeros(16, 5, 1, 1)}, file)
    with pytest.raises(CheckpointError) as raised:
        create_model("pks4_vit_ti16", num_classes=3, weights=tmp_path)
    assert mentions(str(raised.value), "conv1", "stem" if stem else "channels")


def test_transformers_own_files_load(golden: State, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "intermediate_size": 48, "projection_dim": 12, "num_hidden_layers": 2}
    config = transformers.CLIPVisionConfig(
        **sizes, num_attention_heads=3, image_size=12, patch_size=4, hidden_act="gelu"
    )
    for cls in (transformers.CLIPVisionModel, transformers.CLIPVisionModelWithProjection):
        model = cls(config).eval()
        model.save_pretrained(tmp_path / cls.__name__)
        pretrained = read_vision_encoder(open_checkpoint(tmp_path / cls.__name__), prefix="")
        fields = pretrained.sizes | pretrained.conventions
        assert (fields["heads"], fields["activation"]) == (3, "gelu")
        vit = VisionTransformer(ViTConfig(**fields)).eval()
        assert load_pretrained(vit, pretrained).missing == ()
        out = model(golden["pixels"])
        theirs = out.pooler_output if cls is transformers.CLIPVisionModel else out.image_embeds
        torch.testing.assert_close(vit(golden["pixels"]), theirs, atol=1e-5, rtol=1e-5)


def test_both_shared_layouts_give_the_reference_outputs(shared: Path) -> None:
    outputs = load_file(shared / "fixtures" / "clip_outputs.safetensors")
    for file in ("clip_openai.safetensors", "clip_hf.safetensors"):
        pretrained = read_vision_encoder(open_checkpoint(shared / "fixtures" / file), prefix="")
        config = ViTConfig(**(pretrained.sizes | pretrained.conventions | {"heads": 4}))
        vit = VisionTransformer(config).double()
        load_pretrained(vit, pretrained)
        torch.testing.assert_close(vit(outputs["x"].double()), outputs["image_embeds_f64"], atol=1e-10, rtol=1e-9)


def _without_prefix(tensors: State) -> State:
    return {name.removeprefix("vit."): tensor for name, tensor in tensors.items()}


def test_translate_keeps_meta_tensors(encoder: State) -> None:
    meta = {f"visual.{name}": tensor.to("meta") for name, tensor in encoder.items()}
    assert all(tensor.is_meta for tensor in translate(meta, "openai", "x").tensors.values())


def test_read_vision_tower_is_the_old_name(published: dict[str, State]) -> None:
    checkpoint = _checkpoint(published["openai"])
    with pytest.warns(DeprecationWarning, match="read_vision_encoder"):
        old = read_vision_tower(checkpoint)
    assert old.sizes == read_vision_encoder(checkpoint).sizes
