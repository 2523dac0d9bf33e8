from itertools import pairwise

import pytest
import torch
from torch import nn

from kinescan.errors import ConfigError
from kinescan.models.classifier import VideoClassifier
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
    with pytest.raises(ConfigError, match=r"Check train.trainable"):
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


def test_trainable_only_keeps_frozen_names_and_a_stem_frozen() -> None:
    model = Backbone()
    with trainable_only(model, ("*",), frozen=("blocks.1.*", "A*"), stem={"positional_embedding", "D"}):
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["blocks.0.weight", "blocks.0.bias", "head.weight", "head.bias"]
    assert all(p.requires_grad for p in model.parameters())


def test_trainable_only_refuses_a_frozen_pattern_without_a_match() -> None:
    message = r"train.frozen: 'stem.\*' matches no parameter. Its parts: positional_embedding, A_log, D, blocks, head"
    with pytest.raises(ConfigError, match=message), trainable_only(Backbone(), ("*",), frozen=("stem.*",)):
        pass


def test_parameter_groups_take_factors_by_name_the_first_that_matches() -> None:
    model = Backbone()
    config = OptimConfig(layer_decay=0.5, lr_scales={"*.bias": 10.0, "blocks.*": 2.0})
    groups = parameter_groups(model, config, layer_depths=DEPTHS, num_layers=3)
    scales = {name: group["lr_scale"] for group in groups for name in group["param_names"]}
    assert (scales["blocks.0.weight"], scales["blocks.0.bias"]) == (0.5, 2.5)
    assert (scales["head.weight"], scales["head.bias"]) == (1.0, 10.0)
    assert sorted(scales) == sorted(name for name, _ in model.named_parameters())


def test_parameter_groups_refuse_a_factor_without_a_match() -> None:
    config = OptimConfig(lr_scales={"scanner.*": 2.0})
    with pytest.raises(ConfigError, match=r"optim.lr_scales: 'scanner.\*'"):
        parameter_groups(Backbone(), config, layer_depths=DEPTHS, num_layers=3)


def test_trainable_only_refuses_a_pattern_without_a_match() -> None:
    with (
        pytest.raises(ConfigError, match=r"train.trainable: 'haed.weight'.*'head.w"),
        trainable_only(Backbone(), ("haed.weight",)),
    ):
        pass


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.0}, "lr.*0.0"),
        ({"epochs": -1}, "epochs.*0.*-1"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or more"),
        ({"layer_decay": 1.5}, r"layer_decay.*0, 1\].*1.5; 1.0"),
        ({"label_smoothing": 1.0}, r"label_smoothing.*\[0, 1\)"),
        ({"betas": (0.9, 1.0)}, r"\[0, 1\)"),
        (
            {"lr_scales": {"head.*": 0.0}},
            r"lr_scales: 'head.\*'.*0.0",
        ),
        ({"ema_decay": 1.0}, r"ema_decay.*\[0, 1.*1.0"),
        ({"clip_norm": float("nan")}, "clip_norm"),
    ],
)
def test_optim_config_refuses_values_out_of_range(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**values)  # type: ignore[arg-type]


def _found(name: str, **options: object) -> tuple[dict[str, tuple[float, float]], VideoClassifier]:
    """Parameter -> learning-rate scale and weight decay, as the optimizer of a real model gets them."""
    with torch.device("meta"):
        model = create_model(name, num_classes=174, **options)
    config = OptimConfig(layer_decay=0.7)
    groups = parameter_groups(model, config, layer_depths=model.layer_depths(), num_layers=model.num_layers)
    optimizer = make_optimizer(groups, config)
    set_lr(optimizer, 1.0)
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    found = {name: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for name in g["param_names"]}
    return found, model


@pytest.mark.parametrize(("name", "depth"), [("pks4_vit_b16", 12), ("pks4_vit_l14", 24), ("vit_b16", 12)])
def test_layer_decay_reaches_every_parameter_of_a_vision_transformer(name: str, depth: int) -> None:
    found, model = _found(name)
    top = depth + 1
    assert model.num_layers == top
    assert found["vit.conv1.weight"] == (pytest.approx(0.7**top), 0.05)
    assert found["vit.class_embedding"] == found["vit.positional_embedding"] == (pytest.approx(0.7**top), 0.0)
    for block in range(depth):
        inside = {key: value for key, value in found.items() if key.startswith(f"vit.transformer.resblocks.{block}.")}
        assert len(inside) == 12
        assert list({scale for scale, _ in inside.values()}) == [pytest.approx(0.7 ** (depth - block))]
        for key, (_, decay) in inside.items():
            assert decay == (0.05 if key.endswith("weight") and "ln_" not in key else 0.0), key
    assert found["vit.proj"] == found["head.weight"] == (1.0, 0.05)
    new = {key: value for key, value in found.items() if not key.startswith("vit.")}
    assert {scale for scale, _ in new.values()} == {1.0}
    spared = [key for key in new if key.endswith((".A_log", ".D", ".bias")) or "norm" in key]
    assert {new[key][1] for key in spared} == {0.0}
    assert {new[key][1] for key in new.keys() - set(spared)} == {0.05}


@pytest.mark.parametrize(
    ("name", "depth"), [("videomamba_middle", 32), ("full_videomamba_small", 24), ("videomamba_tiny", 24)]
)
def test_layer_decay_reaches_every_parameter_of_a_videomamba(name: str, depth: int) -> None:
    found, model = _found(name)
    top = depth + 1
    assert model.num_layers == top
    for key in ("cls_token", "pos_embed", "temporal_pos_embedding", "patch_embed.proj.bias"):
        assert found[key] == (pytest.approx(0.7**top), 0.0)
    assert found["patch_embed.proj.weight"] == (pytest.approx(0.7**top), 0.05)
    for block in range(depth):
        inside = {key: value for key, value in found.items() if key.startswith(f"layers.{block}.")}
        assert len(inside) == 17
        assert list({scale for scale, _ in inside.values()}) == [pytest.approx(0.7 ** (depth - block))]
        for key, (_, decay) in inside.items():
            spared = key.endswith((".bias", "A_log", "A_b_log", ".D", ".D_b", "norm.weight"))
            assert decay == (0.0 if spared else 0.05), key
    assert found["norm_f.weight"] == (1.0, 0.0)
    assert found["head.weight"] == (1.0, 0.05)
    # In all: the embeddings, each block, and what is new or follows the blocks.
    assert len({round(scale, 12) for scale, _ in found.values()}) == depth + 2


def test_layer_decay_leaves_what_tunes_a_frozen_videomamba_at_the_full_rate() -> None:
    found, _ = _found("ssp_videomamba_middle")
    assert all(key.startswith(("tuner.", "head.", "norm_f.")) for key in found)
    assert {scale for scale, _ in found.values()} == {1.0}
