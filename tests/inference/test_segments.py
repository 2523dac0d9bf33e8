from pathlib import Path

import pytest
from tests.bright_model import bright_model, write_blinking

from kinescan.errors import ConfigError
from kinescan.events import DecodingRules
from kinescan.events.rules import ClassRules, EventRules
from kinescan.inference.event_stream import stream_events
from kinescan.inference.predictor import predict
from kinescan.inference.segments import VideoEvents, predict_events
from kinescan.models.pks4 import PKS4

RULES = EventRules(least_seconds=0.2, merge_seconds=0.2)


@pytest.fixture(scope="module")
def model() -> PKS4:
    return bright_model()


def test_a_folder_gives_what_streams_of_its_files_tell(model: PKS4, tmp_path: Path) -> None:
    write_blinking(tmp_path / "a.mp4", 10, 12, 10, 8)
    write_blinking(tmp_path / "b.mp4", 20)
    (tmp_path / "c.mp4").write_bytes(b"no video")
    seen: list[VideoEvents] = []
    found = predict_events(model, tmp_path, rules=RULES, on_video=seen.append)
    assert found == seen
    first, second, broken = found
    ends = [record for record in stream_events(model, tmp_path / "a.mp4", rules=RULES) if record.update.kind == "end"]
    assert [told.to_plain() | {"id": ""} for told in first.events] == [
        told.to_plain() | {"id": "", "sequence": number} for number, told in enumerate(ends, 1)
    ]
    assert (len(first.events), first.end_seconds) == (2, pytest.approx(4.0))
    assert (second.events, second.error) == ((), None)
    assert (broken.events, broken.end_seconds) == ((), None)
    assert broken.error
    again = predict_events(model, tmp_path / "a.mp4", rules=RULES)
    assert again == [first]
    assert first.to_plain()["events"] == [told.to_plain() for told in first.events]


def test_whole_files_are_decoded_on_request(model: PKS4, tmp_path: Path) -> None:
    video = write_blinking(tmp_path / "a.mp4", 10, 12, 1, 17)
    (found,) = predict_events(model, video, decoding=DecodingRules(mean_seconds=5.0))
    (of_rules,) = predict_events(model, video, rules=EventRules(least_seconds=0.0, merge_seconds=0.0))
    assert len(of_rules.events) == 2  # a single dark frame ends an event of thresholds
    (told,) = found.events
    assert told.update.told_at_seconds == found.end_seconds == pytest.approx(4.0)
    event = told.update.event
    assert (event.label, event.start_seconds, event.end_seconds) == ("bright", pytest.approx(1.0), pytest.approx(4.0))


def test_a_model_of_clips_and_rules_of_other_classes_are_refused(
    model: PKS4, causal_model: PKS4, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="frames"):
        predict_events(causal_model, tmp_path / "a.mp4")
    with pytest.raises(ConfigError, match="dark"):
        predict_events(model, tmp_path / "a.mp4", rules=EventRules(classes={"dark": ClassRules(on=0.5)}))


def test_a_model_of_frames_names_no_class_of_a_clip(model: PKS4, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--segments"):
        predict(model, write_blinking(tmp_path / "a.mp4", 10))
