"""Times are exact up to one part in a billion; frames lie 0.1 s apart where nothing else is said."""

import json
import math

import numpy as np
import pytest

from kinescan.errors import CheckpointError, ConfigError, ShapeError
from kinescan.events.detector import EventDetector, EventUpdate, detect_events, detect_updates
from kinescan.events.predictions import FramePredictions
from kinescan.events.rules import ClassRules, EventRules

CLASSES = ("background", "fall")
PLAIN = EventRules(on=0.5, off=0.4, least_seconds=0.0, merge_seconds=0.0)

Told = tuple[str, str, float, float | None, float]


def _told(updates: list[EventUpdate]) -> list[Told]:
    return [
        (
            update.kind,
            update.event.id,
            round(update.event.start_seconds, 9),
            None if update.event.end_seconds is None else round(update.event.end_seconds, 9),
            round(update.told_at_seconds, 9),
        )
        for update in updates
    ]


def _run(scores: list[float], rules: EventRules, *, step: float = 0.1, finish: bool = True) -> list[Told]:
    detector = EventDetector(CLASSES, rules, stream_id="s")
    updates = [
        update for frame, score in enumerate(scores) for update in detector.push(frame * step, [1 - score, score])
    ]
    return _told(updates + (detector.finish(len(scores) * step) if finish else []))


def test_told_at_once_without_times() -> None:
    assert _run([0.1, 0.9, 0.9, 0.1, 0.1], PLAIN) == [("start", "s-1", 0.1, None, 0.1), ("end", "s-1", 0.1, 0.3, 0.3)]


def test_an_event_stays_until_its_score_is_below_off() -> None:
    told = _run([0.45, 0.6, 0.45, 0.4, 0.39, 0.45, 0.1], PLAIN)
    assert told == [("start", "s-1", 0.1, None, 0.1), ("end", "s-1", 0.1, 0.4, 0.4)]


def test_the_start_is_told_when_it_has_lasted_long_enough() -> None:
    rules = EventRules(least_seconds=0.3, merge_seconds=0.0)
    told = _run([0.1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.1], rules)
    assert told == [("start", "s-1", 0.1, None, 0.4), ("end", "s-1", 0.1, 0.6, 0.6)]


def test_one_that_has_lasted_exactly_long_enough_is_told_at_its_end() -> None:
    rules = EventRules(least_seconds=0.3, merge_seconds=0.0)
    told = _run([0.1, 0.9, 0.9, 0.9, 0.1, 0.1], rules)
    assert told == [("start", "s-1", 0.1, None, 0.4), ("end", "s-1", 0.1, 0.4, 0.4)]


def test_what_is_too_short_is_never_told_and_takes_no_number() -> None:
    rules = EventRules(least_seconds=0.3, merge_seconds=0.0)
    told = _run([0.9, 0.9, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9, 0.1], rules)
    assert told == [("start", "s-1", 0.4, None, 0.7), ("end", "s-1", 0.4, 0.8, 0.8)]


def test_a_pause_shorter_than_merge_seconds_is_a_part_of_the_event() -> None:
    rules = EventRules(least_seconds=0.0, merge_seconds=0.3)
    told = _run([0.9, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1], rules)
    assert told == [("start", "s-1", 0.0, None, 0.0), ("end", "s-1", 0.0, 0.4, 0.7)]


def test_a_pause_of_merge_seconds_ends_it() -> None:
    rules = EventRules(least_seconds=0.0, merge_seconds=0.3)
    told = _run([0.9, 0.1, 0.1, 0.1, 0.9, 0.9], rules)
    assert told == [
        ("start", "s-1", 0.0, None, 0.0),
        ("end", "s-1", 0.0, 0.1, 0.4),
        ("start", "s-2", 0.4, None, 0.4),
        ("end", "s-2", 0.4, 0.6, 0.6),
    ]


def test_pieces_merge_before_their_length_counts() -> None:
    rules = EventRules(least_seconds=0.4, merge_seconds=0.3)
    told = _run([0.9, 0.9, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1], rules)
    assert told == [("start", "s-1", 0.0, None, 0.4), ("end", "s-1", 0.0, 0.5, 0.8)]


def test_a_pause_at_the_end_counts_for_nothing() -> None:
    rules = EventRules(least_seconds=0.4, merge_seconds=5.0)
    assert _run([0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], rules) == []


def test_the_source_ends_what_goes_on() -> None:
    rules = EventRules(least_seconds=0.3, merge_seconds=1.0)
    assert _run([0.9, 0.9, 0.9], rules) == [("start", "s-1", 0.0, None, 0.3), ("end", "s-1", 0.0, 0.3, 0.3)]
    detector = EventDetector(CLASSES, rules, stream_id="s")
    assert detector.finish() == []
    detector.push(0.0, [0.1, 0.9])
    assert detector.finish() == []
    # the next frame begins anew, whatever its time
    assert detector.push(0.0, [0.1, 0.9]) == []


