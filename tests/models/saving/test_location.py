"""One rule for what a model's name means, wherever it is given."""

import os
from pathlib import Path

import pytest

from kinescan.errors import CheckpointError, ConfigError
from kinescan.models.saving.location import locate_model


def _checkpoint(folder: Path, *, at: float = 0) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "config.json").write_text("{}")
    os.utime(folder / "model.safetensors", (at, at))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    _checkpoint(Path("runs/a/checkpoints/best"), at=1)
    _checkpoint(Path("runs/a/checkpoints/last"), at=2)
    _checkpoint(Path("runs/b/checkpoints/last"), at=3)
    _checkpoint(Path("saved"))
    Path("exported").mkdir()
    Path("exported/export.json").write_text("{}")
    Path("exported/model.onnx").write_bytes(b"")
    Path("runs/begun").mkdir()
    Path("runs/begun/recipe.toml").write_text("")
    Path("weights.pt").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("runs/a", "runs/a/checkpoints/best"),
        ("runs/a/", "runs/a/checkpoints/best"),
        ("./runs/a", "runs/a/checkpoints/best"),
        ("runs/a/checkpoints", "runs/a/checkpoints/best"),
        ("runs/a/checkpoints/last", "runs/a/checkpoints/last"),
        ("runs/a/checkpoints/last/model.safetensors", "runs/a/checkpoints/last"),
        ("runs/b", "runs/b/checkpoints/last"),
        (Path("saved"), "saved"),
        ("saved/config.json", "saved"),
        ("exported", "exported"),
        ("exported/model.onnx", "exported"),
        ("openai/clip-vit-base-patch16", "openai/clip-vit-base-patch16"),
        ("user/model@v1.2", "user/model@v1.2"),
        ("hf-hub:saved/model", "hf-hub:saved/model"),
    ],
)
def test_names_that_mean_a_model(here: Path, given: str, meant: str) -> None:
    assert locate_model(given) == meant


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("runs/nope", r"runs/nope.*runs/b, runs/a\..*hf-hub:runs/nope"),
        ("saved/nope", "saved/nope.*folder.*hf-hub:saved/nope"),
        ("nope", r"runs/b, runs/a\."),
        ("/nope/nope", "/nope/nope"),
        ("a/b/c", "a/b/c"),
        ("https://hf.co/a/b", "folder"),
        ("runs", r"runs.*runs/b, runs/a\."),
        ("runs/begun", "runs/begun.*--output runs/begun --resume"),
        ("weights.pt", "weights.pt"),
        ("", "empty"),
        ("x" * 5000, "looked"),
    ],
)
def test_names_that_mean_none_are_errors_that_say_what_there_is(here: Path, given: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        locate_model(given)


def test_runs_are_never_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="runs/nope"):
        locate_model("runs/nope")


@pytest.mark.bad_input
@pytest.mark.parametrize("given", [None, 3, b"runs/a", ["runs/a"]])
def test_what_is_no_name_is_refused(given: object) -> None:
    with pytest.raises(ConfigError):
        locate_model(given)
