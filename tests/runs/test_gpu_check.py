"""The check of a GPU: its parts rehearsed in Triton's interpreter, and what watches them with parts that go wrong."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kinescan.errors import BackendError, ConfigError
from kinescan.profiling.environment import describe_environment
from kinescan.runs import doctor, gpu_check
from kinescan.runs.gpu_parts import PARTS, Outcome, Part

ROOT = Path(__file__).resolve().parents[2]
GPU = "Made-up GPU 9000"

REHEARSAL = """
import json
import sys

import torch

sys.path.insert(0, {ops!r})
from interpreter import keep_truth_values

keep_truth_values()
torch.set_num_threads(1)
from kinescan.runs.gpu_parts import PARTS, Target, run_part

target = Target(device=torch.device("cpu"), small=True)
found = {{"healthy": {{name: run_part(name, target) for name in PARTS}}}}

from kinescan.ops.attention_mass import triton as attention
from kinescan.ops.local_correlation import triton as correlation
from kinescan.ops.selective_scan import triton as scan

backward = scan.scan_backward


def wrong_gradient_of_B(*inputs):
    gradients = list(backward(*inputs))
    gradients[3] = gradients[3] * 1.01
    return tuple(gradients)


def out_of_resource(*inputs):
    raise RuntimeError("out of resource: shared memory\\nand more lines")


scan.scan_backward = wrong_gradient_of_B
correlation.correlate = out_of_resource
measured = attention.attention_mass
attention.attention_mass = lambda *inputs: (measured(*inputs)[0], measured(*inputs)[1] * float("nan"))
found["stubs"] = {{name: run_part(name, target) for name in PARTS if name.startswith("parity")}}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def rehearsed() -> dict[str, Any]:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    done = subprocess.run(
        [sys.executable, "-c", REHEARSAL.format(ops=str(ROOT / "tests" / "ops"))],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_part_passes_in_a_rehearsal(rehearsed: dict[str, Any]) -> None:
    said = rehearsed["healthy"]
    assert {name: part["problems"] for name, part in said.items() if part["problems"]} == {}
    left_out = [name for name, part in said.items() if part["status"] == "left out"]
    assert left_out == ["training in fp16"]  # which CPUs have not


def test_parity_covers_outputs_states_and_every_gradient(rehearsed: dict[str, Any]) -> None:
    found = rehearsed["healthy"]["parity of selective_scan"]["numbers"]["differences"]
    inputs = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "state")
    for dtype in ("float32", "bfloat16", "float16"):
        results = {each["result"] for each in found if each["case"].endswith(dtype)}
        assert results == {"y", "last state", *(f"gradient of {name}" for name in inputs)}
    found = rehearsed["healthy"]["parity of local_correlation"]["numbers"]["differences"]
    assert {each["result"] for each in found} == {"maps", "gradient of the features"}
    found = rehearsed["healthy"]["parity of attention_mass"]["numbers"]["differences"]
    assert {each["result"] for each in found} == {"output", "scores"}


def test_memory_counted_is_memory_measured(rehearsed: dict[str, Any]) -> None:
    assert rehearsed["healthy"]["memory of a training step"]["numbers"]["measured_over_counted"] == pytest.approx(1.0)


def test_wrong_kernels_are_found_and_named(rehearsed: dict[str, Any]) -> None:
    said = rehearsed["stubs"]
    assert {part["status"] for part in said.values()} == {"failed"}
    # 1 % is more than float32 may be off, and less than half precision may.
    assert all("gradient of B" in line and "float32" in line for line in said["parity of selective_scan"]["problems"])
    correlation = said["parity of local_correlation"]["problems"]
    assert len(correlation) == 4  # one case does not end the others
    assert all("out of resource" in line and "more lines" not in line for line in correlation)
    assert all("scores" in line and "nan" in line for line in said["parity of attention_mass"]["problems"])