def test_smoothing_spares_single_frames_and_has_its_time_constant() -> None:
    rules = EventRules(on=0.5, least_seconds=0.0, merge_seconds=0.0, smooth_seconds=0.4)
    assert _run([0.0, 0.0, 1.0, 0.0, 0.0], rules) == []
    detector = EventDetector(CLASSES, rules)
    detector.push(0.0, [1.0, 0.0])
    detector.push(0.4, [0.0, 1.0])
    smoothed = detector.state()["smoothed"]
    assert smoothed[1] == pytest.approx(1 - math.exp(-1))


def test_peak_and_mean_are_those_of_the_event_with_its_merged_pauses() -> None:
    rules = EventRules(on=0.5, least_seconds=0.0, merge_seconds=0.3)
    detector = EventDetector(CLASSES, rules)
    updates = []
    for frame, score in enumerate([0.6, 0.1, 0.8, 0.2, 0.1, 0.1, 0.1]):
        updates += detector.push(frame / 10, [1 - score, score])
    start, end = updates
    assert (start.event.peak_score, start.event.mean_score) == (0.6, 0.6)
    assert end.event.peak_score == 0.8
    assert end.event.mean_score == pytest.approx((0.6 + 0.1 + 0.8) / 3)


def test_classes_are_independent_and_the_background_is_no_event() -> None:
    detector = EventDetector(("background", "a", "b"), PLAIN, stream_id="s")
    updates = detector.push(0.0, [0.9, 0.6, 0.7]) + detector.push(0.1, [0.9, 0.1, 0.7])
    assert [(update.kind, update.event.label, update.event.id) for update in updates] == [
        ("start", "a", "s-1"),
        ("start", "b", "s-2"),
        ("end", "a", "s-1"),
    ]
    assert [event.label for event in detector.open_events] == ["b"]


def test_a_class_first_in_the_list_is_an_event_where_there_is_no_background() -> None:
    assert EventDetector(("a", "b"), PLAIN).push(0.0, [0.9, 0.1])[0].event.label == "a"


def test_each_class_has_its_own_rules() -> None:
    rules = EventRules(least_seconds=0.0, merge_seconds=0.0, classes={"b": ClassRules(on=0.9, least_seconds=0.1)})
    detector = EventDetector(("a", "b"), rules)
    assert [update.event.label for update in detector.push(0.0, [0.6, 0.6])] == ["a"]
    assert detector.push(0.1, [0.6, 0.95]) == []
    assert [update.event.label for update in detector.push(0.2, [0.6, 0.95])] == ["b"]


def test_a_jump_of_two_hours_ends_the_event_before_it() -> None:
    detector = EventDetector(CLASSES, PLAIN, stream_id="s")
    updates = []
    for seconds in (0.0, 0.1, 0.2, 7200.0, 7200.1):
        updates += detector.push(seconds, [0.1, 0.9])
    assert _told(updates) == [
        ("start", "s-1", 0.0, None, 0.0),
        ("end", "s-1", 0.0, 0.2, 7200.0),
        ("start", "s-2", 7200.0, None, 7200.0),
    ]


def test_a_gap_in_a_pause_ends_the_event_where_the_pause_began() -> None:
    detector = EventDetector(CLASSES, EventRules(least_seconds=0.0, merge_seconds=60.0), stream_id="s")
    updates = detector.push(0.0, [0.1, 0.9]) + detector.push(0.1, [0.9, 0.1]) + detector.push(50.0, [0.1, 0.9])
    assert _told(updates)[1] == ("end", "s-1", 0.0, 0.1, 50.0)


def test_smoothing_starts_anew_behind_a_gap() -> None:
    rules = EventRules(least_seconds=0.0, smooth_seconds=1000.0)
    detector = EventDetector(CLASSES, rules)
    detector.push(0.0, [1.0, 0.0])
    assert [update.kind for update in detector.push(100.0, [0.0, 1.0])] == ["start"]


def test_a_clock_that_runs_back_ends_events_and_one_that_repeats_does_not() -> None:
    detector = EventDetector(CLASSES, PLAIN, stream_id="s")
    updates = []
    for seconds in (5.0, 5.1, 5.1, 5.1, 2.0, 2.1):
        updates += detector.push(seconds, [0.1, 0.9])
    assert _told(updates) == [
        ("start", "s-1", 5.0, None, 5.0),
        ("end", "s-1", 5.0, 5.1, 2.0),
        ("start", "s-2", 2.0, None, 2.0),
    ]


def test_frames_that_always_lie_far_apart_are_no_gaps() -> None:
    told = _run([0.1, 0.1, 0.9, 0.9, 0.9, 0.1, 0.1], PLAIN, step=10.0)
    assert told == [("start", "s-1", 20.0, None, 20.0), ("end", "s-1", 20.0, 50.0, 50.0)]


def test_sums_of_rounded_times_are_long_enough() -> None:
    rules = EventRules(least_seconds=0.2, merge_seconds=0.12)
    detector, seconds, updates = EventDetector(CLASSES, rules, stream_id="s"), 1.0, []
    for score in [0.9] * 6 + [0.1] * 4:
        updates += detector.push(seconds, [1 - score, score])
        seconds += 0.04
    assert [round(update.told_at_seconds, 6) for update in updates] == [1.2, 1.36]


