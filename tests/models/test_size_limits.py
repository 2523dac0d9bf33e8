"""Sizes that no model has: refused before memory is taken for them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kinescan.errors import CheckpointError, ConfigError, ShapeError
from kinescan.models.registry import MODELS
from kinescan.models.size_limits import LIMITS
from kinescan.models.zoo import create_model, from_pretrained
from kinescan.ops import local_correlation

TINY = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 16, "embed_dim": 8, "image_size": 16, "patch_size": 4}


@pytest.mark.parametrize("name", ["pks4_vit_ti16", "videomamba_tiny", "ssp_videomamba_tiny", "vpt_videomamba_tiny"])
def test_every_size_has_an_upper_limit(name: str) -> None:
    allowed = MODELS[name].model.config_class.__dataclass_fields__
    sizes = [key for key in LIMITS if key in allowed and allowed[key].type in (int, int | None)]
    assert len(sizes) >= 8
    for key in sizes:
        with pytest.raises(ConfigError, match=f"{key}.*{LIMITS[key]}, got {10**9}"):
            create_model(name, **{key: 10**9}) if key != "num_classes" else create_model(name, num_classes=10**9)


@pytest.mark.parametrize("window", [29, 999, 4097, 10**9 + 1])
def test_a_window_reaches_no_further_than_a_frame(window: int) -> None:
    with pytest.raises(ConfigError, match=r"window.*27.*14 x 14 patches"):
        create_model("pks4_vit_ti16", window=window)
    assert create_model("pks4_vit_ti16", window=15, **TINY).config.window == 15


def test_a_window_of_the_op_is_bounded_too() -> None:
    with pytest.raises(ShapeError, match=r"window.*255.*4097"):
        local_correlation(torch.randn(1, 2, 4, 3, 3), window=4097)


def test_more_patches_than_attention_can_take_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"makes 1048576.*16384"):
        create_model("pks4_vit_ti16", image_size=4096, patch_size=4)


def _saved(folder: Path, **changes: Any) -> Path:
    create_model("pks4_vit_ti16", num_classes=2, window=3, kinematic_width=8, **TINY).save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    content["config"] |= changes
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 16_384, "depth": 200, "mlp_dim": 131_072},
        {"depth": 256},
        {"mlp_dim": 131_072},
        {"image_size": 512},
        {"embed_dim": 65_536},
        {"state_size": 1024, "expand": 16},
        {"window": 7},
        {"num_registers": 1024},
    ],
)
def test_a_config_is_compared_with_its_weights_before_memory_is_taken(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _saved(tmp_path, **changes)
    made = torch.nn.Module.register_parameter

    def on_no_device(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        assert parameter is None or parameter.is_meta, "memory was taken"
        made(module, name, parameter)

    monkeypatch.setattr(torch.nn.Module, "register_parameter", on_no_device)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        from_pretrained(folder)
    with pytest.raises((CheckpointError, ConfigError), match=r"replaced|in the model|contradicts"):
        create_model("pks4_vit_ti16", weights=folder, num_classes=2)


@pytest.mark.parametrize("value", ["many", None, 1.5, [3], {"a": 1}])
def test_sizes_of_the_wrong_kind_are_errors(value: object, tmp_path: Path) -> None:
    folder = _saved(tmp_path, width=value)
    with pytest.raises(CheckpointError):
        from_pretrained(folder)
    with pytest.raises(CheckpointError):
        create_model("pks4_vit_ti16", weights=folder, num_classes=2)


@pytest.mark.parametrize(("key", "value"), [("config", []), ("preprocessing", 3), ("labels", "ab"), ("model", {})])
def test_parts_of_a_config_of_the_wrong_kind_are_errors(key: str, value: object, tmp_path: Path) -> None:
    folder = _saved(tmp_path)
    content = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=key):
        create_model("pks4_vit_ti16", weights=folder, num_classes=2)


def test_a_config_beside_a_single_tensor_is_refused(tmp_path: Path) -> None:
    folder = _saved(tmp_path)
    save_file({"vit.conv1.weight": torch.ones(16, 3, 4, 4)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="lacks"):
        create_model("pks4_vit_ti16", weights=folder, num_classes=2)


@pytest.mark.parametrize("name", ["pks4_vit_ti16", "videomamba_tiny"])
def test_clips_that_a_model_cannot_take_are_named(name: str) -> None:
    options = {"image_size": 16, "patch_size": 4, "depth": 2}
    model = create_model(name, num_classes=2, **options).eval()
    clip = torch.randn(1, 8, 3, 16, 16)
    for wrong, message in (
        (clip[:0], "at least 1 clip"),
        (clip.double(), "float64 was given, the model is float32"),
        (clip.half(), "float16 was given, the model is float32"),
        (clip.to("meta"), "is on meta, the model on cpu"),
    ):
        with pytest.raises(ShapeError, match=message):
            model(wrong)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(clip.bfloat16()).shape == model(clip).shape
        with pytest.raises(ShapeError, match="float64"):
            model(clip.double())
