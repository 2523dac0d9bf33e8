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
        raise BackendError("scan: backend 'triton' cannot run on cpu with float32: it needs CUDA. These can: numba.")

    found = doctor._try("scan", unable, "cpu", "triton")
    assert (found.what, found.works) == ("scan on cpu with triton", False)
    assert found.note.startswith("backend 'triton' cannot run on cpu with float32: it needs CUDA.")


def test_doctor_finds_a_backend_that_differs() -> None:
    def wrong(device: str, backend: str) -> torch.Tensor:
        return torch.ones(2) if backend == "numba" else torch.zeros(2)

    found = doctor._try("scan", wrong, "cpu", "numba")
    assert (found.works, found.note) == (False, "differs from the reference by 1.0e+00")


def test_doctor_finds_a_torchvision_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "find_transformers", lambda: False)
    [problem] = doctor.broken_torchvision()
    assert "torch" in problem
    assert "torchvision" in problem
    assert "torchvision" in problem
