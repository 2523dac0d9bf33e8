import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.mentions import mentions
from torch import Tensor

from kinescan.errors import CheckpointError, ConfigError, ShapeError
from kinescan.models.videomamba.videomamba import VideoMamba, VideoMambaConfig
from kinescan.models.weights.checkpoint_file import Checkpoint
from kinescan.models.weights.videomamba_weights import inflate, resize_grid_positions, resize_temporal_positions
from kinescan.models.zoo import create_model, from_pretrained
from kinescan.preprocessing import Preprocessing
from kinescan.profiling.cost import count_cost

GOLDEN = Path(__file__).parents[2] / "golden"
# Of a model with the random weights below, by code that met the published values at 1e-10.
PINNED = [0.126838071048, -0.080240272757, -0.708835101294]
TINY: dict[str, Any] = {"image_size": 16, "patch_size": 8, "depth": 2, "width": 16, "num_frames": 4}


def _reference(shared: Path) -> dict[str, Tensor]:
    values = load_file(shared / "fixtures" / "videomamba.safetensors")
    return {name.removeprefix("vm_a/"): tensor for name, tensor in values.items()}


def _published(values: dict[str, Tensor], **options: Any) -> VideoMamba:
    config = VideoMambaConfig(image_size=32, patch_size=8, depth=4, width=48, num_classes=7, num_frames=4, **options)
    model = VideoMamba(config)
    state = {name.removeprefix("state_dict/"): t for name, t in values.items() if name.startswith("state_dict/")}
    model.load_state_dict(state, strict=True)
    return model


def test_float64_matches_published_layers_outputs_and_gradients(shared: Path) -> None:
    values = _reference(shared)
    model = _published(values, drop_path=0.1).double().eval()
    seen: dict[str, Tensor] = {}
    for index, block in enumerate(model.blocks):

        def keep(module: object, inputs: object, output: tuple[Tensor, Tensor], index: int = index) -> None:
            seen[f"layer{index}/hidden_f64"], seen[f"layer{index}/residual_f64"] = output

        block.register_forward_hook(keep)
    clip = values["x"].transpose(1, 2).double().requires_grad_()
    features = model.forward_features(clip)
    logits = model.head(features)
    for name, tensor in {**seen, "features_f64": features, "logits_f64": logits}.items():
        torch.testing.assert_close(tensor, values[name], atol=1e-10, rtol=1e-9, msg=lambda text, name=name: name + text)
    (logits * values["loss_w"]).sum().backward()
    gradients = {f"grad_f64/{name}": parameter.grad for name, parameter in model.named_parameters()}
    for name, gradient in {**gradients, "dx_f64": clip.grad.transpose(1, 2)}.items():
        assert (gradient - values[name]).abs().max() <= 1e-8 * values[name].abs().max(), name


def test_float32_matches_published_outputs(shared: Path) -> None:
    values = _reference(shared)
    model = _published(values)
    clip = values["x"].transpose(1, 2).requires_grad_()
    logits = model(clip)
    torch.testing.assert_close(logits.double(), values["logits_f64"], atol=1e-5, rtol=1e-5)
    (logits * values["loss_w"]).sum().backward()
    error = (clip.grad.transpose(1, 2).double() - values["dx_f64"]).abs().max()
    assert error <= 1e-4 * values["dx_f64"].abs().max()


