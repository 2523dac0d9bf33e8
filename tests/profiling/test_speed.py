import sys

import pytest
import torch

from kinescan.errors import ConfigError
from kinescan.models.zoo import create_model
from kinescan.profiling import speed
from kinescan.profiling.speed import measure_speed, peak_extra_bytes

TINY = {
    **{"image_size": 32, "patch_size": 8, "width": 32, "depth": 3, "heads": 2, "mlp_dim": 64, "embed_dim": 16},
    **{"insert_after": 2, "kinematic_width": 8, "num_classes": 5},
}


def test_measure_speed_tells_latency_throughput_and_parts():
    model = create_model("pks4_vit_ti16", **TINY).train()
    found = measure_speed(model, num_frames=2, num_clips=3, repeats=2)
    assert (found.device, found.num_clips) == ("cpu", 3)
    assert found.latency_seconds > 0
    assert found.views_per_second > 0
    assert {"stem", "scanner", "kinematic.correlation", "blocks after", "head"} <= set(found.part_seconds)
    assert all(seconds > 0 for seconds in found.part_seconds.values())
    assert model.training


def test_measure_speed_gives_time_to_the_part_that_takes_it(monkeypatch):
    model = create_model("pks4_vit_ti16", **TINY)
    ticks = iter(range(10_000))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: float(next(ticks)))
    found = measure_speed(model, num_frames=2, repeats=1)
    # The clock is read once at each change of parts, so every stretch takes one tick.
    assert found.latency_seconds == 1
    assert found.views_per_second == 1
    assert found.part_seconds["head"] == found.part_seconds["scanner"] == 1
    assert found.part_seconds["class_token_routes"] == 6


@pytest.mark.parametrize("arguments", [{"repeats": 0}, {"num_clips": 0}])
def test_measure_speed_refuses_nothing_to_do(arguments):
    with pytest.raises(ConfigError, match=r"num_clips.*1"):
        measure_speed(create_model("pks4_vit_ti16", **TINY), **arguments)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak and sets it back")
def test_peak_extra_bytes_sees_memory_that_is_gone_again():
    def hold(num_mebibytes):
        torch.ones(num_mebibytes * 2**18).sum()

    few, many = (peak_extra_bytes(lambda size=size: hold(size), torch.device("cpu")) for size in (1, 96))
    if few is None:
        pytest.skip("this system does not let a process set its peak back")
    assert 90 * 2**20 < many < 140 * 2**20
    assert few < 16 * 2**20


@pytest.mark.parametrize("warmups", [0, 1, 2])
def test_peak_extra_bytes_calls_as_often_as_asked(warmups):
    calls = []
    peak_extra_bytes(lambda: calls.append(1), torch.device("cpu"), warmups=warmups)
    assert len(calls) in (warmups, warmups + 1)  # where nobody tells, only the warm-ups


def test_peak_extra_bytes_is_unknown_where_nobody_tells(monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "CLEAR_REFS", tmp_path / "no folder" / "file")
    assert peak_extra_bytes(lambda: None, torch.device("cpu")) is None
    assert peak_extra_bytes(lambda: None, torch.device("meta")) is None
