import logging

import pytest
import torch

from kinescan.errors import BackendError
from kinescan.ops import backend
from kinescan.ops.backend import choose_backend, plain_torch, triton_obstacle

RUNS = {"numba": lambda like: None, "reference": lambda like: None}
ON_GPU_ONLY = {"triton": lambda like: None if like.is_cuda else "it needs a GPU", "reference": lambda like: None}


@pytest.fixture(autouse=True)
def nothing_announced(monkeypatch):
    monkeypatch.setattr(backend, "_announced", set())


def test_first_backend_that_runs_is_chosen():
    assert choose_backend("op", None, RUNS, torch.ones(1)) == "numba"
    assert choose_backend("op", None, ON_GPU_ONLY, torch.ones(1)) == "reference"


def test_backend_by_name_is_taken():
    assert choose_backend("op", "reference", RUNS, torch.ones(1)) == "reference"


def test_backend_by_name_that_cannot_run_says_why_and_which_can():
    message = r"op: backend 'triton' cannot run on cpu with bfloat16: it needs a GPU. These can: reference\."
    with pytest.raises(BackendError, match=message):
        choose_backend("op", "triton", ON_GPU_ONLY, torch.ones(1, dtype=torch.bfloat16))


def test_plain_torch_leaves_kernels_out_within_its_block_only():
    able = {"numba": lambda like: None, "blockwise": lambda like: None, "reference": lambda like: None}
    with plain_torch():
        assert choose_backend("op", None, able, torch.ones(1)) == "blockwise"
        assert choose_backend("op", "numba", able, torch.ones(1)) == "numba"
    assert choose_backend("op", None, able, torch.ones(1)) == "numba"


@pytest.mark.bad_input
def test_unknown_backend_names_the_known_ones():
    with pytest.raises(BackendError, match=r"'cuda'.*reference\."):
        choose_backend("op", "cuda", RUNS, torch.ones(1))
    with pytest.raises(BackendError, match=r"backend 'triton'.*reference\."):
        choose_backend("op", "triton", RUNS, torch.ones(1))


def test_choice_is_logged_once_for_each_device(caplog):
    with caplog.at_level(logging.INFO, logger="kinescan"):
        for dtype in (torch.float32, torch.float32, torch.bfloat16):
            choose_backend("op", None, RUNS, torch.ones(1, dtype=dtype))
    assert caplog.messages == ["op runs with the numba backend on cpu"]


def test_triton_says_what_it_lacks(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backend, "_triton_is_installed", lambda: False)
    assert triton_obstacle(torch.ones(1)).startswith("triton is not installed")
    monkeypatch.setattr(backend, "_triton_is_installed", lambda: True)
    assert triton_obstacle(torch.ones(1)) == "it needs a CUDA device"


def test_triton_that_cannot_be_imported_says_so(monkeypatch):
    def broken(name):
        raise OSError("libtriton.so is cut off")

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backend, "_triton_is_installed", lambda: True)
    monkeypatch.setattr(backend, "_triton_import_problem", backend._triton_import_problem.__wrapped__)
    monkeypatch.setattr(backend.importlib, "import_module", broken)
    assert triton_obstacle(torch.ones(1)) == "triton cannot be imported (OSError: libtriton.so is cut off)"
    monkeypatch.setattr(backend.importlib, "import_module", lambda name: None)
    monkeypatch.setattr(backend, "_triton_launch_problem", lambda device: None)
    assert triton_obstacle(torch.ones(1)) is None
    assert triton_obstacle(torch.ones(1).double()) == "it takes float32, bfloat16 and float16"


def test_triton_that_cannot_run_a_kernel_leaves_the_plain_form(monkeypatch):
    class NoCompiler:
        def launch(self, device):
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backend, "_triton_is_installed", lambda: True)
    monkeypatch.setattr(backend, "_triton_import_problem", lambda: None)
    monkeypatch.setattr(backend, "_triton_launch_problem", backend._triton_launch_problem.__wrapped__)
    monkeypatch.setattr(backend.importlib, "import_module", lambda name: NoCompiler())
    obstacles = {"triton": triton_obstacle, "reference": lambda like: None}
    assert choose_backend("op", None, obstacles, torch.ones(1)) == "reference"
    with pytest.raises(BackendError) as refused:
        choose_backend("op", "triton", obstacles, torch.ones(1))
    assert "C compiler" in refused.value.reason
    assert "more" not in refused.value.reason