def test_drop_path_drops_where_the_output_is_added(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = _reference(shared)
    model = _published(values, drop_path=0.5).double().train()
    kept = values["droppath/keep"]
    modules = [block.drop_path for block in model.blocks[1:]] + [model.drop_path]
    for layer, module in enumerate(modules):
        # The published rates are rounded to float32.
        def drop(x: Tensor, layer: int = layer, rate: float = torch.linspace(0, 0.5, 4)[layer].item()) -> Tensor:
            return x * (kept[layer] / (1 - rate)).view(-1, *[1] * (x.dim() - 1)) if rate else x

        monkeypatch.setattr(module, "forward", drop)
    assert [round(module.rate, 4) for module in modules] == [0.0, 0.1667, 0.3333, 0.5]
    logits = model(values["x"].transpose(1, 2).double())
    torch.testing.assert_close(logits, values["droppath/logits_f64"], atol=1e-10, rtol=1e-9)
    (logits * values["loss_w"]).sum().backward()
    expected = values["droppath/grad_f64/patch_embed.proj.weight"]
    assert (model.patch_embed.proj.weight.grad - expected).abs().max() <= 1e-8 * expected.abs().max()


def test_outputs_stay_what_they_were() -> None:
    torch.manual_seed(0)
    model = VideoMamba(VideoMambaConfig(**TINY, num_classes=3)).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    clip = torch.randn(1, 4, 3, 16, 16, generator=generator, dtype=torch.float64)
    expected = torch.tensor(PINNED, dtype=torch.float64)
    torch.testing.assert_close(model(clip)[0], expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("size", ["tiny", "small", "middle"])
def test_parameter_counts_and_names_are_the_published_ones(size: str, shared: Path) -> None:
    counts = {"tiny": (6_990_126, 7_033_744), "small": (25_481_646, 25_568_656), "middle": (73_745_454, 73_875_856)}
    layouts = json.loads((shared / "fixtures" / "videomamba_layouts.json").read_text())["layouts"]
    layout = layouts[f"videomamba_{size}"]["video_f8_res224_k400"]
    with torch.device("meta"):
        models = [create_model(f"videomamba_{size}", num_classes=classes) for classes in (174, 400)]
    assert tuple(model.num_parameters for model in models) == counts[size]
    assert {name: list(tensor.shape) for name, tensor in models[1].state_dict().items()} == layout


@pytest.mark.parametrize(("size", "expected"), [("tiny", 6_990_126), ("small", 25_481_646), ("middle", 73_745_454)])
def test_parameter_counts(size: str, expected: int) -> None:
    with torch.device("meta"):
        assert create_model(f"videomamba_{size}", num_classes=174).num_parameters == expected


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("how", ["center", "mean"])
def test_inflation_matches_published_kernels(frames: int, how: Any) -> None:
    values = load_file(GOLDEN / "videomamba_inflate.safetensors")
    expected = values[f"kernel{frames}_{how}/patch_embed.proj.weight"]
    torch.testing.assert_close(inflate(values["image_ckpt/patch_embed.proj.weight"], frames, how=how), expected)


def test_positions_are_interpolated_as_published() -> None:
    positions = torch.randn(1, 1 + 16, 8)
    resized = resize_grid_positions(positions, 1 + 36)
    assert torch.equal(resized[:, :1], positions[:, :1])
    torch.testing.assert_close(resize_grid_positions(torch.ones(1, 5, 2), 17), torch.ones(1, 17, 2))
    ramp = torch.arange(4.0).view(1, 4, 1)
    torch.testing.assert_close(resize_temporal_positions(ramp, 2), torch.tensor([[[0.5], [2.5]]]))


def _saved(tmp_path: Path, wrap: Any = lambda state: state, **options: Any) -> tuple[Path, VideoMamba]:
    torch.manual_seed(3)
    model = VideoMamba(VideoMambaConfig(**{**TINY, "num_classes": 5, **options}))
    torch.nn.init.normal_(model.temporal_pos_embedding)
    path = tmp_path / "published.pth"
    torch.save(wrap(dict(model.state_dict())), path)
    return path, model.eval()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"module": state},
        lambda state: {"module": {f"backbone.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"model": {f"encoder.{name}": tensor for name, tensor in state.items()}},
    ],
    ids=["plain", "model", "module", "backbone", "encoder"],
)
def test_published_wrappings_load_by_name(tmp_path: Path, wrap: Any) -> None:
    path, published = _saved(tmp_path, wrap)
    model = create_model("videomamba_middle", weights=path).eval()
    clip = torch.randn(1, 4, 3, 16, 16)
    assert torch.equal(model(clip), published(clip))
    assert model.load_report.missing == ()
    assert model.load_report.unexpected == ()
    assert model.preprocessing.mean == (0.485, 0.456, 0.406)
    assert model.preprocessing.num_frames == 4


def test_other_frames_classes_and_resolution_are_interpolated_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = _saved(tmp_path)
    caplog.set_level("INFO")
    model = create_model("videomamba_tiny", weights=path, num_classes=9, image_size=32, num_frames=6)
    assert model(torch.randn(1, 6, 3, 32, 32)).shape == (1, 9)
    report = model.load_report
    assert set(report.resized) == {"pos_embed", "temporal_pos_embedding"}
    assert report.missing == ("head.weight", "head.bias")
    assert set(report.unexpected) == {"head.weight", "head.bias"}
    text = str(report)
    assert text.removesuffix(f"; {report.notes[-1]}") in caplog.text
    assert report.notes[-1] == "sizes read from the weights: patch_size=8, width=16, depth=2"
    assert "pos_embed: 2 x 2 patches to 4 x 4, bicubic" in text
    assert mentions(text, "temporal_pos_embedding: 4", "6, linear")
    assert mentions(text, "head: 5", "checkpoint")


def test_image_checkpoint_is_inflated_and_reported(tmp_path: Path) -> None:
    def as_image(state: dict[str, Tensor]) -> dict[str, Tensor]:
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :, 0]
        del state["temporal_pos_embedding"]
        return state

    path, video = _saved(tmp_path, as_image)
    model = create_model("videomamba_tiny", weights=path, num_frames=4, tubelet_frames=2, inflation="mean")
    kernel = video.patch_embed.proj.weight
    torch.testing.assert_close(model.patch_embed.proj.weight, kernel.expand(-1, -1, 2, -1, -1) / 2)
    assert model.load_report.layout == "videomamba_image"
    assert model.load_report.missing == ("temporal_pos_embedding",)
    assert mentions(str(model.load_report), "kernel", "2")
    assert model.load_report.resized == ("patch_embed.proj.weight",)
    assert "temporal_pos_embedding" in str(model.load_report)
    assert model(torch.zeros(1, 4, 3, 16, 16)).shape == (1, 5)


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("how", ["center", "mean"])
def test_published_image_checkpoint_becomes_the_published_video_one(
    frames: int, how: str, shared: Path, tmp_path: Path
) -> None:
    values = load_file(shared / "fixtures" / "videomamba_inflate.safetensors")
    start = "inflate/image_ckpt/"
    image = {name.removeprefix(start): tensor for name, tensor in values.items() if name.startswith(start)}
    torch.save({"model": image}, tmp_path / "image.pth")
    model = create_model(
        "videomamba_tiny", weights=tmp_path / "image.pth", num_frames=6, tubelet_frames=frames, inflation=how
    )
    state = model.state_dict()
    kernel = values[f"inflate/kernel{frames}_{how}/patch_embed.proj.weight"]
    assert torch.equal(state.pop("patch_embed.proj.weight"), kernel)
    assert torch.count_nonzero(state.pop("temporal_pos_embedding")) == 0
    assert state.keys() == image.keys() - {"patch_embed.proj.weight"}
    assert all(torch.equal(tensor, image[name]) for name, tensor in state.items())


