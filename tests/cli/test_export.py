import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.mentions import mentions

from kinescan.inference import export_formats as formats
from kinescan.models.zoo import create_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = create_model("vit_ti16", labels=["a", "b"], depth=1, image_size=32, preprocessing={"num_frames": 2})
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_export_says_what_is_fixed_and_how_it_compares(kinescan: Any, saved: Path, tmp_path: Path) -> None:
    result = kinescan("export", saved, tmp_path / "out", "--to", "torch", "--frames", "3")
    assert result.exit_code == 0, result.stderr
    assert mentions(result.stdout, "model.pt2: vit_ti16", "float32")
    assert mentions(result.stdout, "3 frames, 32 x 32", "export.json")
    assert mentions(result.stdout, "class", "3", "3 clips")


def test_export_as_json_of_a_fixed_batch_on_given_videos(
    kinescan: Any, saved: Path, videos: Path, tmp_path: Path
) -> None:
    files = [videos / "dark" / "0.mp4", videos / "bright" / "0.mp4"]
    arguments = [word for file in files for word in ("--video", file)]
    result = kinescan("export", saved, tmp_path / "out", "--to", "torch", "--batch", "1", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert (record["batch"], record["check"]["clips"]) == (1, [str(file) for file in files])
    refused = kinescan("predict", files[0], "--model", tmp_path / "out")
    assert refused.exit_code == 1
    assert "--allow-code" in refused.stderr
    predicted = kinescan("predict", files[0], "--model", tmp_path / "out", "--allow-code", "--top", "1", "--json")
    assert json.loads(predicted.stdout)[0]["labels"][0] in ("a", "b")


def test_export_exit_codes(kinescan: Any, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = kinescan("export", saved, tmp_path / "out", "--to", "torch", "--batch", "many")
    assert (wrong.exit_code, wrong.stderr) == (2, "ConfigError: batch must be 1 or more, or 'dynamic', got 'many'.\n")
    honest = formats.FORMATS["torch"]
    broken = replace(honest, open=lambda *arguments: lambda inputs: [honest.open(*arguments)(inputs)[0] + 1])
    monkeypatch.setitem(formats.FORMATS, "torch", broken)  # type: ignore[arg-type]
    failed = kinescan("export", saved, tmp_path / "out", "--to", "torch")
    assert failed.exit_code == 1
    assert failed.stderr.startswith("ExportError: the exported torch file differs from vit_ti16: logits by up to 1 ")
    assert not (tmp_path / "out").exists()
