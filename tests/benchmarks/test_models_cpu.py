from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

SMALL = {"image_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture
def models(script: Any) -> ModuleType:
    pytest.importorskip("transformers")
    return script("models_cpu")


def test_attention_of_timesformer_is_what_transformers_computes(models: ModuleType) -> None:
    assert 0 < models.attention_difference() < 1e-5


@pytest.mark.parametrize("peer", ["timesformer", "vivit", "videomae"])
def test_large_peers_have_the_tokens_of_l14(models: ModuleType, peer: str) -> None:
    model = models.build(f"{peer}_l14", 4, num_hidden_layers=1)
    assert model.config.hidden_size == 1024
    with torch.inference_mode():
        tokens = model.base_model(torch.randn(1, 4, 3, 224, 224)).last_hidden_state
    frames, classes = {"timesformer": (4, 1), "vivit": (2, 1), "videomae": (2, 0)}[peer]
    assert tokens.shape == (1, frames * 256 + classes, 1024)


@pytest.mark.parametrize("peer", ["timesformer", "vivit", "videomae"])
def test_peers_take_clips_and_train(models: ModuleType, peer: str) -> None:
    model, clip = models.build(peer, 4, **SMALL), torch.randn(2, 4, 3, 32, 32)
    assert models.forward_of(model, clip, "float32")().shape == (2, models.NUM_CLASSES)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    models.training_step_of(model, clip, "float32")()
    moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert sum(moved) > 0.8 * len(moved)


def test_bfloat16_is_the_dtype_of_the_logits(models: ModuleType) -> None:
    model, clip = models.build("videomae", 4, **SMALL), torch.randn(1, 4, 3, 32, 32)
    assert models.forward_of(model, clip, "bfloat16")().dtype == torch.bfloat16


def test_cells_have_names_of_their_own_and_what_does_not_fit_is_left_out(
    models: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = {str(cell): cell for cell in models.cells()}
    assert len(cells) == len(list(models.cells())) == 2 * 2 * 2 * len(models.FRAMES)
    monkeypatch.setattr(models.psutil, "virtual_memory", lambda: SimpleNamespace(available=20e9))
    assert models.obstacle(cells["forward, float32, 64 frames"]) is None
    assert models.obstacle(cells["training step, float32, 64 frames"]) is None
    assert "needs about 31 GB, 20 GB are free" in models.obstacle(cells["training step, L/14, float32, 32 frames"])
    monkeypatch.setattr(models.psutil, "virtual_memory", lambda: SimpleNamespace(available=4e9))
    assert "needs about 12 GB, 4 GB are free" in models.obstacle(cells["training step, float32, 8 frames"])


def test_results_are_curves_over_frames(models: ModuleType, script: Any) -> None:
    results: dict[str, Any] = {}
    for frames, seconds in ((8, 1.0), (16, 2.0), (32, 4.5)):
        cell = models.Cell(what="forward", dtype="float32", frames=frames, models=("pks4_vit_b16", "vivit"))
        timing = {
            name: script("measure").Timing(
                wall_seconds=1, cpu_seconds=cpu, cpu_seconds_min=cpu, cpu_seconds_max=cpu, repetitions=1
            )
            for name, cpu in (("pks4_vit_b16", seconds), ("vivit", 2 * seconds))
        }
        models.put(results, cell, {"times": timing, "peak_bytes": {"pks4_vit_b16": 2**20, "vivit": 2**21}})
    assert results["pks4_cpu_time_over"]["forward, float32"]["32 frames"] == {"vivit": 0.5}
    plain = script("json").loads(script("json").dumps(results, default=script("measure")._plain))
    curves = {(found.heading, found.quantity): found for found in script("findings").findings(plain)}
    assert curves["forward, float32", "cpu_seconds"].lines["pks4 vit b16"] == (1.0, 2.0, 4.5)
    assert curves["forward, float32: memory", "peak_bytes"].lines["vivit"] == (2**21,) * 3
