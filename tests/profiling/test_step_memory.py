import pytest
import torch

from kinescan.models.zoo import create_model
from kinescan.profiling.step_memory import count_step_memory

TINY = {
    "image_size": 32,
    "patch_size": 8,
    "width": 32,
    "depth": 3,
    "heads": 2,
    "mlp_dim": 64,
    "embed_dim": 16,
    "insert_after": 2,
    "window": 5,
    "kinematic_width": 8,
    "num_classes": 5,
}
BATCH = {"num_clips": 2, "num_frames": 4, "image_size": 32}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_step_memory_on_no_memory_is_that_of_a_real_step(precision):
    model = create_model("pks4_vit_ti16", **TINY)
    fake = count_step_memory(model, **BATCH, precision=precision)
    real = count_step_memory(model, **BATCH, precision=precision, fake=False)
    assert (fake.trained, fake.standing) == (real.trained, real.standing)
    assert fake.kept == pytest.approx(real.kept, rel=0.02)
    assert fake.peak == pytest.approx(real.peak, rel=0.02)


def test_what_stands_is_weights_two_moments_their_steps_and_the_clips():
    model = create_model("vit_ti16", **{k: v for k, v in TINY.items() if k not in ("insert_after", "window")})
    memory = count_step_memory(model, **BATCH, precision=torch.float32)
    weights = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    steps = 4 * len(list(model.parameters()))
    targets = 2 * 8
    assert memory.standing == 4 * (3 * weights + 2 * 4 * 3 * 32 * 32) + steps + targets + buffers
    assert memory.trained == weights


def test_counting_leaves_the_model_as_it_was():
    model = create_model("pks4_vit_ti16", **TINY).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_step_memory(model, **BATCH)
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_frozen_encoder_needs_less():
    model = create_model("pks4_vit_ti16", **TINY)
    whole = count_step_memory(model, **BATCH)
    for parameter in model.vit.parameters():
        parameter.requires_grad_(False)
    frozen = count_step_memory(model, **BATCH)
    assert frozen.trained < whole.trained
    assert frozen.standing < whole.standing
    assert frozen.peak < whole.peak
