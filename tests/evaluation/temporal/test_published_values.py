"""Every reference value of the published evaluators; the small cases stand in the project, all of them beside it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from kinescan.evaluation.temporal import (
    ACTIVITYNET_TIOUS,
    THUMOS_TIOUS,
    Detection,
    Interval,
    detection_map,
    frame_map,
    segmentation_scores,
    start_map,
)

HERE = Path(__file__).resolve().parents[2] / "golden"
SHARED = Path(__file__).resolve().parents[4] / "shared" / "fixtures"
FOLDER = SHARED if (SHARED / "temporal_metrics.json").is_file() else HERE
CASES: dict[str, Any] = json.loads((FOLDER / "temporal_metrics.json").read_text(encoding="utf-8"))
ARRAYS = load_file(FOLDER / "temporal_metrics.safetensors")
TOLERANCE = {"abs": 1e-9, "rel": 0.0, "nan_ok": True}
TIOUS = {"0.5:0.05:0.95": ACTIVITYNET_TIOUS, "0.3:0.1:0.7": THUMOS_TIOUS}


def _plain(value: Any) -> Any:
    return math.nan if value is None else value


@pytest.mark.parametrize("thresholds", TIOUS)
@pytest.mark.parametrize("name", CASES["detection"])
def test_detection_map(name: str, thresholds: str) -> None:
    case = CASES["detection"][name]
    truth = [
        Interval(video_id=video, label=a["label"], start_seconds=a["segment"][0], end_seconds=a["segment"][1])
        for video, facts in case["database"].items()
        if facts["subset"] == case["subset"]
        for a in facts["annotations"]
    ]
    detections = [
        Detection(
            video_id=video,
            label=r["label"],
            start_seconds=r["segment"][0],
            end_seconds=r["segment"][1],
            score=r["score"],
        )
        for video, results in case["results"].items()
        for r in results
    ]
    values = case["values"][thresholds]
    expected = values.get("ties_first_in_file_first", values.get("opentad"))
    if not isinstance(expected, dict) or "error" in expected:
        expected = values["activitynet"]
    scores = detection_map(truth, detections, tious=TIOUS[thresholds])
    assert set(scores.average_precision) <= set(case["classes"])
    for label, found in scores.average_precision.items():
        assert list(found) == pytest.approx([_plain(v) for v in expected["ap"][label]], **TOLERANCE)
    if scores.average_precision:
        assert list(scores.mean) == pytest.approx([_plain(v) for v in expected["mAP"]], **TOLERANCE)
    assert scores.average_map == pytest.approx(_plain(expected["average_mAP"]), **TOLERANCE)


@pytest.mark.parametrize("name", CASES["segmentation"])
def test_segmentation_scores(name: str) -> None:
    case = CASES["segmentation"][name]
    truth = {video: both["ground_truth"].split() for video, both in case["videos"].items()}
    predictions = {video: both["prediction"].split() for video, both in case["videos"].items()}
    scores = segmentation_scores(truth, predictions)
    expected = case["values"]
    assert scores.accuracy == pytest.approx(expected["accuracy"], **TOLERANCE)
    assert scores.edit == pytest.approx(expected["edit"], **TOLERANCE)
    for overlap in (10, 25, 50):
        assert scores.f1[overlap / 100] == pytest.approx(expected[f"f1@{overlap}"], **TOLERANCE)
        for video, of_video in expected["per_video"].items():
            assert list(scores.counts_of_video[video][overlap / 100]) == of_video[f"tp_fp_fn@{overlap}"]
            assert scores.edit_of_video[video] == pytest.approx(of_video["edit"], **TOLERANCE)


@pytest.mark.parametrize("name", CASES["frames"])
def test_frame_map(name: str) -> None:
    case = CASES["frames"][name]
    truth, scores = ARRAYS[f"frames/{name}/ground_truth"], ARRAYS[f"frames/{name}/scores"]
    labels = [f"c{index}" for index in range(truth.shape[1])]
    ambiguous = "c21" if case["layout"] == "THUMOS" else None
    found = frame_map(truth, scores, labels=labels, background="c0", ambiguous=ambiguous)
    expected = case["values"]
    assert found.num_dropped == case.get("rows_dropped", 0)
    assert found.mean == pytest.approx(expected["mAP"], **TOLERANCE)
    assert dict(found.average_precision) == pytest.approx(expected["per_class_AP"], **TOLERANCE)
    if "mcAP_ties" in case:
        expected = {
            "mcAP": case["mcAP_ties"]["mcAP"]["first_in_file_first"],
            "per_class_cAP": {k: v["first_in_file_first"] for k, v in case["mcAP_ties"]["per_class"].items()},
        }
    assert found.calibrated_mean == pytest.approx(expected["mcAP"], **TOLERANCE)
    assert dict(found.calibrated) == pytest.approx(expected["per_class_cAP"], **TOLERANCE)


def test_frame_map_of_each_video() -> None:
    case, first = CASES["frames"]["three_videos"], 0
    for length, expected in zip(case["video_lengths"], case["values_each_video"], strict=True):
        part = slice(first, first + length)
        first += length
        truth, scores = (ARRAYS[f"frames/three_videos/{kind}"][part] for kind in ("ground_truth", "scores"))
        found = frame_map(truth, scores, labels=[f"c{k}" for k in range(truth.shape[1])], background="c0")
        assert found.mean == pytest.approx(expected["mAP"], **TOLERANCE)
        assert found.calibrated_mean == pytest.approx(expected["mcAP"], **TOLERANCE)


def _starts(case: dict[str, Any]) -> list[Interval]:
    return [
        Interval(video_id=video, label=label, start_seconds=start, end_seconds=start + 1)
        for video, by_label in case["starts"].items()
        for label, starts in by_label.items()
        for start in starts
        if start <= case["video_length"][video]
    ]


@pytest.mark.parametrize("name", [name for name in CASES["point"] if name != "frames_random"])
def test_start_map(name: str) -> None:
    case = CASES["point"][name]
    detections = [
        Detection(video_id=str(video), label=label, start_seconds=time, end_seconds=time, score=score)
        for video, time, label, score in case["detections"]
    ]
    _compare_starts(case, case["values"], detections)


def test_start_map_from_frames() -> None:
    case = CASES["point"]["frames_random"]
    arrays = {kind: ARRAYS[f"point/frames_random/{kind}"] for kind in ("video", "times", "start_scores")}
    detections = [
        Detection(
            video_id=str(arrays["video"][frame]),
            label=case["classes"][column - 1],
            start_seconds=float(arrays["times"][frame]),
            end_seconds=float(arrays["times"][frame]),
            score=float(arrays["start_scores"][frame, column]),
        )
        for frame, column in zip(*np.nonzero(arrays["start_scores"]), strict=True)
        if column > 0
    ]
    _compare_starts(case, case["values_starts_only"], detections)


def _compare_starts(case: dict[str, Any], values: dict[str, Any], detections: list[Detection]) -> None:
    for depth, by_tolerance in values.items():
        seconds = [float(name.removesuffix("s")) for name in by_tolerance]
        found = start_map(
            _starts(case),
            detections,
            labels=case["classes"],
            tolerances_seconds=seconds,
            depth=float(depth.removeprefix("depth_")),
        )
        for index, expected in enumerate(by_tolerance.values()):
            assert found.mean[index] == pytest.approx(expected["mAP"], **TOLERANCE)
            for label, value in expected["ap"].items():
                assert found.average_precision[label][index] == pytest.approx(value, **TOLERANCE)