def test_masked_pretraining_extras_are_left_over_and_listed(tmp_path: Path) -> None:
    def as_pretrained(state: dict[str, Tensor]) -> dict[str, Tensor]:
        state["norm.weight"] = state.pop("norm_f.weight")
        state["clip_decoder.0.head.weight"] = torch.zeros(3, 16)
        return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}

    path, _ = _saved(tmp_path, as_pretrained)
    report = create_model("videomamba_tiny", weights=path, num_classes=2).load_report
    assert set(report.unexpected) == {"norm.weight", "clip_decoder.0.head.weight"}
    assert set(report.missing) == {"norm_f.weight", "head.weight", "head.bias"}


def test_save_and_from_pretrained_give_the_same(tmp_path: Path) -> None:
    model = create_model("videomamba_small", labels=["a", "b"], **TINY).eval()
    model.save_pretrained(tmp_path / "saved")
    again = from_pretrained(tmp_path / "saved")
    clip = torch.randn(2, 4, 3, 16, 16)
    assert torch.equal(again(clip), model(clip))
    assert "base" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    moved = create_model("videomamba_tiny", weights=tmp_path / "saved", labels=["a", "b"]).eval()
    assert torch.equal(moved(clip), model(clip))


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda state: {"vit.conv1.weight": torch.zeros(1)}, "VideoMamba: it lacks cls_token, pos_embed"),
        (
            lambda state: {name: t for name, t in state.items() if "_b" not in name},
            "layers.0.mixer.A_b_log",
        ),
        (
            lambda state: {name: t for name, t in state.items() if name != "layers.1.norm.weight"},
            "layers.1.norm.weight (1",
        ),
        (
            lambda state: {**state, "pos_embed": torch.zeros(1, 4, 16)},
            "[1, 8, 8]",
        ),
    ],
)
def test_other_checkpoints_are_refused(tmp_path: Path, wrap: Any, message: str) -> None:
    path, _ = _saved(tmp_path, wrap)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        create_model("videomamba_tiny", weights=path)


