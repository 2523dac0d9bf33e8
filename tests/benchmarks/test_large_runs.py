import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def large(script: Any) -> ModuleType:
    module: ModuleType = script("large_runs")
    return module


def _costs(large: ModuleType) -> Any:
    return large.Costs(
        decode_seconds=0.06,
        frame_seconds=0.001,
        augment_seconds={8: 0.01},
        file_bytes_per_second=50_000,
        packed_fraction=0.1,
        checkpoint_bytes=1200,
        checkpoint_waited=2.0,
        checkpoint_written=30.0,
    )


def _row(large: ModuleType, seconds: float = 0.1, **given: float) -> dict[str, Any]:
    config = SimpleNamespace(
        preprocessing=SimpleNamespace(num_frames=8, size=100),
        optim=SimpleNamespace(epochs=10),
        model=SimpleNamespace(name="pks4_vit_b16"),
    )
    data = large.DataSet(name="made", train_videos=36_000, mean_seconds=5.0, source="")
    assumed = large.Assumptions(**{"cores_per_gpu": 4, "storage_bytes_per_second": 1e9, **given})
    return large.work_out(data, 5e12, 200, config, 8, _costs(large), assumed, (seconds, "assumed"))


def test_a_row_by_hand(large: ModuleType) -> None:
    row = _row(large)
    assert row["clips_per_second"] == pytest.approx(80)
    assert row["core_seconds_per_clip"] == pytest.approx(0.5 * 0.06 + 8 * 0.001 + 0.01)
    assert row["cores_per_gpu"] == pytest.approx(0.48)
    assert row["storage_bytes_per_second"] == pytest.approx(80 * 250_000)
    assert row["storage_bytes_per_second_at_128_pixels"] == pytest.approx(80 * 25_000)
    assert row["bytes_per_second_to_a_gpu"] == pytest.approx(8 * 3 * 100**2 * 10)
    assert row["training_exaflops"] == pytest.approx(5e12 * 360_000 / 1e18)
    assert row["checkpoint_bytes"] == 2400
    assert row["checkpoint_on_disk_seconds"] == pytest.approx(60)
    assert row["hours_by_gpus"] == row["hours"] == pytest.approx((360_000 / 80 + 10 * 4) / 3600)
    assert row["limited_by"] == "GPUs"


@pytest.mark.parametrize(
    ("given", "piece"),
    [({}, "GPUs"), ({"cores_per_gpu": 0.1}, "cores"), ({"storage_bytes_per_second": 1e6}, "storage")],
)
def test_what_is_short_first_is_bought_first(given: dict[str, float], piece: str, large: ModuleType) -> None:
    row = _row(large, **given)
    assert row["limited_by"] == piece
    assert row["hours"] >= row["hours_by_gpus"]
    [line] = large.advice([row])
    assert line.split(": ")[1].startswith(piece)


def test_the_gpu_check_is_believed_before_what_is_assumed(large: ModuleType) -> None:
    given = large.Assumptions(peak_flops=100.0, utilisation=0.5)
    checked = {
        "steps": {
            "pks4_vit_b16, 8 frames": {"seconds_per_clip": 7.0, "flops_per_second": 20.0},
            "pks4_vit_b16, 32 frames": {"seconds_per_clip": 9.0, "flops_per_second": 10.0},
            "pks4_vit_l14, 8 frames": {"left_out": "does not fit"},
        }
    }
    assert large.step_of_clip("pks4_vit_b16", 8, 1000.0, None, given)[0] == pytest.approx(20.0)
    assert large.step_of_clip("pks4_vit_b16", 8, 1000.0, checked, given)[0] == 7.0
    assert large.step_of_clip("pks4_vit_b16", 16, 1000.0, checked, given)[0] == pytest.approx(100.0)
    assert large.step_of_clip("pks4_vit_l14", 8, 1000.0, checked, given)[0] == pytest.approx(20.0)


def test_a_rehearsal_is_no_measurement(large: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "check.json"
    part = {"name": "speed of PKS4", "status": "passed", "numbers": {"steps": {}}}
    path.write_text(json.dumps({"rehearsal": True, "device": "cpu", "parts": [part]}))
    with pytest.raises(SystemExit):
        large.speed_of_check(path)
    path.write_text(json.dumps({"rehearsal": False, "device": "H", "parts": [{**part, "status": "failed"}]}))
    with pytest.raises(SystemExit):
        large.speed_of_check(path)
    path.write_text(json.dumps({"rehearsal": False, "device": "H", "parts": [part]}))
    assert large.speed_of_check(path)["device"] == "H"


def test_the_page_says_what_the_result_says(large: ModuleType) -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "large_runs.json").read_text())
    page = (ROOT / "docs" / "large_runs.md").read_text()
    assert page == large.page_of(result)
    rows = result["results"]["rows"]
    assert {(row["data"], row["gpus"]) for row in rows} == {
        ("Something-Something V2", 8),
        ("Something-Something V2", 64),
        ("Kinetics-700", 64),
    }
    assert "was not measured" in page
