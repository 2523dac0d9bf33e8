from types import ModuleType
from typing import Any

import pytest
import torch
from tests.mentions import mentions


@pytest.fixture
def models(script: Any) -> ModuleType:
    pytest.importorskip("transformers")
    module: ModuleType = script("models_gpu")
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_refuses_to_time_without_a_gpu(models: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        models.parse([])
    assert "CUDA device. --dry-run" in capsys.readouterr().err


def test_refuses_few_repetitions(models: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        models.parse(["--repetitions", "5"])
    assert mentions(capsys.readouterr().err, "--repetitions", "20", "5")


def test_cells_are_forward_and_step_of_both_sizes_at_all_frames(models: ModuleType) -> None:
    names = [str(cell) for _, cell in models.cells([8, 16, 32, 64])]
    assert len(set(names)) == 16
    assert names[0] == "forward, B/16, bfloat16, 8 frames"
    assert names[-1] == "training step, L/14, bfloat16, 64 frames"


@pytest.mark.parametrize("what", ["forward", "training step"])
def test_models_are_timed_in_turn(models: ModuleType, what: str) -> None:
    cell = models.Cell(what=what, dtype="bfloat16", frames=2, models=("videomae", "timesformer"))
    found = models.measure_cell(cell, 1, 2, torch.device("cpu"), models.TINY)
    assert set(found["milliseconds"]) == {"ours", "timesformer"}
    assert "left_out" not in found


def test_a_model_that_does_not_fit_is_named(models: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    make = models.run_of

    def run_of(cell: Any, name: str, clip: torch.Tensor, sizes: dict[str, int]) -> Any:
        if name == "timesformer":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore words.")
        return make(cell, name, clip, sizes)

    monkeypatch.setattr(models, "run_of", run_of)
    cell = models.Cell(what="forward", dtype="bfloat16", frames=2, models=("videomae", "timesformer"))
    found = models.measure_cell(cell, 1, 1, torch.device("cpu"), models.TINY)
    assert found["left_out"] == {"timesformer": "CUDA out of memory. Tried to allocate 2 GiB."}
    assert list(found["milliseconds"]) == ["ours"]
