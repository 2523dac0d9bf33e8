from pathlib import Path

import pytest

from kinescan.errors import ConfigError
from kinescan.evaluation.temporal import Detection, Interval
from kinescan.evaluation.temporal.results_report import score_results

from .made_up import interval


def _found(video: str, start: float = 2.0, end: float = 4.0, label: str = "fall") -> Detection:
    return Detection(video_id=video, label=label, start_seconds=start, end_seconds=end, score=0.5)


def _score(truth: dict[str, list[Interval]], found: dict[str, list[Detection]]) -> float:
    report = score_results(truth, found, results="r.json", data="t.csv")
    return report.detection["0.5:0.05:0.95"].average_map


@pytest.mark.parametrize("name", ["clips/a.mp4", "a", "a.mp4", "v_a", "other/a.avi"])
def test_ids_are_matched_by_name(name: str) -> None:
    truth = {"clips/a.mp4": [interval(2, 4, video="clips/a.mp4")]}
    assert _score(truth, {name: [_found(name)]}) == 1.0


def test_names_that_stand_for_two_videos_are_not_matched() -> None:
    truth = {
        "x/a.mp4": [interval(2, 4, video="x/a.mp4")],
        "y/a.mp4": [interval(2, 4, video="y/a.mp4")],
        "b.mp4": [interval(2, 4, video="b.mp4")],
    }
    assert _score(truth, {"a": [_found("a")], "b": [_found("b")]}) < 0.5
    report = score_results(truth, {"a": [_found("a")], "b": [_found("b")]}, results="r", data="t")
    assert any("such as a:" in note for note in report.notes)


def test_an_exact_id_goes_before_a_similar_one() -> None:
    truth = {"v_a": [interval(2, 4, video="v_a")], "a": [interval(6, 8, video="a")]}
    assert _score(truth, {"a": [_found("a", 6, 8)], "v_a": [_found("v_a")]}) == 1.0


def test_what_does_not_count_is_said() -> None:
    truth = {"a": [interval(2, 4, video="a")], "b": [interval(2, 4, "run", "b")]}
    found = {"a": [_found("a"), _found("a", 4, 4), _found("a", label="jump")], "z": [_found("z")]}
    report = score_results(truth, found, results="r", data="t")
    notes = " ".join(report.notes)
    for name in ("z", "b", "jump", "1 detections"):
        assert name in notes
    assert report.detection["0.5:0.05:0.95"].average_precision["run"] == (0.0,) * 10
    assert "run" in report.to_markdown()


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ConfigError, match="t"):
        score_results({"a": []}, {}, results="r", data="t")
    with pytest.raises(ConfigError, match=r"'z'.*'a'"):
        score_results({"a": [interval(2, 4, video="a")]}, {"z": [_found("z")]}, results="r", data="t")


def test_no_detections_are_scored_as_none(tmp_path: Path) -> None:
    truth = {"a": [interval(2, 4, video="a")]}
    report = score_results(truth, {}, results="r", data="t")
    assert report.detection["0.5:0.05:0.95"].average_map == 0.0
    report.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.md", "results.json", "truth.json"}
