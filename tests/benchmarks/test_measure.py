import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kinescan.profiling import speed


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
    with pytest.raises(SystemExit, match="benchmark"):
        getattr(script("measure"), name)(list)


def test_times_of_several_processes_are_the_median_of_their_medians_with_the_range(script: Any) -> None:
    measure = script("measure")
    times = [
        {
            name: measure.Timing(
                wall_seconds=2 * own, cpu_seconds=own, cpu_seconds_min=0.0, cpu_seconds_max=9.0, repetitions=3
            )
            for name, own in (("ours", ours), ("peer", peer))
        }
        for ours, peer in ((1.0, 4.0), (2.0, 4.0), (1.5, 9.0))
    ]
    merged = measure.over_processes([one["peer"] for one in times])
    assert (merged.cpu_seconds, merged.cpu_seconds_min, merged.cpu_seconds_max) == (4.0, 4.0, 9.0)
    assert (merged.wall_seconds, merged.repetitions, merged.processes) == (8.0, 3, 3)
    found = measure.ratios(times, ["peer"])
    assert found == {"": {"peer": 4.0}, "_lowest": {"peer": 2.0}, "_highest": {"peer": 6.0}}, "of ratios, not of times"


def test_processes_hand_over_what_they_found(script: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = script("measure")
    timing = measure.Timing(wall_seconds=1.0, cpu_seconds=1.0, cpu_seconds_min=1.0, cpu_seconds_max=2.0, repetitions=2)
    measure.write_found(tmp_path / "once.json", {"part": {"ours": timing}})
    (tmp_path / "once.py").write_text(
        "import shutil, sys\n"
        "shutil.copy('once.json', sys.argv[sys.argv.index('--process') + 1])\n"
        "assert sys.argv[1] == '--tracks=1'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "HERE", tmp_path)
    [first, second] = measure.in_processes("once.py", ["--tracks=1"], 2)
    assert first == second == {"part": {"ours": timing}}
    (tmp_path / "once.py").write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match="process 1 of 1 failed"):
        measure.in_processes("once.py", [], 1)


def test_a_result_names_no_folder_of_the_machine_that_made_it(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = script("measure")
    own, other = str(measure.HERE / "ops.py"), str(tmp_path / "videos")
    monkeypatch.setattr(sys, "argv", [own, "score", "--videos", other, f"--output={other}", "--lr", "1/2", "a/b"])
    file = measure.write_result("x", seed=0, n=1, settings={}, results={}, folder=tmp_path)
    command = json.loads(file.read_text())["command"]
    assert command == "python benchmarks/ops.py score --videos videos --output=videos --lr 1/2 a/b"


def test_committed_results_name_no_folder_of_a_machine(script: Any) -> None:
    files = sorted(script("measure").PUBLISHED.rglob("*.json"))
    assert files
    for file in files:
        command = json.loads(file.read_text(encoding="utf-8")).get("command", "")
        assert not [word for word in command.replace("=", " ").split() if Path(word).is_absolute()], file.name
