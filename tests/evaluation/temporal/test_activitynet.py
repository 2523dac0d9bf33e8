import json
from pathlib import Path
from typing import Any

import pytest

from kinescan.errors import ConfigError
from kinescan.evaluation.temporal import Detection
from kinescan.evaluation.temporal.activitynet import read_results, read_truth, write_results, write_truth

from .made_up import interval


def _detection(video: str, score: float) -> Detection:
    return Detection(video_id=video, label="fäll \udcff", start_seconds=1.25, end_seconds=2.5, score=score)


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = {"a/ä.mp4": (_detection("a/ä.mp4", 0.1 + 0.2), _detection("a/ä.mp4", 0.3)), "b": ()}
    write_results(tmp_path / "results.json", written)
    assert read_results(tmp_path / "results.json") == written


def test_files_have_the_fields_that_the_official_evaluator_asks_for(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", {"a": [_detection("a", 1)]})
    write_truth(tmp_path / "truth.json", {"a": [interval(1, 2)], "b": []}, {"a": 9.5})
    results, truth = (json.loads((tmp_path / name).read_text()) for name in ("results.json", "truth.json"))
    assert set(results) == {"version", "results", "external_data"}
    assert set(truth) == {"version", "taxonomy", "database"}
    assert truth["database"]["a"] == {
        "subset": "test",
        "duration": 9.5,
        "annotations": [{"segment": [1, 2], "label": "fall"}],
    }
    assert truth["database"]["b"] == {"subset": "test", "duration": None, "annotations": []}


def test_lines_that_an_early_end_left_are_results(tmp_path: Path) -> None:
    line = json.dumps({"video_id": "a", "path": "x", "results": [{"label": "f", "score": 1, "segment": [0, 1]}]})
    (tmp_path / "p.jsonl").write_text(f"{line}\n\n")
    assert read_results(tmp_path / "p.jsonl")["a"][0].end_seconds == 1.0


ENTRY = {"label": "fall", "score": 0.5, "segment": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([], "results"),
        ({"database": {}}, "results"),
        ({"results": []}, "results"),
        ({"results": {"clip7": {}}}, "clip7"),
        ({"results": {"clip7": [[]]}}, "clip7"),
        *(
            ({"results": {"clip7": [ENTRY, {**ENTRY, **wrong}]}}, "entry 1 of 'clip7'")
            for wrong in (
                {"label": 3},
                {"score": "0.5"},
                {"score": None},
                {"score": True},
                {"segment": [1.0]},
                {"segment": 4},
                {"segment": ["0", "1"]},
                {"segment": [0, 1, 2]},
            )
        ),
        ({"results": {"clip7": [{**ENTRY, "segment": [0, 1e999]}]}}, "clip7"),
        ({"results": {"clip7": [{**ENTRY, "score": float("nan")}]}}, "clip7"),
    ],
)
def test_wrong_results_are_named(tmp_path: Path, content: Any, named: str) -> None:
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=named):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize("line", ["[]", "{}", '{"video_id": 3, "results": []}', '{"video_id": "a"}'])
def test_wrong_lines_are_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "p.jsonl").write_text('{"video_id": "a", "results": []}\n' + line)
    with pytest.raises(ConfigError, match="line 2"):
        read_results(tmp_path / "p.jsonl")


def _truth(tmp_path: Path, database: Any) -> Path:
    (tmp_path / "truth.json").write_text(json.dumps({"database": database}))
    return tmp_path / "truth.json"


ANNOTATION = {"segment": [1.0, 2.0], "label": "fall"}


def test_truth_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = {"a.mp4": (interval(1, 2.5), interval(0.25, 4, "run")), "b": ()}
    write_truth(tmp_path / "truth.json", written, {})
    assert read_truth(tmp_path / "truth.json") == written


def test_of_several_subsets_the_held_out_one_with_labels_is_meant(tmp_path: Path) -> None:
    database = {
        "a": {"subset": "training", "annotations": [ANNOTATION]},
        "b": {"subset": "Validation", "annotations": [ANNOTATION]},
        "c": {"subset": "validation", "annotations": []},
        "d": {"subset": "testing", "annotations": []},
    }
    assert list(read_truth(_truth(tmp_path, database))) == ["b", "c"]
    assert list(read_truth(_truth(tmp_path, database), subset="Training")) == ["a"]
    with pytest.raises(ConfigError, match="validation"):
        read_truth(_truth(tmp_path, database), subset="valid")
    database["d"]["annotations"] = [ANNOTATION]
    with pytest.raises(ConfigError, match="subset="):
        read_truth(_truth(tmp_path, database))


@pytest.mark.parametrize(
    ("database", "named"),
    [
        (None, "database"),
        ([], "database"),
        ({"clip7": []}, "database"),
        ({"clip7": {"annotations": {}}}, "clip7"),
        ({"clip7": {"annotations": [ANNOTATION, {}]}}, "annotation 1 of 'clip7'"),
        ({"clip7": {"annotations": [{**ANNOTATION, "segment": [2, None]}]}}, "clip7"),
        ({"clip7": {"annotations": [{**ANNOTATION, "label": ""}]}}, "clip7"),
    ],
)
def test_wrong_truth_is_named(tmp_path: Path, database: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read_truth(_truth(tmp_path, database))