@pytest.mark.parametrize("cut", range(1, 29))
def test_goes_on_from_a_state_as_if_nothing_had_been(cut: int) -> None:
    rules = EventRules(least_seconds=0.2, merge_seconds=0.3, smooth_seconds=0.1)
    scores = np.repeat([0.1, 0.9, 0.2, 0.8, 0.1, 0.95, 0.1, 0.1, 0.9, 0.1], 3)
    whole = EventDetector(CLASSES, rules, stream_id="s")
    wanted = [whole.push(frame / 10, [1 - score, score]) for frame, score in enumerate(scores)]
    first = EventDetector(CLASSES, rules, stream_id="s")
    told = [first.push(frame / 10, [1 - score, score]) for frame, score in enumerate(scores[:cut])]
    second = EventDetector(CLASSES, rules)
    second.restore(json.loads(json.dumps(first.state())))
    told += [second.push((cut + frame) / 10, [1 - score, score]) for frame, score in enumerate(scores[cut:])]
    assert told == wanted
    assert sum(map(len, wanted)) > 4
    assert second.finish(3.0) == whole.finish(3.0)


def test_ids_of_two_streams_never_meet() -> None:
    first, second = (EventDetector(CLASSES, PLAIN).push(0.0, [0.1, 0.9])[0].event.id for _ in range(2))
    assert first != second


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["background", "walk"]},
        {"runs": {"7": {"start": 0.0, "peak": 0.9, "total": 0.9, "num_frames": 1}}},
        {"runs": {"1": {"begin": 0.0}}},
        {"runs": []},
        {"smoothed": [0.5]},
        {"last_seconds": "now"},
        {"last_seconds": float("nan")},
        {"distances": None},
        {"num_told": None},
    ],
)
def test_a_damaged_state_is_refused(change: dict[str, object]) -> None:
    detector = EventDetector(CLASSES, PLAIN)
    state = detector.state() | change
    with pytest.raises(CheckpointError):
        detector.restore(state)
    with pytest.raises(CheckpointError):
        detector.restore({})


@pytest.mark.parametrize(
    ("seconds", "scores"),
    [(float("nan"), [0.5, 0.5]), (0.0, [0.5, float("nan")]), (0.0, [0.5]), (0.0, [[0.5, 0.5]])],
)
def test_frames_without_finite_scores_are_refused(seconds: float, scores: list[float]) -> None:
    with pytest.raises(ShapeError):
        EventDetector(CLASSES, PLAIN).push(seconds, scores)


def test_rules_of_an_unknown_class_are_refused() -> None:
    with pytest.raises(ConfigError, match="fal"):
        EventDetector(CLASSES, EventRules(classes={"fal": ClassRules(on=0.9)}))


def _predictions(scores: np.ndarray, fps: float = 10.0) -> FramePredictions:
    return FramePredictions(
        video_id="a.mp4",
        seconds=np.arange(len(scores)) / fps,
        scores=scores.astype(np.float32),
        classes=("background", "fall", "walk"),
        end_seconds=len(scores) / fps,
    )


def test_a_file_has_the_events_of_a_stream_with_the_same_ids_each_time() -> None:
    scores = np.repeat(np.random.default_rng(0).random((12, 3)), 4, axis=0)
    predictions, rules = _predictions(scores), EventRules(least_seconds=0.2, merge_seconds=0.2)
    events = detect_events(predictions, rules)
    assert len(events) > 3
    assert events == detect_events(predictions, rules)
    assert len({event.id for event in events}) == len(events)
    assert [event.start_seconds for event in events] == sorted(event.start_seconds for event in events)
    told = [update.event.id for update in detect_updates(predictions, rules) if update.kind == "start"]
    assert sorted(told) == sorted(event.id for event in events)


def test_without_times_the_events_are_the_runs_of_frames_above_the_threshold() -> None:
    scores = np.random.default_rng(1).random((200, 3))
    rules = EventRules(on=0.5, off=0.5, least_seconds=0.0, merge_seconds=0.0)
    events = detect_events(_predictions(scores), rules)
    for index, label in ((1, "fall"), (2, "walk")):
        above = np.concatenate([[False], scores.astype(np.float32)[:, index] >= 0.5, [False]]).astype(int)
        wanted = list(
            zip(np.flatnonzero(np.diff(above) == 1) / 10, np.flatnonzero(np.diff(above) == -1) / 10, strict=True)
        )
        assert [(event.start_seconds, event.end_seconds) for event in events if event.label == label] == wanted


def test_an_event_is_an_interval_once_it_has_ended() -> None:
    event = detect_events(_predictions(np.array([[0.1, 0.9, 0.0]] * 5)))[0]
    interval = event.interval("a.mp4")
    assert (interval.label, interval.start_seconds, interval.end_seconds) == ("fall", 0.0, 0.5)
    started = EventDetector(CLASSES, PLAIN).push(0.0, [0.1, 0.9])[0].event
    with pytest.raises(ShapeError, match="fall"):
        started.interval("a.mp4")


def test_a_video_without_frames_has_no_events() -> None:
    assert detect_events(_predictions(np.zeros((0, 3)))) == []
