from typing import Any

import pytest
import torch

from kinescan.models.zoo import create_model
from kinescan.training import OptimConfig, TrainConfig
from kinescan.training.plan import activation_bytes, make_plan

TINY = {"image_size": 32, "depth": 3, "width": 24, "heads": 2, "mlp_dim": 32, "embed_dim": 8}


def _kept(model: torch.nn.Module, clip: torch.Tensor) -> int:
    """What a real forward pass keeps."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(clip)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pks4_vit_ti16", TINY),
        ("pks4_vit_ti16", {**TINY, "recompute": True}),
        ("videomamba_tiny", {"image_size": 32, "depth": 2, "width": 24}),
    ],
)
def test_activation_bytes_are_those_of_a_real_step(name: str, options: dict[str, Any]) -> None:
    model = create_model(name, num_classes=3, **options).eval()
    clip = torch.randn(2, 8, 3, 32, 32)
    assert activation_bytes(model, num_clips=2) == _kept(model, clip)
    assert activation_bytes(model.eval(), num_clips=1) > 0
    assert not any(module.training for module in model.modules())


def test_a_frozen_stem_and_recomputation_need_less_memory() -> None:
    with torch.device("meta"):
        plain = create_model("pks4_vit_b16", num_classes=174)
        again = create_model("pks4_vit_b16", num_classes=174, recompute=True)
    whole = activation_bytes(plain, num_clips=8)
    assert activation_bytes(again, num_clips=8) < 0.2 * whole
    for name in plain.stem_parameters():
        plain.get_parameter(name).requires_grad_(False)
    assert activation_bytes(plain, num_clips=8) < 0.6 * whole


def test_plan_counts_groups_steps_and_memory(noise_clips: Any) -> None:
    model = create_model("pks4_vit_ti16", num_classes=2, insert_after=2, **TINY)
    clips = noise_clips(num_batches=5, batch_size=4)
    train = TrainConfig(device="cpu", accumulate_batches=2, freeze_stem=True)
    optim = OptimConfig(lr=1e-3, lr_batch_size=8, epochs=3, layer_decay=0.5, ema_decay=0.99, lr_scales={"head.*": 2.0})
    plan = make_plan(model, clips, train=train, optim=optim, num_processes=2)
    assert (plan.clips_per_step, plan.steps_per_epoch, plan.num_epochs) == (16, 3, 3)
    assert plan.groups[0].names == ("head.weight",)
    assert plan.groups[0].lr == pytest.approx(2 * 1e-3 * 16 / 8)
    stem = sum(model.get_parameter(name).numel() for name in model.stem_parameters())
    assert plan.num_trained == plan.num_parameters - stem == sum(group.num_parameters for group in plan.groups)
    assert plan.memory.gradients == plan.memory.average == 4 * plan.num_trained == plan.memory.optimizer // 2
    assert plan.memory.weights >= 4 * plan.num_parameters
    assert plan.memory.total == sum((plan.memory.weights, 4 * plan.memory.gradients, plan.memory.activations))
    assert plan.seconds is not None
    assert plan.seconds_per_clip is not None
    assert plan.seconds == pytest.approx(plan.seconds_per_clip * 4 * 5 * 3)
    assert plan.flops > 0
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_plan_without_timing_needs_no_memory(noise_clips: Any) -> None:
    with torch.device("meta"):
        model = create_model("pks4_vit_l14", num_classes=400)
    plan = make_plan(model, noise_clips(batch_size=4), train=TrainConfig(device="cpu"), timed=False)
    assert (plan.seconds, plan.seconds_per_clip) == (None, None)
    assert plan.memory.activations > 2**30