def test_a_checkpoint_of_another_named_size_is_refused(tmp_path: Path) -> None:
    path, _ = _saved(tmp_path, width=192, depth=24)
    for prefix in ("", "ssp_"):
        message = (
            f"is of the size of {prefix}videomamba_tiny (width 192, depth 24); {prefix}videomamba_middle has width 576 "
            f"and depth 32. Take {prefix}videomamba_tiny, or give weights of {prefix}videomamba_middle's size."
        )
        with pytest.raises(ConfigError, match=re.escape(message)):
            create_model(f"{prefix}videomamba_middle", weights=path)


@pytest.mark.parametrize("option", [{"width": 32}, {"depth": 3}, {"tubelet_frames": 2}, {"patch_size": 16}])
def test_options_that_contradict_the_weights_are_refused(tmp_path: Path, option: dict[str, int]) -> None:
    path, _ = _saved(tmp_path)
    name, value = next(iter(option.items()))
    with pytest.raises(ConfigError, match=f"{name}={value} contradicts .*, whose {name} is"):
        create_model("videomamba_tiny", weights=path, **option)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 5, 3, 16, 16), "positions"),
        ((1, 4, 3, 24, 24), "16 x 16"),
        ((4, 3, 16, 16), "batch"),
    ],
)
def test_other_clips_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(message)):
        VideoMamba(VideoMambaConfig(**TINY))(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 20}, "8. Try image_size=16"),
        ({"tubelet_frames": 3}, "tubelet_frames"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"depth": 0}, "depth"),
        ({"norm_eps": 0.0}, "norm_eps"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        VideoMambaConfig(**{**TINY, **options})


def test_preprocessing_of_other_frames_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"preprocessing.*8.*4"):
        VideoMamba(VideoMambaConfig(**TINY), preprocessing=Preprocessing(num_frames=8, size=16))


def test_frames_of_the_recipe_become_those_of_the_model() -> None:
    model = create_model(
        "videomamba_tiny", **{k: v for k, v in TINY.items() if k != "num_frames"}, preprocessing={"num_frames": 6}
    )
    assert model.config.num_frames == model.preprocessing.num_frames == 6
    assert model.temporal_pos_embedding.shape[1] == 6


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        model = VideoMamba(VideoMambaConfig(**TINY, num_classes=3, activation_checkpointing=again, drop_path=0.5))
        torch.manual_seed(1)
        model(torch.randn(2, 4, 3, 16, 16)).sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert torch.equal(*gradients)


