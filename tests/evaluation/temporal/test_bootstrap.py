import numpy as np
import pytest

from kinescan.data.frame_labels import frame_truth
from kinescan.data.intervals import Interval
from kinescan.evaluation.temporal import bootstrap, detection_map, frame_map, score_alarms
from kinescan.evaluation.temporal.alarm_sweep import alarms_of
from kinescan.evaluation.temporal.bootstrap import alarm_scores, detection_map_score, frame_map_score, resamples
from kinescan.evaluation.temporal.intervals import Detection
from kinescan.evaluation.temporal.proposals import propose_intervals
from kinescan.events.predictions import FramePredictions
from kinescan.events.rules import EventRules

from .made_up import CLASSES, interval

NUM_VIDEOS = 5


def _case(seed: int) -> tuple[list[FramePredictions], dict[str, tuple[Interval, ...]]]:
    """Videos of noise with a few events; the last video has no event."""
    draw = np.random.default_rng(seed)
    predictions, truth = [], {}
    for video in range(NUM_VIDEOS):
        name, length = f"v{video}", 20.0 + video
        seconds = np.arange(int(length * 5)) / 5
        logits = draw.normal(0, 1, (len(seconds), 3))
        intervals = []
        for start in (2.0, 8.0, 14.0)[: 0 if video == NUM_VIDEOS - 1 else 3]:
            label = CLASSES[1 + int(draw.integers(2))]
            intervals.append(interval(start, start + 3, label, name))
            logits[(seconds >= start + 0.5) & (seconds < start + 3), CLASSES.index(label)] += draw.uniform(0, 3)
        scores = np.exp(logits)
        scores = (scores / scores.sum(1, keepdims=True)).round(2).astype(np.float32)
        predictions.append(
            FramePredictions(video_id=name, seconds=seconds, scores=scores, classes=CLASSES, end_seconds=length)
        )
        truth[name] = tuple(intervals)
    return predictions, truth


def _repeated(
    predictions: list[FramePredictions], truth: dict[str, tuple[Interval, ...]], row: np.ndarray
) -> tuple[list[FramePredictions], dict[str, tuple[Interval, ...]]]:
    """A data set in which each video stands as often as it was sampled, under ids of its own."""
    all_predictions, all_truth = [], {}
    for one, count in zip(predictions, row, strict=True):
        for copy in range(int(count)):
            name = f"{one.video_id}-{copy}"
            all_predictions.append(
                FramePredictions(
                    video_id=name,
                    seconds=one.seconds,
                    scores=one.scores,
                    classes=one.classes,
                    end_seconds=one.end_seconds,
                )
            )
            all_truth[name] = tuple(
                interval(i.start_seconds, i.end_seconds, i.label, name) for i in truth[one.video_id]
            )
    return all_predictions, all_truth


def test_resamples_draw_as_many_videos_as_there_are() -> None:
    counts = resamples(7, 50, seed=0)
    assert counts.shape == (50, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert (resamples(7, 50, seed=0) == counts).all()


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_resamples_are_those_of_the_repeated_videos(seed: int) -> None:
    predictions, truth = _case(seed)
    counts = np.concatenate([np.ones((1, NUM_VIDEOS)), resamples(NUM_VIDEOS, 6, seed), [[0, 0, 0, 0, 5]]])
    detections: dict[str, list[Detection]] = {one.video_id: propose_intervals(one) for one in predictions}
    rules = EventRules(on=0.5, least_seconds=0.2)
    by_video = [
        score_alarms(truth[one.video_id], alarms_of(one, rules), hours=one.end_seconds / 3600) for one in predictions
    ]
    found = {
        "frame_map": frame_map_score(predictions, truth)(counts),
        "detection": detection_map_score(truth, detections, (0.3, 0.5))(counts),
        **{name: score(counts) for name, score in alarm_scores(by_video, 0.5).items()},
    }
    for index, row in enumerate(counts):
        repeated, repeated_truth = _repeated(predictions, truth, row)
        marked = [frame_truth(repeated_truth[one.video_id], one.seconds, CLASSES) for one in repeated]
        frames = frame_map(
            np.concatenate(marked),
            np.concatenate([one.scores for one in repeated]),
            labels=CLASSES,
            background="background",
        )
        intervals = [one for of_video in repeated_truth.values() for one in of_video]
        alarms = score_alarms(
            intervals,
            [alarm for one in repeated for alarm in alarms_of(one, rules)],
            hours=sum(one.end_seconds for one in repeated) / 3600,
        )
        expected = {
            "frame_map": frames.mean,
            "missed": alarms.missed_ratio,
            "soon": alarms.told_within(0.5),
            "false_alarms_per_hour": alarms.false_alarms_per_hour,
            "delay": alarms.delay_seconds(0.5),
        }
        for name, value in expected.items():
            assert found[name][index] == pytest.approx(value, abs=1e-9, nan_ok=True), name
    pooled = [one for of_video in detections.values() for one in of_video]
    everything = detection_map([one for own in truth.values() for one in own], pooled, tious=(0.3, 0.5))
    assert found["detection"][0] == pytest.approx(everything.average_map, abs=1e-12)
    assert np.isnan(found["detection"][-1])


def test_many_levels_of_scores_change_little(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, truth = _case(0)
    exact = frame_map_score(predictions, truth)(np.ones((1, NUM_VIDEOS)))
    monkeypatch.setattr(bootstrap, "MOST_LEVELS", 60)
    assert frame_map_score(predictions, truth)(np.ones((1, NUM_VIDEOS))) == pytest.approx(exact, abs=0.02)
