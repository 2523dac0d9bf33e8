"""The experiment on SSP: what it measures of the parts, and in which order it runs."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kinescan.models.zoo import create_model

SIZES: dict[str, Any] = {"image_size": 16, "patch_size": 8, "depth": 2, "width": 16, "num_frames": 4, "num_classes": 6}
SMALL: dict[str, Any] = {"inner_width": 8, "attention_width": 8, "attention_heads": 2}


@pytest.fixture
def grid(script: Any) -> ModuleType:
    module: ModuleType = script("ssp_grid")
    return module


@pytest.fixture
def clips() -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.randint(0, 256, (18, 4, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return pixels, torch.arange(6).repeat(3)


def _ssp() -> Any:
    torch.manual_seed(0)
    return create_model("ssp_videomamba_tiny", **SMALL, **SIZES)


def test_every_trained_parameter_of_ssp_belongs_to_one_part(grid: ModuleType) -> None:
    names = [name for name, parameter in _ssp().named_parameters() if parameter.requires_grad]
    for name in names:
        assert sum(name.startswith(beginnings) for beginnings in grid.PARTS.values()) == 1, name


def test_the_gradient_of_a_shut_gate_reaches_no_attention(grid: ModuleType, clips: Any) -> None:
    model = _ssp()
    found = grid.gradient_of_parts(model, clips)
    assert found["scale and bias of gathering"] > 0
    assert found["map of the gate"] > 0
    assert found["attention over frames"] == found["scales of importance"] == 0
    start = {name: parameter.clone() for name, parameter in model.named_parameters()}
    torch.nn.init.ones_(model.tuner.dynamic_scales[0])
    moved = grid.change_of_parts(model, start)
    assert {part for part, change in moved.items() if change} == {"scales of importance"}
    assert moved["scales of importance"] == pytest.approx(1)


def test_a_model_whose_parts_were_left_out_is_as_before(grid: ModuleType, clips: Any) -> None:
    model = _ssp()
    for parameter in model.tuner.parameters():
        torch.nn.init.normal_(parameter)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = grid.without_parts(model, clips)
    assert list(found) == ["as trained", "nothing added to patches", "gate shut"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_solved_head_tells_what_can_be_told(grid: ModuleType) -> None:
    torch.manual_seed(0)
    labels = torch.arange(3).repeat(20)
    inputs = torch.randn(60, 5) + 4 * torch.eye(5)[labels]
    head = grid.solved_head(inputs, labels)
    assert (head(inputs).argmax(1) == labels).float().mean() > 0.95
    assert head.weight.abs().max() < 20


def test_tuners_of_like_size_are_of_like_size(grid: ModuleType) -> None:
    sizes = {**grid.base.SIZES, "num_frames": grid.base.NUM_FRAMES, "num_classes": 6}
    trained = {}
    for name, (tuner, options) in grid.TUNERS.items():
        with torch.device("meta"):
            trained[name] = create_model(f"{tuner}_videomamba_tiny", **sizes, **options).num_trained
    for name in ("LoRA", "state offset", "Adapter", "ST-Adapter", "VPT, deep"):
        assert trained[name] == pytest.approx(trained["SSP"], rel=0.2), name


def test_rates_are_searched_alike_before_the_other_seeds_are_run(grid: ModuleType) -> None:
    words = ["--targets", "motions", "--tuners", "SSP", "LoRA", "--rates", "1e-3", "4e-3", "--seeds", "0", "1"]
    arguments, done, order = grid.parse(words), {"base": {"accuracy": {}}}, []
    while key := next(grid.jobs(done, arguments), None):
        done[key] = {"held_out": 0.9 if key == "tune|motions|SSP|0|0.004" else 0.5}
        order.append(key.removeprefix("tune|motions|"))
    assert order[:2] == ["slots|motions", "gradients|motions"]
    assert set(order[2:6]) == {"SSP|0|0.001", "SSP|0|0.004", "LoRA|0|0.001", "LoRA|0|0.004"}
    assert order[6:] == ["SSP|1|0.004", "LoRA|1|0.001"]
    with pytest.raises(SystemExit):
        grid.parse(["--targets", "real"])


def test_clips_are_rendered_once(grid: ModuleType, tmp_path: Path, clips: Any) -> None:
    calls = []

    def render() -> Any:
        calls.append(1)
        return clips

    for _ in range(2):
        pixels, labels = grid.base.kept(tmp_path / "clips.pt", render)
        assert torch.equal(pixels, clips[0])
        assert torch.equal(labels, clips[1])
    assert len(calls) == 1
