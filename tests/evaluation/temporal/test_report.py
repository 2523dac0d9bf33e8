import json
from pathlib import Path

import pytest
from PIL import Image

from kinescan.data.datasets import Unreadable
from kinescan.evaluation.temporal import detection_map
from kinescan.evaluation.temporal.activitynet import read_results
from kinescan.evaluation.temporal.frame_file import read_frame_predictions
from kinescan.evaluation.temporal.report import TemporalReport, make_temporal_report
from kinescan.evaluation.temporal.scores import score_frames
from kinescan.events.rules import EventRules

from .made_up import interval, predictions

TRUTH = {
    "a.mp4": [interval(2, 4), interval(15, 16)],
    "x/$b$ |.mp4": [interval(5, 6, "run", "x/$b$ |.mp4")],
    "empty.mp4": [],
}


def _report(data: str = "test.csv") -> TemporalReport:
    made = [
        predictions((2, 4, "fall", 0.9), (10, 12, "run", 0.8)),
        predictions((5, 6, "run", 0.7), video="x/$b$ |.mp4"),
        predictions(video="empty.mp4"),
    ]
    scores = score_frames(made, TRUTH, EventRules())
    return make_temporal_report(
        scores,
        made,
        model="m",
        data=data,
        rules_from="chosen on 3 validation videos",
        paths={"a.mp4": "/videos/a.mp4"},
        unreadable=[Unreadable(path=Path("c.mp4"), reason="it is cut", item_index=3)],
        notes=["a note"],
    )


def test_a_report_leaves_everything_that_was_promised(tmp_path: Path) -> None:
    report = _report()
    report.save(tmp_path)
    plain = json.loads((tmp_path / "report.json").read_text())
    assert plain["task"] == "intervals"
    assert (plain["num_videos"], plain["num_unreadable"], plain["num_intervals"]) == (3, 1, 3)
    assert plain["alarms"]["num_missed"] == 1
    assert plain["alarms"]["delay_seconds"]["median"] == pytest.approx(0.2)
    assert plain["frames"]["chance_calibrated_map"] == 0.5
    assert [video["video_id"] for video in plain["videos"]] == ["a.mp4", "empty.mp4", "x/$b$ |.mp4"]
    for video in plain["videos"]:
        with Image.open(tmp_path / video["timeline"]) as picture:
            assert picture.width == 1100
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > 400
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert lines[0]["path"] == "/videos/a.mp4"
    assert lines[0]["events"][0]["segment"] == [2.0, 4.0]
    assert lines[0]["events"][0]["told_at"] == pytest.approx(2.2)
    assert (lines[0]["num_missed"], lines[0]["num_false"]) == (1, 1)


def test_results_read_back_give_the_same_scores(tmp_path: Path) -> None:
    report = _report()
    report.save(tmp_path)
    found = [one for of_video in read_results(tmp_path / "results.json").values() for one in of_video]
    truth = [one for of_video in TRUTH.values() for one in of_video]
    assert detection_map(truth, found) == report.scores.detection["0.5:0.05:0.95"]
    again = score_frames(read_frame_predictions(tmp_path / "frames.safetensors"), TRUTH, report.scores.rules)
    assert again == report.scores


def test_the_page_names_what_a_reader_has_to_know() -> None:
    page = _report().to_markdown()
    for text in (
        "a note",
        "it is cut",
        "chosen on 3 validation videos",
        "by chance",
        "1 of 4 files",
        r"x/\$b\$ \|.mp4",
    ):
        assert text in page


def test_a_report_of_other_data_is_moved_aside_with_all_its_files(tmp_path: Path) -> None:
    _report().save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    _report().save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == names
    _report("other.csv").save(tmp_path)
    assert {path.name for path in (tmp_path / "earlier-1").iterdir()} == names
    assert {path.name for path in tmp_path.iterdir()} == names | {"earlier-1"}


def test_timelines_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    (tmp_path / "timelines").mkdir()
    (tmp_path / "timelines" / "007_old.png").write_bytes(b"")
    (tmp_path / "timelines" / "mine.png").write_bytes(b"")
    _report().save(tmp_path)
    left = {path.name for path in (tmp_path / "timelines").iterdir()}
    assert "007_old.png" not in left
    assert {"mine.png", "001_a.png"} <= left
