import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kinescan.errors import BackendError
from kinescan.runs import doctor


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
