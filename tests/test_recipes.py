from pathlib import Path

import pytest
import torch

from kinescan.config import RunConfig, load_recipe
from kinescan.models.registry import MODELS
from kinescan.models.zoo import create_model
from kinescan.runtime.recipe_files import packaged_recipes

RECIPES = sorted(packaged_recipes().values())
PAPER = [
    ("ssv2_pks4_b16_8f", 8, 7e-4, 20, 91_693_550, "8x2x3"),
    ("ssv2_pks4_b16_32f", 32, 7e-4, 20, 91_693_550, "32x1x3"),
    ("ssv2_pks4_l14_32f", 32, 1e-3, 15, 312_827_374, "32x1x3"),
    ("k400_pks4_b16_8f", 8, 7e-4, 20, None, "8x2x3"),
    ("k400_pks4_b16_32f", 32, 7e-4, 20, None, "32x1x3"),
    ("k400_pks4_l14_32f", 32, 1e-3, 15, None, "32x1x3"),
]

SSP = [
    ("hmdb51_ssp_m16_8f", 8, 3e-3, 10, "8x8x3"),
    ("ucf101_ssp_m16_8f", 8, 5e-3, 10, "8x4x3"),
    ("ssv2_ssp_m16_8f", 8, 2e-4, 7, "8x2x3"),
    ("breakfast_ssp_m16_32f", 32, 1e-3, 20, "32x8x3"),
]


def _load(name: str) -> RunConfig:
    return load_recipe(next(path for path in RECIPES if path.stem == name))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_read_and_says_what_it_is(path: Path) -> None:
    config = load_recipe(path)
    assert config.model.name in MODELS
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize(("name", "frames", "lr", "epochs", "parameters", "views"), PAPER)
def test_recipe_of_the_paper_has_its_numbers(
    name: str, frames: int, lr: float, epochs: int, parameters: int | None, views: str
) -> None:
    config = _load(name)
    assert config.preprocessing.num_frames == frames
    assert (config.optim.lr, config.optim.lr_batch_size, config.optim.epochs) == (lr, 256, epochs)
    assert (config.optim.weight_decay, config.optim.warmup_epochs, config.optim.layer_decay) == (0.05, 5.0, 0.70)
    assert (config.augment.mixup_alpha, config.augment.cutmix_alpha, config.augment.erase_rate) == (0.8, 1.0, 0.25)
    assert config.augment.flip_rate == (0.0 if name.startswith("ssv2") else 0.5)
    assert str(config.views()) == views
    if parameters is not None:
        with torch.device("meta"):
            model = create_model(config.model.name, num_classes=174, **config.model.options)
        assert model.num_parameters == parameters


def test_recipe_for_own_videos_wants_only_the_folder() -> None:
    config = _load("own_videos_cpu")
    assert config.data.train == ""
    assert config.model.weights == ""
    assert config.train.device == "cpu"


@pytest.mark.parametrize(("name", "frames", "lr", "epochs", "views"), SSP)
def test_recipe_of_state_space_prompts_has_the_paper_s_numbers(
    name: str, frames: int, lr: float, epochs: int, views: str
) -> None:
    config = _load(name)
    assert config.model.name == "ssp_videomamba_middle"
    assert config.model.weights == f"videomamba_m16_k400_mask_ft_f{frames}_res224.pth"
    assert (config.preprocessing.num_frames, config.preprocessing.sampling) == (frames, "segments")
    assert (config.optim.lr, config.optim.lr_batch_size, config.optim.epochs) == (lr, 256, epochs)
    assert (config.optim.weight_decay, config.optim.warmup_epochs, config.optim.layer_decay) == (0.05, 5.0, 0.8)
    assert config.augment.flip_rate == (0.0 if name.startswith("ssv2") else 0.5)
    assert str(config.views()) == views
    with torch.device("meta"):
        model = create_model(config.model.name, num_classes=174, num_frames=frames, **config.model.options)
    assert sum(parameter.numel() for parameter in model.tuner.parameters()) == 2_418_274


@pytest.mark.parametrize("name", ["events_cpu", "clip_events"])
def test_recipes_for_streams_see_the_same_moments_at_the_rates_of_cameras(name: str) -> None:
    rate = _load(name).preprocessing.frame_rate
    for camera in (12.5, 25.0, 50.0):
        assert camera / rate == round(camera / rate)