STUB = """
import json, os, subprocess, sys, time
name, device, size, path = sys.argv[1:]
if name == "hangs":
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    open(os.environ["STUB_PID"], "w").write(str(child.pid))
    time.sleep(60)
if name == "aborts":
    print("CUDA error: an illegal memory access", file=sys.stderr, flush=True)
    os.abort()
if name == "exits":
    sys.exit(3)
if name == "writes nonsense":
    open(path, "w").write("{")
    sys.exit(0)
outcome = {"status": "passed", "numbers": {"device": device, "size": size}, "problems": [], "notes": []}
if name == "is wrong":
    outcome |= {"status": "failed", "problems": ["y differs"]}
outcome["numbers"]["interpreted"] = os.environ.get("TRITON_INTERPRET")
open(path, "w").write(json.dumps(outcome))
"""


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Parts that go wrong in every way, on a machine that seems to have a GPU; gives the folder of states."""
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)

    def part(*, limit_seconds: float = 20, after: tuple[str, ...] = ()) -> Part:
        return Part(run=lambda target: Outcome(numbers={}), limit_seconds=limit_seconds, after=after)

    parts = {
        "hangs": part(limit_seconds=1.5),
        "aborts": part(),
        "exits": part(),
        "writes nonsense": part(),
        "is wrong": part(),
        "builds on it": part(after=("is wrong",)),
        "is fine": part(),
    }
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    monkeypatch.setattr(gpu_check, "CHILD", (sys.executable, "-S", str(stub)))
    monkeypatch.setenv("STUB_PID", str(tmp_path / "pid"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    here = replace(describe_environment(), accelerators=(GPU,))
    monkeypatch.setattr(gpu_check, "describe_environment", lambda: here)
    return tmp_path


def test_a_part_that_goes_wrong_never_ends_the_others(watched: Path) -> None:
    check = gpu_check.check_gpu()
    assert {part.name: part.status for part in check.parts} == {
        "hangs": "timed out",
        "aborts": "failed",
        "exits": "failed",
        "writes nonsense": "failed",
        "is wrong": "failed",
        "builds on it": "left out",
        "is fine": "passed",
    }
    by_name = {part.name: part for part in check.parts}
    [aborted] = by_name["aborts"].problems
    assert "SIGABRT" in aborted
    assert "illegal memory access" in aborted
    assert "3" in by_name["exits"].problems[0]
    assert by_name["is wrong"].problems == ["y differs"]
    assert by_name["is fine"].numbers == {"device": "cuda", "size": "full", "interpreted": None}
    assert len(check.problems) == 5
    # What a part started is ended with it.
    pid = int((watched / "pid").read_text())
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.1)
    return True


def test_the_result_says_where_and_when(watched: Path) -> None:
    gpu_check.check_gpu(parts=["is fine"])
    said = json.loads((watched / "state" / "kinescan" / "gpu_check.json").read_text())
    assert (said["device"], said["rehearsal"], said["is_complete"]) == (GPU, False, True)
    assert said["environment"]["packages"]["torch"] == torch.__version__
    assert {"kinescan", "commit", "cpu", "memory_gib"} <= set(said["environment"])
    assert said["date"].endswith("+00:00")


def test_doctor_reads_what_passed(watched: Path) -> None:
    gpu_check.check_gpu(parts=["is fine"])
    last = gpu_check.last_gpu_check()
    assert (last.status, last.problems, last.changed) == ("passed", (), ())
    assert GPU in last.note


def test_doctor_tells_what_failed_and_is_not_well(watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_check.check_gpu(parts=["is wrong", "builds on it", "is fine"])
    last = gpu_check.last_gpu_check()
    assert (last.status, last.problems) == ("failed", ("is wrong: y differs",))
    monkeypatch.undo()
    monkeypatch.setenv("XDG_STATE_HOME", str(watched / "state"))
    # On another device it is told, and nothing to repair.
    last = gpu_check.last_gpu_check()
    assert any(change.startswith("device") and GPU in change for change in last.changed)
    assert not any("y differs" in problem for problem in doctor.diagnose().problems)
    monkeypatch.setattr(doctor, "last_gpu_check", lambda: replace(last, changed=()))
    assert any("y differs" in problem for problem in doctor.diagnose().problems)


def test_another_version_is_told(watched: Path) -> None:
    gpu_check.check_gpu(parts=["is fine"])
    path = gpu_check.result_path()
    said = json.loads(path.read_text())
    said["environment"]["packages"]["torch"] = "1.0"
    said["triton"] = "0.1"
    path.write_text(json.dumps(said))
    assert [change.split(":")[0] for change in gpu_check.last_gpu_check().changed] == ["torch", "triton"]


def test_a_check_that_was_stopped_is_incomplete(watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = gpu_check._run

    def stopped_at_the_second(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "exits":
            raise KeyboardInterrupt
        return run(name, *arguments, **more)

    monkeypatch.setattr(gpu_check, "_run", stopped_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        gpu_check.check_gpu(parts=["is fine", "exits"])
    last = gpu_check.last_gpu_check()
    assert (last.status, last.problems) == ("incomplete", ())


def test_the_whole_check_ends_in_time(watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "TOTAL_SECONDS", 0.5)
    check = gpu_check.check_gpu(parts=["is fine"])
    assert [part.status for part in check.parts] == ["timed out"]


def test_limits_leave_time_for_every_part_but_two_that_hang() -> None:
    limits = [part.limit_seconds for part in PARTS.values()]
    assert max(limits) <= 150
    assert gpu_check.TOTAL_SECONDS < 600
    assert all(set(part.after) <= set(PARTS) for part in PARTS.values())


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format": 2}', '{"format": 1, "parts": 3}', '{"format": 1, "parts": [{"name": "a"}]}'],
)
def test_a_damaged_result_is_told(text: str, watched: Path) -> None:
    path = gpu_check.result_path()
    path.parent.mkdir(parents=True)
    path.write_text(text)
    last = gpu_check.last_gpu_check()
    assert last.status == "unreadable"
    assert str(path) in last.note


def test_a_rehearsal_is_kept_apart_and_is_none_of_a_gpu(watched: Path) -> None:
    check = gpu_check.check_gpu("cpu", parts=["is fine"])
    assert check.rehearsal
    assert check.parts[0].numbers == {"device": "cpu", "size": "small", "interpreted": "1"}
    last = gpu_check.last_gpu_check()
    assert last.status == "not run"
    assert str(gpu_check.result_path(rehearsal=True)) in last.note


def test_without_a_gpu_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for device in ("auto", "cuda"):
        with pytest.raises(BackendError):
            gpu_check.check_gpu(device)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("given", [{"device": "cuda:1"}, {"device": "gpu"}, {"device": "cpu", "parts": ["fast"]}])
def test_unknown_devices_and_parts_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        gpu_check.check_gpu(**given)


def test_a_place_that_cannot_be_written_is_found_first(watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (watched / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(watched / "file"))
    monkeypatch.setattr(gpu_check, "_run", lambda *_, **__: pytest.fail("a part ran"))
    with pytest.raises(ConfigError) as raised:
        gpu_check.check_gpu()
    assert "XDG_STATE_HOME" in str(raised.value)


def test_a_relative_state_folder_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "here")
    assert gpu_check.result_path() == Path.home() / ".local" / "state" / "kinescan" / "gpu_check.json"