def test_layer_norms_instead_of_rms_norms(tmp_path: Path) -> None:
    path, published = _saved(tmp_path, rms_norm=False)
    model = create_model("videomamba_tiny", weights=path).eval()
    clip = torch.randn(1, 4, 3, 16, 16)
    assert torch.equal(model(clip), published(clip))


def test_residual_stays_float32_in_a_half_precision_model() -> None:
    model = VideoMamba(VideoMambaConfig(**TINY, num_classes=3))
    clip = torch.randn(1, 4, 3, 16, 16)
    exact = model(clip)
    half = model.bfloat16()
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    half.blocks[0].register_forward_hook(lambda module, args, out: seen.append((out[0].dtype, out[1].dtype)))
    torch.testing.assert_close(half(clip.bfloat16()).float(), exact, atol=2e-2, rtol=2e-2)
    assert seen == [(torch.bfloat16, torch.float32)]


def test_every_pretrained_parameter_has_a_depth() -> None:
    model = VideoMamba(VideoMambaConfig(**TINY))
    depths = model.layer_depths()
    assert set(dict(model.named_parameters())) - set(depths) == {"head.weight", "head.bias"}
    assert depths["temporal_pos_embedding"] == 0
    assert depths["layers.1.mixer.A_b_log"] == 2
    assert depths["norm_f.weight"] == model.num_layers == 3


@pytest.mark.slow
def test_sixty_four_frames_of_196_patches_run() -> None:
    config = VideoMambaConfig(image_size=224, width=32, depth=1, num_frames=64, num_classes=2)
    with torch.no_grad():
        assert VideoMamba(config)(torch.zeros(1, 64, 3, 224, 224)).isfinite().all()


def test_cost_counts_both_directions() -> None:
    with torch.device("meta"):
        cost = count_cost(create_model("videomamba_tiny", num_classes=174))
    tokens, inner = 8 * 196 + 1, 384
    assert cost.macs.scan == 9 * 2 * 24 * tokens * inner * 16
    assert cost.macs.temporal == 2 * 24 * tokens * inner * 4
    assert cost.num_parameters == 6_990_126


def test_autocast_comes_close_to_float32_and_keeps_the_residual_wide() -> None:
    model = VideoMamba(VideoMambaConfig(**TINY, num_classes=3))
    clip = torch.randn(2, 4, 3, 16, 16)
    exact = model(clip)
    seen: list[torch.dtype] = []
    model.blocks[1].register_forward_hook(lambda module, args, out: seen.append(out[1].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(clip)
    torch.testing.assert_close(logits.float(), exact, atol=2e-2, rtol=2e-2)
    logits.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert seen == [torch.float32]


@pytest.mark.parametrize("size", ["tiny", "small", "middle"])
@pytest.mark.parametrize("kind", ["video_f8_res224_k400", "image_in1k_res224"])
def test_published_layouts_are_understood(size: str, kind: str, shared: Path, tmp_path: Path) -> None:
    layouts = json.loads((shared / "fixtures" / "videomamba_layouts.json").read_text())["layouts"]
    layout = layouts[f"videomamba_{size}"][kind]
    tensors = {name: torch.zeros(shape, device="meta") for name, shape in layout.items()}
    pretrained = VideoMamba.translate(Checkpoint(source="published.pth", file=Path("published.pth"), tensors=tensors))
    with torch.device("meta"):
        model = create_model(f"videomamba_{size}", num_classes=174)
    settings = {key: getattr(model.config, key) for key in pretrained.sizes}
    assert settings == pretrained.sizes
    report = model.load(pretrained, skip=("head.",))
    absent = {"head.weight", "head.bias"} | ({"temporal_pos_embedding"} if kind.startswith("image") else set())
    assert set(report.missing) == absent
    assert set(report.resized) == ({"patch_embed.proj.weight"} if kind.startswith("image") else set())
