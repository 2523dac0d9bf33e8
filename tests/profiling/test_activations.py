import pytest
import torch

from kinescan.models.zoo import create_model
from kinescan.profiling.activations import activation_bytes, activation_bytes_by_part, kept_bytes

TINY = {
    **{"image_size": 32, "patch_size": 8, "width": 32, "depth": 3, "heads": 2, "mlp_dim": 64, "embed_dim": 16},
    **{"insert_after": 2, "kinematic_width": 8, "num_classes": 5},
}


SMALL = {"image_size": 32, "depth": 3, "width": 24, "heads": 2, "mlp_dim": 32, "embed_dim": 8}


def _kept(model, clip):
    """What a real forward pass keeps."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages = {}

    def keep(tensor):
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
        ("pks4_vit_ti16", SMALL),
        ("pks4_vit_ti16", {**SMALL, "activation_checkpointing": True}),
        ("videomamba_tiny", {"image_size": 32, "depth": 2, "width": 24}),
    ],
)
def test_activation_bytes_are_those_of_a_real_step(name, options):
    model = create_model(name, num_classes=3, **options).eval()
    clip = torch.randn(2, 8, 3, 32, 32)
    assert activation_bytes(model, num_clips=2) == _kept(model, clip)
    assert activation_bytes(model.eval(), num_clips=1) > 0
    assert not any(module.training for module in model.modules())


def test_autocast_on_a_gpu_keeps_more_in_float32():
    model = create_model("pks4_vit_ti16", num_classes=3, **SMALL)
    counts = {
        device: activation_bytes(model, num_clips=64, precision=torch.bfloat16, device=device)
        for device in ("cpu", "cuda")
    }
    full = activation_bytes(model, num_clips=64)
    assert counts["cpu"] < counts["cuda"] < full
    assert activation_bytes(model, num_clips=64, device="cuda") == full


def test_a_frozen_stem_and_activation_checkpointing_need_less_memory():
    with torch.device("meta"):
        plain = create_model("pks4_vit_b16", num_classes=174)
        again = create_model("pks4_vit_b16", num_classes=174, activation_checkpointing=True)
    whole = activation_bytes(plain, num_clips=8)
    assert activation_bytes(again, num_clips=8) < 0.2 * whole
    for name in plain.stem_parameters():
        plain.get_parameter(name).requires_grad_(False)
    assert activation_bytes(plain, num_clips=8) < 0.6 * whole


def test_activations_by_part_are_those_of_the_part_alone():
    model = create_model("pks4_vit_ti16", **TINY).train()
    found = activation_bytes_by_part(model, num_clips=2, num_frames=4)
    assert sum(found.values()) == activation_bytes(model, num_clips=2, num_frames=4)
    assert all(found[part] > 0 for part in ("stem", "kinematic.correlation", "scanner", "blocks after"))
    # Its weights are parameters: of a linear head only the input is kept.
    assert found["head"] == _kept(model.head, torch.randn(2, 16, requires_grad=True))


def test_activations_of_a_frozen_stem_are_none():
    model = create_model("pks4_vit_ti16", **TINY)
    whole = activation_bytes_by_part(model, num_clips=1, num_frames=4)
    for name in model.stem_parameters():
        model.get_parameter(name).requires_grad_(False)
    rest = activation_bytes_by_part(model, num_clips=1, num_frames=4)
    assert rest["stem"] == 0 < whole["stem"]
    assert rest["blocks after"] == whole["blocks after"]


@pytest.mark.parametrize("training", [True, False])
def test_activations_leave_the_model_in_its_mode(training):
    model = create_model("pks4_vit_ti16", **TINY).train(training)
    model.head.train(not training)
    activation_bytes(model, num_clips=1, num_frames=2)
    assert (model.vit.training, model.head.training) == (training, not training)


def test_kept_bytes_of_a_call_are_those_of_the_real_step():
    model = create_model("pks4_vit_ti16", **TINY).train()
    clip = torch.randn(2, 4, 3, 32, 32)
    own = (*model.parameters(), *model.buffers())
    found = kept_bytes(lambda: model(clip), without=own)
    assert found == activation_bytes(model, num_clips=2, num_frames=4) == _kept(model, clip)
    assert kept_bytes(lambda: model(clip)) > found
    with torch.no_grad():
        assert kept_bytes(lambda: model(clip)) == 0


def test_kept_bytes_count_shared_memory_once():
    x = torch.ones(6, requires_grad=True)
    assert kept_bytes(lambda: x[:3] * x[3:]) == 24
