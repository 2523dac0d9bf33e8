from typing import Any

import pytest
import torch

from kinescan.errors import OutOfMemoryError
from kinescan.models.zoo import create_model
from kinescan.training import OptimConfig, TrainConfig
from kinescan.training.dry_run import make_plan

TINY = {"image_size": 32, "depth": 3, "width": 24, "heads": 2, "mlp_dim": 32, "embed_dim": 8}


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
    assert plan.memory.gradients == plan.memory.ema == 4 * plan.num_trained == plan.memory.optimizer // 2
    with pytest.warns(DeprecationWarning, match="ema"):
        assert plan.memory.average == plan.memory.ema
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


def test_a_timed_step_that_does_not_fit_is_an_error_of_ours(noise_clips: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.\nmore")

    model = create_model("pks4_vit_ti16", num_classes=2, insert_after=2, **TINY)
    monkeypatch.setattr(model, "to", full)
    with pytest.raises(OutOfMemoryError) as met:
        make_plan(model, noise_clips(batch_size=4), train=TrainConfig(device="cpu"))
    said = str(met.value)
    assert all(word in said for word in ("2.00 GiB", "1.00 GiB", "4 clips", "loader.batch_size", "accumulate_batches"))
