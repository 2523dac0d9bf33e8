"""How compute to equal accuracy is read off curves, and what is run next."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kinescan.models.zoo import create_model


@pytest.fixture
def compute(script: Any) -> ModuleType:
    pytest.importorskip("transformers")
    module: ModuleType = script("training_compute")
    return module


def _points(*tests: float, flops: float = 1.0) -> list[dict[str, Any]]:
    """One epoch after the other, each of `flops` and of twice as many seconds."""
    return [
        {"clips": i, "flops": i * flops, "cpu_seconds": 2 * i * flops, "held_out": test, "test": test}
        for i, test in enumerate(tests)
    ]


def test_cost_is_linear_within_the_epoch_that_first_reaches_the_accuracy(compute: ModuleType) -> None:
    points = _points(0.2, 0.4, 0.3, 0.8, 0.6)
    assert compute.cost_of(points, 0.3, "flops") == pytest.approx(0.5)
    assert compute.cost_of(points, 0.55, "flops") == pytest.approx(2.5)
    assert compute.cost_of(points, 0.55, "cpu_seconds") == pytest.approx(5)
    assert compute.cost_of(points, 0.8, "flops") == 3
    assert compute.cost_of(points, 0.81, "flops") is None
    assert compute.cost_of(points, 0.1, "flops") == 0


def test_ratios_are_those_at_the_best_accuracy_of_the_other_row(compute: ModuleType) -> None:
    runs = {
        "PKS4": {0: _points(0.2, 0.6, 0.9), 1: _points(0.2, 0.4, 0.9)},
        "frame averaging": {0: _points(0.2, 0.99, 0.99), 1: _points(0.2, 0.99, 0.99)},
        "TSM": {0: _points(0.2, 0.4, 0.6, flops=2.0), 1: _points(0.2, 0.3, 0.4, flops=2.0)},
        "TimeSformer": {0: _points(0.2, 0.5, 0.3, flops=4.0), 1: _points(0.2, 0.3, 0.95, flops=4.0)},
        "VideoMamba": {0: _points(0.2, 0.9, 0.9, flops=20.0)},
    }
    found = compute.at_equal_accuracy(runs)
    assert "frame averaging" not in found
    assert found["TSM"]["flops_ratio"] == {
        "mean": pytest.approx(0.25),
        "lowest": 0.25,
        "highest": 0.25,
        "not_reached": 0,
    }
    assert [one["peer"] for one in found["best_peer"]["each"]] == ["TSM", "TimeSformer"]
    assert found["best_peer"]["flops_ratio"]["not_reached"] == 1
    assert found["VideoMamba"]["seeds"] == 1
    assert found["VideoMamba"]["cpu_seconds_ratio"]["mean"] == pytest.approx(2 / 20)


def test_all_rates_of_the_first_seed_go_before_the_other_seeds_which_take_the_best(compute: ModuleType) -> None:
    done: dict[str, Any] = {}
    order = []
    while key := next(compute.jobs(done, ["PKS4", "TSM"], (0, 1), (1e-3, 4e-3)), None):
        held_out = 0.9 if key in ("PKS4|0|0.004", "TSM|0|0.001") else 0.5
        done[key] = {
            "points": _points(0.2, held_out),
            "parameters": 1,
            "trained": 1,
            "training_gflops_per_clip": 1.0,
        }
        order.append(key)
    assert order[:4] == ["PKS4|0|0.001", "TSM|0|0.001", "PKS4|0|0.004", "TSM|0|0.004"]
    assert order[4:] == ["PKS4|1|0.004", "TSM|1|0.001"]
    summary = compute.summarise(done)
    assert (summary["rows"]["PKS4"]["rate"], summary["rows"]["PKS4"]["seeds"]) == (0.004, 2)
    assert summary["rows"]["TSM"]["rates_on_held_out"] == {"0.001": 0.9, "0.004": 0.5}
    assert summary["pks4_over"]["TSM"]["flops_ratio"]["mean"] == pytest.approx(1)


def test_rows_are_of_like_size_and_their_twins_show_the_same_frames(compute: ModuleType, tmp_path: Path) -> None:
    pixels, labels = compute.render("train", 1)
    assert labels.tolist() == list(range(2 * len(compute.PAIRS)))
    assert all((pixels[2 * k].flip(0) == pixels[2 * k + 1]).all() for k in range(len(compute.PAIRS)))
    mamba = create_model("videomamba_tiny", num_classes=4, num_frames=8, **compute.MAMBA_SIZES)
    sizes = {"image_size": 32, "patch_size": 8, "width": 64, "depth": 4, "heads": 4, "mlp_dim": 256, "embed_dim": 64}
    vit = create_model("vit_ti16", num_classes=4, **sizes)
    assert mamba.num_parameters == pytest.approx(vit.num_parameters, rel=0.1)


def test_the_plot_names_every_row(compute: ModuleType, script: Any, tmp_path: Path) -> None:
    curves = {"PKS4": {"0": _points(0.2, 0.6), "1": _points(0.2, 0.7)}, "TSM": {"0": _points(0.2, 0.4)}}
    script("training_compute_plot").write(curves, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert all(row in text for row in curves)
    script("training_compute_plot").write(curves, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text(encoding="utf-8") == text
