from itertools import pairwise

import pytest
import torch
from torch import nn

from kinescan.errors import ConfigError
from kinescan.models.zoo import create_model
from kinescan.training.optim import OptimConfig, lr_ratio, make_optimizer, parameter_groups, set_lr, trainable_only


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(4, 2))
        self.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.A_log = nn.Parameter(torch.zeros(2, 3))
        self.D = nn.Parameter(torch.ones(2))
        self.head = nn.Linear(2, 2)


DEPTHS = {"positional_embedding": 0, "blocks.0.weight": 1, "blocks.0.bias": 1, "blocks.1.weight": 2, "blocks.1.bias": 2}


def _settings(model: nn.Module) -> dict[str, tuple[float, float]]:
    groups = parameter_groups(model, OptimConfig(layer_decay=0.5), layer_depths=DEPTHS, num_layers=3)
    return {name: (g["lr_scale"], g["weight_decay"]) for g in groups for name in g["param_names"]}


def test_parameter_groups_scale_by_depth_and_spare_norms_biases_and_embeddings() -> None:
    assert _settings(Backbone()) == {
        "positional_embedding": (0.125, 0.0),
        "blocks.0.weight": (0.25, 0.05),
        "blocks.0.bias": (0.25, 0.0),
        "blocks.1.weight": (0.5, 0.05),
        "blocks.1.bias": (0.5, 0.0),
        "A_log": (1.0, 0.0),
        "D": (1.0, 0.0),
        "head.weight": (1.0, 0.05),
        "head.bias": (1.0, 0.0),
    }


def test_parameter_groups_leave_out_frozen_parameters() -> None:
    model = Backbone()
    model.blocks.requires_grad_(False)
    assert not any(name.startswith("blocks") for name in _settings(model))


def test_parameter_groups_refuse_a_wholly_frozen_model() -> None:
    with pytest.raises(ConfigError, match=r"no parameter is trainable. Check train.trainable"):
        _settings(Backbone().requires_grad_(False))


def test_set_lr_keeps_each_group_s_scale() -> None:
    model = Backbone()
    config = OptimConfig(layer_decay=0.5)
    optimizer = make_optimizer(parameter_groups(model, config, layer_depths=DEPTHS, num_layers=3), config)
    set_lr(optimizer, 0.8)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1, 0.2, 0.4, 0.8}


def test_lr_ratio_warms_up_peaks_and_ends_at_the_minimum() -> None:
    ratios = [lr_ratio(step, num_steps=100, warmup_steps=25, min_ratio=0.1) for step in range(100)]
    assert ratios[0] == pytest.approx(1 / 25)
    assert ratios[24] == 1.0
    assert max(ratios) == 1.0
    assert ratios[99] == pytest.approx(0.1, abs=2e-3)
    assert all(a > b for a, b in pairwise(ratios[25:]))


def test_lr_ratio_uses_at_most_half_of_a_short_run_for_the_warm_up() -> None:
    assert [lr_ratio(step, num_steps=2, warmup_steps=50, min_ratio=0.0) for step in range(2)] == [1.0, 1.0]


def test_peak_lr_grows_with_the_batch() -> None:
    assert OptimConfig(lr=1e-3).peak_lr(512) == pytest.approx(2e-3)


def test_trainable_only_freezes_the_rest_and_undoes_it() -> None:
    model = Backbone()
    model.D.requires_grad_(False)
    with trainable_only(model, ("head.*", "D")):
        assert [name for name, p in model.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["D"]


def test_trainable_only_refuses_a_pattern_without_a_match() -> None:
    with (
        pytest.raises(ConfigError, match=r"train.trainable: 'haed.weight' matches no parameter. Did you mean 'head.w"),
        trainable_only(Backbone(), ("haed.weight",)),
    ):
        pass


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or more"),
        ({"layer_decay": 1.5}, r"layer_decay must lie in \(0, 1\], got 1.5; 1.0 switches it off"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\)"),
        ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\)"),
        ({"clip_norm": float("nan")}, "clip_norm must be 0 or more, got nan"),
    ],
)
def test_optim_config_refuses_values_out_of_range(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**values)  # type: ignore[arg-type]


def test_parameter_groups_of_a_real_model() -> None:
    model = create_model("pks4_vit_ti16", num_classes=2, depth=3, insert_after=2, width=24, heads=3, image_size=32)
    groups = parameter_groups(model, OptimConfig(), layer_depths=model.layer_depths(), num_layers=model.num_layers)
    names = [name for group in groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    found = {name: (group["lr_scale"], group["weight_decay"]) for group in groups for name in group["param_names"]}
    top = model.num_layers
    assert top == 4
    assert found["vit.conv1.weight"] == (pytest.approx(0.7**4), 0.05)
    assert found["vit.class_embedding"] == found["vit.positional_embedding"] == (pytest.approx(0.7**4), 0.0)
    for block in range(3):
        prefix, scale = f"vit.transformer.resblocks.{block}", pytest.approx(0.7 ** (top - block - 1))
        assert found[f"{prefix}.attn.in_proj_weight"] == (scale, 0.05)
        assert found[f"{prefix}.attn.in_proj_bias"] == found[f"{prefix}.ln_1.weight"] == (scale, 0.0)
    assert found["vit.proj"] == found["head.weight"] == (1.0, 0.05)
    new = [name for name in found if name.startswith(("scanner", "kinematic", "class_token_routes", "head"))]
    assert {found[name][0] for name in new} == {1.0}
    spared = [name for name in new if name.endswith((".A_log", ".D", ".bias")) or "norm" in name]
    assert len(spared) > 10
    assert {found[name][1] for name in spared} == {0.0}
