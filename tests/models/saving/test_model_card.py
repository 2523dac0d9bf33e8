from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import ModelCard

from kinescan.models.saving.model_card import model_card
from kinescan.models.saving.run_record import ReportedScore, RunRecord
from kinescan.models.zoo import create_model, from_pretrained

SCORE = ReportedScore(
    data="test.csv",
    views="8x2x3",
    num_videos=1234,
    top1=0.7031,
    top5=0.9,
    top5_classes=5,
    calibration_error=0.05,
    notes=("Chosen on *these*.",),
)
RUN = RunRecord(recipe='seed = 3\n[data]\ntrain = "/home/me/train.csv"', reports=(SCORE,))


def _card(labels: list[str]) -> str:
    return model_card(
        name="pks4_vit_b16",
        config={"width": 768, "class_token_route": "conv"},
        labels=labels,
        preprocessing={"num_frames": 8, "mean": [0.5, 0.5, 0.5]},
        num_parameters=91_693_550,
    )


def test_card_tells_architecture_labels_preprocessing_and_use() -> None:
    card = _card(["opening a door", "closing a door"])
    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag) == ("kinescan", "video-classification")
    assert data.tags == ["video-classification", "kinescan"]
    assert "## Scores" not in card
    assert "91,693,550 parameters" in card
    assert "0. opening a door\n1. closing a door" in card
    assert "| width | 768 |" in card
    assert "| num_frames | 8 |" in card
    assert "ks.from_pretrained(" in card


def test_labels_cannot_break_the_card() -> None:
    card = _card(["two\nlines", "a | b", "<script>", "`code`"])
    assert "0. two lines\n1. a \\| b\n2. \\<script\\>\n3. \\`code\\`" in card


def test_many_labels_are_cut() -> None:
    card = _card([f"label {i}" for i in range(50)])
    assert "label 39" in card
    assert "label 40" not in card
    assert "and 10 more, in config.json" in card


def test_card_of_a_run_tells_recipe_data_views_and_scores() -> None:
    card = model_card(name="vit_b16", config={}, labels=["a"], preprocessing={}, num_parameters=1, run=RUN)
    assert "| test.csv | 8x2x3 | 1,234 | 70.3 % | 90.0 % (top 5) | 5.0 % |" in card
    assert "**Note.** Chosen on \\*these\\*." in card
    assert '```toml\nseed = 3\n[data]\ntrain = "train.csv"\n```' in card
    [result] = ModelCard(card).data.eval_results or []
    assert (result.dataset_name, result.metric_value, result.metric_name) == ("test.csv", 0.7031, "top-1, views 8x2x3")


def test_push_to_hub_uploads_a_model_that_comes_back_and_its_card(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: object
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text("seed = 3\n", encoding="utf-8")
    published = tmp_path / "published"

    class Api:
        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
            assert (repo_id, private, exist_ok) == ("me/model", True, True)

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
            published.mkdir()
            for file in Path(folder_path).iterdir():
                (published / file.name).write_bytes(file.read_bytes())
            return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model = create_model("vit_ti16", labels=["a", "b"], depth=1, image_size=32)
    assert model.push_to_hub("me/model", private=True, run=run) == "https://huggingface.co/me/model/commit/1"
    assert "```toml\nseed = 3\n```" in (published / "README.md").read_text(encoding="utf-8")
    hub("me/model", published)  # type: ignore[operator]
    again = from_pretrained("me/model")
    assert (again.labels, again.config) == (("a", "b"), model.config)
