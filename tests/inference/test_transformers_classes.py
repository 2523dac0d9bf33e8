import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("transformers")

import transformers

from kinescan.data.video import write_video
from kinescan.errors import ConfigError, ShapeError
from kinescan.inference.export import export
from kinescan.inference.predictor import predict
from kinescan.inference.registration import register_transformers
from kinescan.models.pks4 import PKS4
from kinescan.models.zoo import create_model

from .conftest import LABELS, tiny_model

register_transformers()


@pytest.fixture(scope="module")
def model() -> PKS4:
    return tiny_model(class_token_route="token_shift")


@pytest.fixture(scope="module")
def folder(model: PKS4, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("transformers") / "model"
    record = export(model, target, to="transformers")
    assert record.check["largest_difference"] < 1e-6
    return target


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (9, 3, 40, 48), dtype=torch.uint8)


def test_export_holds_what_both_sides_need(folder: Path) -> None:
    assert {entry.name for entry in folder.iterdir()} == {
        *("README.md", "config.json", "export.json", "model.safetensors", "video_preprocessor_config.json"),
    }
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["architectures"]) == ("kinescan", ["KinescanForVideoClassification"])
    assert list(config["id2label"].values()) == list(LABELS)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert 'pipeline("video-classification", model=".")' in card


def test_auto_model_gives_the_logits_and_the_loss(folder: Path, model: PKS4) -> None:
    loaded = transformers.AutoModelForVideoClassification.from_pretrained(folder)
    clip = torch.randn(2, 4, 3, 32, 32)
    targets = torch.tensor([0, 3])
    with torch.no_grad():
        out = loaded(pixel_values=clip, labels=targets)
        expected = model(clip)
    assert torch.equal(out.logits, expected)
    assert torch.equal(out.loss, F.cross_entropy(expected, targets))
    assert not loaded.training


@pytest.mark.parametrize("kind", ["array", "channels first", "tensor", "file"])
def test_pipeline_names_the_classes_that_predict_names(
    kind: str, folder: Path, model: PKS4, pixels: torch.Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_video(tmp_path / "a.mp4", pixels, fps=8)
    with caplog.at_level(logging.ERROR):
        classify = transformers.pipeline("video-classification", model=str(folder))
    assert "not supported" not in caplog.text
    given: dict[str, Any] = {
        "array": pixels.permute(0, 2, 3, 1).numpy(),
        "channels first": pixels.numpy(),
        "tensor": pixels,
        "file": str(tmp_path / "a.mp4"),
    }
    found = classify(given[kind], top_k=2)
    assert [entry["score"] >= 0 for entry in found] == [True, True]
    if kind == "file":
        [expected] = predict(model, tmp_path / "a.mp4", top=2)
        assert [entry["label"] for entry in found] == list(expected.labels)
        assert [entry["score"] for entry in found] == pytest.approx(expected.scores, abs=1e-6)
    else:
        same = classify(pixels.numpy(), top_k=2)
        assert found == same
    assert len(classify([given[kind], given[kind]])) == 2


def test_pipeline_samples_another_number_of_frames(folder: Path, pixels: torch.Tensor) -> None:
    processor = transformers.pipeline("video-classification", model=str(folder)).video_processor
    assert processor(pixels.numpy(), num_frames=2, return_tensors="pt")["pixel_values"].shape == (1, 2, 3, 32, 32)


@pytest.mark.parametrize(
    ("video", "given"),
    [(np.zeros((4, 32, 32), np.uint8), r"\[4, 32, 32\]"), (7, "int"), (np.zeros((4, 2, 8, 8)), r"\[4, 2, 8, 8\]")],
)
def test_other_videos_are_refused(folder: Path, video: Any, given: str) -> None:
    processor = transformers.pipeline("video-classification", model=str(folder)).video_processor
    with pytest.raises(ShapeError, match=rf"\[T, H, W, 3\].*{given}\. Give frames"):
        processor(video)


@pytest.mark.parametrize("name", ["videomamba_tiny", "ssp_videomamba_tiny"])
def test_other_classifiers_load_too(name: str, tmp_path: Path) -> None:
    model = create_model(name, labels=["a", "b"], image_size=32, depth=2, preprocessing={"num_frames": 2})
    assert export(model, tmp_path, to="transformers").check["largest_difference"] < 1e-6


def test_saving_again_and_moving_keep_the_model(folder: Path, tmp_path: Path) -> None:
    loaded = transformers.AutoModelForVideoClassification.from_pretrained(folder)
    loaded.save_pretrained(tmp_path)
    again = transformers.AutoModelForVideoClassification.from_pretrained(tmp_path, dtype=torch.float64)
    clip = torch.randn(1, 4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again(clip.double()).logits.float(), loaded(clip).logits, atol=1e-4, rtol=1e-4)


def test_unknown_architectures_and_fixed_batches_are_refused(folder: Path, model: PKS4, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": "pks5_vit"}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config.json: unknown model 'pks5_vit'"):
        transformers.AutoModelForVideoClassification.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"transformers.*2"):
        export(model, tmp_path / "new", to="transformers", batch=2)
