import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kinescan.errors import BackendError
from kinescan.runs import doctor


def test_data_make_writes_both_kinds(kinescan: Any, tmp_path: Path) -> None:
    sizes = ["--train-per-class", "2", "--test-per-class", "1", "--frame-size", "32", "--num-frames", "4"]
    made = kinescan("data", "make", "motion", tmp_path / "a", *sizes, "--set", 'pairs=["vertical"]', "--json")
    assert made.exit_code == 0, made.stderr
    said = json.loads(made.stdout)
    assert (said["classes"], said["num_train"], said["num_test"]) == (["down", "up"], 4, 2)
    assert len(list((tmp_path / "a" / "train").rglob("*.mp4"))) == 4
    again = kinescan("data", "make", "motion", tmp_path / "a", *sizes)
    assert again.exit_code == 2
    assert "is not empty" in again.stderr
    looks = ["--set", 'colours=["red", "blue"]', "--set", 'families=["dots"]', "--noise", "0", "--shake", "0"]
    made = kinescan("data", "make", "appearance", tmp_path / "b", *sizes, *looks, "--seed", "3")
    assert made.exit_code == 0, made.stderr
    assert "4 training and 2 test files in 2 classes" in made.stdout
    wrong = kinescan("data", "make", "motion", tmp_path / "c", "--set", "frame_sice=3")
    assert (wrong.exit_code, "Did you mean 'frame_size'?" in wrong.stderr) == (2, True)
    assert kinescan("data", "make", "weather", tmp_path / "d").exit_code == 2


def test_list_names_models_recipes_datasets_and_backends(kinescan: Any) -> None:
    said = json.loads(kinescan("list", "--json").stdout)
    assert set(said) == {"models", "recipes", "datasets", "backends"}
    assert "pks4_vit_b16" in said["models"]
    assert said["recipes"]["own_videos_cpu"].startswith("Your own videos")
    assert "numba" in said["backends"]
    assert "pks4_vit_b16" in kinescan("list").stdout


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
    assert "does not load beside torch" in problem
    assert "operator torchvision::nms does not exist" in problem
    assert "pip uninstall torchvision" in problem


def test_list_settings_shows_every_key_of_a_recipe(kinescan: Any) -> None:
    keys = json.loads(kinescan("list", "settings", "--json").stdout)
    assert {"key": "data.held_out_ratio", "default": "0.2"}.items() <= next(
        key for key in keys if key["key"] == "data.held_out_ratio"
    ).items()
    assert "optim.lr" in kinescan("list", "settings").stdout
    assert kinescan("list", "settings", "--markdown").stdout.startswith("# Settings")
    refused = kinescan("list", "--markdown")
    assert refused.exit_code == 2
    assert "--markdown goes with settings" in refused.stderr
    assert "settings" in kinescan("list", "setings").stderr
