import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kinescan.errors import BackendError
from kinescan.runs import doctor, gpu_check


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine's user has checked is not part of a test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_gpu_check_without_a_gpu_fails(kinescan: Any) -> None:
    done = kinescan("doctor", "--gpu-check")
    assert done.exit_code == 1
    assert done.stderr.startswith("BackendError")


@pytest.mark.parametrize("words", [("--device", "cpu"), ("--gpu-check", "--device", "tpu")])
def test_wrong_devices_are_wrong_usage(words: tuple[str, ...], kinescan: Any) -> None:
    assert kinescan("doctor", *words).exit_code == 2


def test_doctor_says_that_the_gpu_was_not_checked(kinescan: Any) -> None:
    said = json.loads(kinescan("doctor", "--json").stdout)
    assert said["gpu_check"]["status"] == "not run"


def test_a_rehearsal_says_that_it_is_none(kinescan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    part = gpu_check.PartResult(
        name="device", status="failed", seconds=1.0, problems=["no compiler"], notes=[], numbers={}
    )
    monkeypatch.setattr(gpu_check, "_run", lambda *_, **__: part)
    done = kinescan("doctor", "--gpu-check", "--device", "cpu")
    assert done.exit_code == 1
    assert all(word in done.stdout for word in ("rehearsal", "no compiler", "gpu_check_rehearsal.json"))


def test_doctor_tells_an_accelerator_that_is_not_used(kinescan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(kinescan("doctor", "--json").stdout)["unused_devices"] == []
    monkeypatch.setattr(torch, "xpu", SimpleNamespace(is_available=lambda: True))
    [line] = [line for line in kinescan("doctor").stdout.splitlines() if line.startswith("devices: ")]
    assert "xpu" in line


def test_doctor_tries_every_backend(kinescan: Any) -> None:
    said = json.loads(kinescan("doctor", "--json").stdout)
    found = {entry["what"]: entry for entry in said["backends"]}
    assert found["selective_scan on cpu with numba"]["works"]
    assert found["local_correlation on cpu with reference"]["works"]
    assert said["environment"]["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert said["decoders"]


def test_doctor_says_why_a_backend_does_not_run() -> None:
    def unable(device: str, backend: str) -> torch.Tensor:
        raise BackendError("any text: of any form", reason="it needs CUDA")

    found = doctor._try("scan", unable, "cpu", "triton")
    assert found == doctor.Finding(what="scan on cpu with triton", works=False, note="it needs CUDA")


def test_doctor_leaves_out_backends_that_an_op_has_not() -> None:
    def lacks(device: str, backend: str) -> torch.Tensor:
        raise BackendError("any text", is_offered=False)

    assert doctor._try("scan", lacks, "cpu", "numba") is None
    with pytest.raises(BackendError) as raised:
        doctor._correlation("cpu", "blockwise")
    assert not raised.value.is_offered


def test_doctor_finds_a_backend_that_differs() -> None:
    def wrong(device: str, backend: str) -> torch.Tensor:
        return torch.ones(2) if backend == "numba" else torch.zeros(2)

    found = doctor._try("scan", wrong, "cpu", "numba")
    assert (found.works, found.difference) == (False, 1.0)


def test_doctor_finds_a_torchvision_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "find_transformers", lambda: False)
    [problem] = doctor.broken_torchvision()
    assert "torch" in problem
    assert "torchvision" in problem
    assert "torchvision" in problem


def test_doctor_outlives_a_backend_that_raises_what_it_likes() -> None:
    def broken(device: str, backend: str) -> torch.Tensor:
        raise RuntimeError("Failed to find C compiler.\nand 40 lines more")

    found = doctor._try("scan", broken, "cuda", "triton")
    assert not found.works
    assert "C compiler" in found.note
    assert "\n" not in found.note
