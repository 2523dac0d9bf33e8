import sys
from typing import Any

import pytest
import torch

from kinescan.evaluation import speed


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak and sets it back")
def test_first_call_times_one_call_and_tells_its_peak(script: Any) -> None:
    calls = []

    def hold() -> torch.Tensor:
        calls.append(torch.ones(64 * 2**18).sum())
        return calls[-1]

    if speed.peak_extra_bytes(hold, torch.device("cpu")) is None:
        pytest.skip("this system does not let a process set its peak back")
    calls.clear()
    timing, peak = script("measure").first_call(hold)
    assert len(calls) == timing.repetitions == 1
    assert timing.wall_seconds > 0
    assert timing.cpu_seconds == timing.cpu_seconds_min == timing.cpu_seconds_max
    assert 60 * 2**20 < peak < 96 * 2**20


@pytest.mark.parametrize("name", ["first_call", "peak_extra_bytes"])
def test_a_system_that_does_not_tell_ends_the_benchmark(
    name: str, script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(speed, "CLEAR_REFS", tmp_path / "no folder" / "file")
    with pytest.raises(SystemExit, match="does not tell a process its peak memory: run the benchmark on Linux"):
        getattr(script("measure"), name)(list)
