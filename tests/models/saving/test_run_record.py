import json
from pathlib import Path

import pytest

from kinescan.errors import CheckpointError
from kinescan.models.saving.run_record import read_run

REPORT = {
    "data": "/home/me/videos/test.csv",
    "views": "8x2x3",
    "num_videos": 1234,
    "top1": 0.7031,
    "top5": 0.9,
    "top5_classes": 5,
    "calibration_error": 0.05,
    "notes": ["Chosen on these."],
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    recipe = 'seed = 3\n[data]\ntrain = "/home/me/videos/train.csv"\nroot = \'C:\\data\\videos\'\nname = "folder"\n'
    (tmp_path / "recipe.toml").write_text(recipe, encoding="utf-8")
    (tmp_path / "report.json").write_text(json.dumps(REPORT), encoding="utf-8")
    return tmp_path


def test_run_tells_recipe_and_every_report(run: Path) -> None:
    (run / "evaluation").mkdir()
    (run / "evaluation" / "report.json").write_text(json.dumps(REPORT | {"views": "8x1x1"}), encoding="utf-8")
    record = read_run(run)
    assert [report.views for report in record.reports] == ["8x2x3", "8x1x1"]
    assert (record.reports[0].data, record.reports[0].top1) == ("test.csv", 0.7031)
    assert "seed = 3" in record.recipe


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ("20% held out of /home/me/videos/train", "20% held out of train"),
        ("the val part of /home/me/videos", "the val part of videos"),
        ("the test part of /home/me/ucf101 (ucf101, split 2)", "the test part of ucf101 (ucf101, split 2)"),
        ("/home/me/the test part of mine/a", "a"),
    ],
)
def test_scores_say_which_part_of_the_data_they_are_of(run: Path, data: str, shown: str) -> None:
    (run / "report.json").write_text(json.dumps(REPORT | {"data": data}), encoding="utf-8")
    assert read_run(run).reports[0].data == shown


def test_published_recipe_names_no_folder_of_the_user(run: Path) -> None:
    published = read_run(run).published_recipe()
    assert published == 'seed = 3\n[data]\ntrain = "train.csv"\nroot = \'videos\'\nname = "folder"'


def test_run_without_scores_is_a_run(run: Path) -> None:
    (run / "report.json").unlink()
    assert read_run(run).reports == ()


def test_other_folders_and_damaged_reports(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"recipe.toml"):
        read_run(tmp_path / "nowhere")
    (run / "report.json").write_text(json.dumps({"data": "x"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"report.json.*num_videos, .* missing"):
        read_run(run)
