"""State-space prompts through the same verbs as every other model: train, eval, predict."""

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tests.mentions import mentions

from kinescan.config import build_run
from kinescan.data.synthetic import MotionConfig, make_motion
from kinescan.inference.predictor import predict
from kinescan.models.zoo import create_model, from_pretrained
from kinescan.runs.evaluate import evaluate
from kinescan.runs.train import train

SIZES = {"image_size": 32, "patch_size": 16, "depth": 2, "width": 16, "num_frames": 4}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos") / "motion"
    config = MotionConfig(
        pairs=("horizontal",), frame_size=32, num_frames=8, train_per_class=4, test_per_class=2, shake_pixels=0.0
    )
    make_motion(folder, config)
    return folder


def test_train_evaluate_and_predict_with_state_space_prompts(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    base = create_model("videomamba_tiny", num_classes=5, **SIZES)
    torch.save({"module": base.state_dict()}, tmp_path / "base.pth")
    recipe = {
        "model": {
            "name": "ssp_videomamba_tiny",
            "weights": str(tmp_path / "base.pth"),
            "options": {"inner_width": 8, "attention_width": 8, "attention_heads": 2},
        },
        "data": {"train": str(videos / "train"), "test": str(videos / "test")},
        "preprocessing": {"num_frames": 6, "size": 32},
        "loader": {"batch_size": 4, "num_workers": 0},
        "augment": {"rand_augment_operations": 0, "mixup_alpha": 0.0, "cutmix_alpha": 0.0},
        "optim": {"epochs": 1},
        "train": {"device": "cpu", "trackers": []},
        "evaluation": {"views": "6x1x1"},
    }
    result = train(build_run(recipe), output=tmp_path / "run")
    assert mentions(caplog.text, "temporal_pos_embedding: 4", "6, linear")
    assert re.search(
        r"ssp_videomamba_tiny: 0\.0\d M parameters \(0\.0\d M trained, the rest frozen\), 2 cl", caplog.text
    )
    assert result.report.evaluation.metrics.num_videos == 4
    folder = tmp_path / "run" / "checkpoints" / "best"
    with safe_open(folder / "model.safetensors", "pt") as saved:
        assert all(name.startswith(("tuner.", "head.", "norm_f.")) for name in saved.keys())  # noqa: SIM118
    model = from_pretrained(folder)
    for name, tensor in base.state_dict().items():
        if not model.is_trained(name) and name != "temporal_pos_embedding":
            assert torch.equal(model.state_dict()[name], tensor), name
    assert evaluate(tmp_path / "run").evaluation.metrics.num_videos == 4
    (prediction,) = predict(model, [next((videos / "test").rglob("*.mp4"))])
    assert set(prediction.labels) == {"left", "right"}
    assert model.preprocessing.num_frames == 6
