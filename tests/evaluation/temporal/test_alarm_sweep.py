import numpy as np
import pytest

from kinescan.evaluation.temporal.alarm_sweep import AlarmSweep, alarms_of, shifted
from kinescan.events.predictions import FramePredictions
from kinescan.events.rules import ClassRules, EventRules

CLASSES = ("background", "fall", "run")


def _predictions(seed: int) -> FramePredictions:
    draw = np.random.default_rng(seed)
    num_frames = int(draw.choice([0, 1, 2, 40, 150]))
    steps = draw.choice([0.0, 0.04, 0.08, 0.3, 1.0], size=num_frames) if seed % 3 else np.full(num_frames, 0.1)
    seconds = np.cumsum(steps) if seed % 7 else np.cumsum(steps) * 3
    scores = np.abs(np.cumsum(draw.normal(0, 0.25, (num_frames, 3)), axis=0)) % 1
    end = float(seconds[-1] + draw.choice([0.0, 0.1, 0.5])) if num_frames else 1.0
    if seed % 2:
        scores = scores.round(1)
    return FramePredictions(
        video_id=f"v{seed}", seconds=seconds, scores=scores.astype(np.float32), classes=CLASSES, end_seconds=end
    )


@pytest.mark.parametrize("seed", range(40))
def test_a_sweep_gives_the_alarms_of_the_detector(seed: int) -> None:
    predictions, draw = _predictions(seed), np.random.default_rng(1000 + seed)
    sweep = AlarmSweep(predictions)
    for _ in range(6):
        rules = EventRules(
            on=float(draw.uniform(0.2, 0.95)),
            least_seconds=float(draw.choice([0.0, 0.1, 0.2, 0.9])),
            merge_seconds=float(draw.choice([0.0, 0.1, 0.5, 2.0])),
            smooth_seconds=float(draw.choice([0.0, 0.2])),
            gap_seconds=float(draw.choice([0.2, 2.0])),
            classes={"run": ClassRules(on=0.8, off=float(draw.choice([0.2, 0.8])))},
        )
        expected = sorted((alarm.label, alarm.seconds) for alarm in alarms_of(predictions, rules))
        found = sorted((alarm.label, alarm.seconds) for alarm in sweep.alarms(rules))
        assert [label for label, _ in found] == [label for label, _ in expected]
        assert [seconds for _, seconds in found] == pytest.approx([seconds for _, seconds in expected], abs=1e-9)


def test_a_sweep_looks_at_the_classes_that_are_wanted() -> None:
    predictions = _predictions(4)
    found = AlarmSweep(predictions).alarms(EventRules(on=0.3), ["run"])
    assert {alarm.label for alarm in found} == {"run"}


def test_shifted_thresholds_keep_their_order_and_the_times() -> None:
    rules = EventRules(on=0.5, least_seconds=0.7, classes={"fall": ClassRules(on=0.9, least_seconds=0.1)})
    looser, stricter = (shifted(rules, CLASSES, shift) for shift in (-3.0, 3.0))
    for label in ("fall", "run"):
        assert looser.of(label).on < rules.of(label).on < stricter.of(label).on
        assert looser.of(label).off <= looser.of(label).on
    assert stricter.of("fall").least_seconds == 0.1
    assert stricter.least_seconds == 0.7
