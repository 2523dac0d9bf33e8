import dataclasses
import json

import pytest
import torch
from PIL import Image
from tests.mentions import mentions

from kinescan.data.listing import VideoItem
from kinescan.errors import ConfigError
from kinescan.evaluation.metrics import confusion_matrix
from kinescan.evaluation.multiview import evaluate_model
from kinescan.evaluation.plots import plot_confusion
from kinescan.evaluation.report import CHOSEN_ON_THESE, make_report
from kinescan.profiling.cost import count_cost
from kinescan.profiling.environment import describe_environment


@pytest.fixture
def report(brightness_model, make_dataset, videos, spoiled):
    model = brightness_model(labels=("bright", "grey|ish", "dark"))
    # One label is wrong, so that there is a mistake to show.
    items = [VideoItem(videos[0].path, 1, "wrong"), *videos[1:], VideoItem(spoiled, 1, "broken")]
    evaluation = evaluate_model(model, make_dataset(items=items))
    return make_report(evaluation, model="vit_ti16", data="my videos", seed=3, cost=count_cost(model))


def test_report_json_says_result_and_origin(report):
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["top1"] == pytest.approx(5 / 6)
    assert (plain["top5"], plain["top5_classes"]) == (1.0, 3)
    assert (plain["num_videos"], plain["num_unreadable"], plain["views"], plain["seed"]) == (6, 1, "4x2x3", 3)
    assert plain["classes"][2] == {"label": "dark", "num_videos": 2, "num_right": 2, "accuracy": 1.0}
    assert plain["classes"][1]["accuracy"] is None
    assert plain["confusions"] == [{"label": "bright", "taken_for": "dark", "num_videos": 1, "ratio": 0.25}]
    assert plain["unreadable"][0]["path"].endswith("broken.mp4")
    assert plain["cost"]["num_parameters"] > 0
    assert plain["environment"]["packages"]["torch"]
    assert plain["environment"]["num_cores"] >= 1


def test_report_page_shows_classes_mistakes_and_unreadable_files(report):
    page = report.to_markdown()
    assert "# vit_ti16 on my videos" in page
    assert "| top-1 | **83.3 %** |" in page
    assert mentions(page, "top 5", "top 3")
    assert "**1 of 7 files" in page
    assert "broken.mp4: " in page
    assert "| grey\\|ish | 0 | 0 | no videos |" in page
    assert "| bright | dark | 1 | 25.0 % |" in page
    assert "seed 3" in page
    assert "GMACs a view" in page


def test_report_names_classes_that_are_right_no_more_often_than_a_guess(report):
    assert "**1 of 3 classes" not in report.to_markdown()
    evaluation = report.evaluation
    scores = evaluation.scores.clone()
    lost = int(evaluation.targets[0])
    scores[evaluation.targets == lost] = torch.ones(3, dtype=scores.dtype).index_fill(0, torch.tensor(lost), 0) / 2
    page = dataclasses.replace(report, evaluation=dataclasses.replace(evaluation, scores=scores)).to_markdown()
    assert mentions(page, "**1 of 3 classes", "(33.3 %)")
    assert f"says: {evaluation.labels[lost]}." in page


def test_report_saves_page_numbers_picture_and_predictions(report, tmp_path):
    folder = report.save(tmp_path / "deep" / "report")
    assert {file.name for file in folder.iterdir()} == {
        "report.json",
        "report.md",
        "confusion.png",
        "reliability.png",
        "predictions.jsonl",
    }
    assert json.loads((folder / "report.json").read_text())["top1"] == report.evaluation.metrics.top1
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [line["right"] for line in lines] == [False] + [True] * 5
    assert (lines[0]["label"], lines[0]["video_id"]) == ("bright", "wrong")
    assert lines[0]["prediction"] == next(iter(lines[0]["scores"])) == "dark"
    for name in ("confusion.png", "reliability.png"):
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG"


def test_report_of_other_data_is_kept_beside_the_new_one(report, tmp_path):
    report.save(tmp_path)
    report.save(tmp_path)
    assert not (tmp_path / "earlier-1").exists()
    for data in ("other videos", "third videos"):
        dataclasses.replace(report, data=data).save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["data"] == "third videos"
    assert json.loads((tmp_path / "earlier-1" / "report.json").read_text())["data"] == "my videos"
    assert json.loads((tmp_path / "earlier-2" / "report.json").read_text())["data"] == "other videos"
    names = {file.name for file in tmp_path.iterdir() if file.is_file()}
    assert {file.name for file in (tmp_path / "earlier-1").iterdir()} == names


def test_report_that_cannot_be_read_is_replaced(report, tmp_path):
    (tmp_path / "report.json").write_text("cut", encoding="utf-8")
    report.save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["data"] == "my videos"


def test_report_shows_calibration(report):
    bins = report.to_json()["reliability"]
    assert len(bins) == 15
    assert sum(entry["num_videos"] for entry in bins) == 6
    filled = [entry for entry in bins if entry["num_videos"]]
    page = report.to_markdown()
    assert "## Calibration" in page
    for entry in filled:
        assert f"| {entry['low']:.2f} to {entry['high']:.2f} | {entry['num_videos']} | " in page


def test_report_says_that_its_videos_chose_the_checkpoint(report):
    assert report.to_json()["notes"] == []
    noted = dataclasses.replace(report, notes=(CHOSEN_ON_THESE,))
    assert noted.to_json()["notes"] == [CHOSEN_ON_THESE]
    assert f"**Note.** {CHOSEN_ON_THESE}" in noted.to_markdown()


def test_report_says_that_it_cannot_write(report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/report: .*Choose"):
        report.save(tmp_path / "file" / "report")


@pytest.mark.parametrize("num_classes", [2, 30, 80])
def test_plot_confusion_of_few_and_of_many_classes(tmp_path, num_classes):
    targets = torch.randint(0, num_classes, (500,))
    predictions = torch.where(torch.rand(500) < 0.7, targets, torch.randint(0, num_classes, (500,)))
    matrix = confusion_matrix(predictions, targets, num_classes=num_classes)
    labels = [f"class with a rather long name, number {index}" for index in range(num_classes)]
    plot_confusion(matrix, labels, tmp_path / "matrix.png")
    with Image.open(tmp_path / "matrix.png") as picture:
        assert 300 < picture.height < 2500
        colours = picture.convert("RGB").getcolors(maxcolors=1 << 24)
        assert any(blue > red + 60 for _, (red, _, blue) in colours)


def test_describe_environment_names_the_machine():
    environment = describe_environment()
    assert environment.cpu
    assert environment.python.count(".") == 2
    assert set(environment.packages) >= {"torch", "numba", "av"}
