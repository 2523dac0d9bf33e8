from typing import Any

import pytest
import torch

from kinescan.models.zoo import create_model
from kinescan.profiling.cost import count_cost
from kinescan.profiling.training_cost import count_training_macs

SIZES: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 4, "mlp_dim": 64}
MAMBA: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "num_frames": 4}


def test_a_step_is_three_forward_passes_less_what_the_first_layer_passes_on() -> None:
    model = create_model("vit_ti16", num_classes=5, **SIZES)
    step, forward = count_training_macs(model, num_frames=4), count_cost(model, num_frames=4).macs
    patches = 4 * 16 * 32 * 3 * 8 * 8  # the pixels get no gradient
    assert step.products == 3 * forward.products - patches
    assert step.attention == 3.5 * forward.attention


def test_scan_correlation_and_filters_are_counted_in_both_passes() -> None:
    model = create_model("pks4_vit_ti16", num_classes=5, insert_after=1, window=3, kinematic_width=8, **SIZES)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step, forward = count_training_macs(model, num_frames=4), count_cost(model, num_frames=4).macs
    assert step.correlation == 3 * forward.correlation > 0
    assert step.scan >= 4 * forward.scan > 0
    assert 2 * forward.temporal < step.temporal <= 4 * forward.temporal
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("tuner", "most"), [("linear_probe", 1.02), ("lora", 2.9), ("full", 3.0)])
def test_what_is_frozen_gets_no_products_for_its_weights(tuner: str, most: float) -> None:
    model = create_model(f"{tuner}_videomamba_tiny", num_classes=5, **MAMBA)
    ratio = count_training_macs(model).products / count_cost(model).macs.products
    assert {"linear_probe": 1.0, "lora": 1.8, "full": 2.7}[tuner] < ratio < most
