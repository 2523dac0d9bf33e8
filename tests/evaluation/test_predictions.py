import json

import pytest
import torch
from safetensors import safe_open

from kinescan.errors import ConfigError
from kinescan.evaluation.multiview import evaluate_model
from kinescan.evaluation.predictions import VideoPrediction, prediction_lines, read_predictions, save_features


@pytest.fixture
def evaluation(brightness_model, make_dataset):
    return evaluate_model(brightness_model(), make_dataset(), with_features=True)


def test_predictions_are_read_as_they_were_written(evaluation, tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(prediction_lines(evaluation)), encoding="utf-8")
    found = read_predictions(path)
    assert [line.video_id for line in found] == [item.video_id for item in evaluation.items]
    assert [line.right for line in found] == [video.right for video in evaluation.videos]
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert first["path"] == str(evaluation.items[0].path)
    assert sum(first["scores"].values()) == pytest.approx(1, abs=1e-5)


def test_read_predictions_says_what_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.jsonl.*path"):
        read_predictions(tmp_path / "none.jsonl")
    path = tmp_path / "other.jsonl"
    path.write_text('{"video_id": "a", "label": "x", "prediction": "x"}\n{"path": "b"}\n')
    with pytest.raises(ConfigError, match=r"other\.jsonl, line 2.*video_id"):
        read_predictions(path)


def test_features_file_holds_features_and_every_score(evaluation, tmp_path):
    path = tmp_path / "deep" / "features.safetensors"
    save_features(evaluation, path)
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_tensor("features"), evaluation.features)
        torch.testing.assert_close(file.get_tensor("scores"), evaluation.scores.float())
        assert torch.equal(file.get_tensor("targets"), evaluation.targets)
        metadata = file.metadata()
    assert json.loads(metadata["video_ids"]) == [item.video_id for item in evaluation.items]
    assert json.loads(metadata["labels"]) == ["dark", "bright"]
    assert metadata["views"] == "4x2x3"


def test_features_file_wants_features_and_a_place(brightness_model, make_dataset, evaluation, tmp_path):
    with pytest.raises(ConfigError, match=r"evaluate_model\(\.\.\., with_features=True"):
        save_features(evaluate_model(brightness_model(), make_dataset(views="4x1x1")), tmp_path / "f.safetensors")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"Choose.*features"):
        save_features(evaluation, tmp_path / "file" / "f.safetensors")


def test_video_prediction_is_right_where_it_is_the_label():
    assert VideoPrediction(video_id="a", label="x", prediction="x").right
    assert not VideoPrediction(video_id="a", label="x", prediction="y").right
