import logging
from pathlib import Path

import pytest
import torch
from tests.bright_model import bright_model, write_blinking
from tests.models.conftest import Hub, hub

from kinescan.errors import CheckpointError, ConfigError
from kinescan.events.rules import ClassRules, EventRules, save_rules
from kinescan.inference.event_rules import model_rules
from kinescan.inference.event_stream import stream_events
from kinescan.inference.export import export
from kinescan.inference.exported import load_exported
from kinescan.inference.segments import predict_events
from kinescan.models.pks4 import PKS4
from kinescan.models.zoo import from_pretrained
from kinescan.runtime.fingerprint import fingerprint_of

__all__ = ["hub"]


@pytest.fixture(scope="module")
def model() -> PKS4:
    return bright_model()


def test_those_given_go_before_those_saved_and_these_before_the_defaults(
    model: PKS4, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert model_rules(model, tmp_path) == EventRules()
    assert "defaults" in caplog.text
    saved = EventRules(on=0.7, classes={"bright": ClassRules(on=0.8)})
    save_rules(tmp_path, saved, classes=model.class_names, weights=fingerprint_of(model))
    assert model_rules(model, tmp_path) == saved
    assert model_rules(model, tmp_path, content={"on": 0.6}) == EventRules(on=0.6)
    changed = model_rules(model, tmp_path, changes={"least_seconds": 1.0, "classes": {"bright": {"off": 0.3}}})
    assert changed == EventRules(on=0.7, least_seconds=1.0, classes={"bright": ClassRules(on=0.8, off=0.3)})
    everywhere = model_rules(model, tmp_path, changes={"on": 0.1})
    assert everywhere.of("bright").on == everywhere.on == 0.1, "asked for all classes, so for those with their own, too"
    both = model_rules(model, tmp_path, changes={"on": 0.1, "classes": {"bright": {"on": 0.9}}})
    assert both.of("bright").on == 0.9


def test_thresholds_of_other_weights_are_refused(model: PKS4, tmp_path: Path) -> None:
    save_rules(tmp_path, EventRules(), classes=model.class_names, weights="other")
    with pytest.raises(ConfigError, match="other weights"):
        model_rules(model, tmp_path)
    with pytest.raises(ConfigError, match="dark"):
        model_rules(model, changes={"classes": {"dark": {"on": 0.5}}})


def _saved(folder: Path, rules: EventRules) -> Path:
    model = bright_model()
    model.save_pretrained(folder)
    save_rules(folder, rules, classes=model.class_names, weights=model.weights_fingerprint())
    return folder


def test_thresholds_belong_to_a_model_wherever_it_is_saved_or_fetched_from(tmp_path: Path, hub: Hub) -> None:
    rules = EventRules(on=0.7, classes={"bright": ClassRules(on=0.95)})
    hub("me/model", _saved(tmp_path / "first", rules))
    fetched = from_pretrained("me/model")
    assert model_rules(fetched, "me/model") == rules
    fetched.save_pretrained(tmp_path / "second")
    again = from_pretrained(tmp_path / "second")
    assert model_rules(again) == model_rules(again, tmp_path / "second") == rules
    export(again, tmp_path / "exported", to="torch", step=True)
    assert model_rules(load_exported(tmp_path / "exported", allow_code=True)) == rules
    # trained further, it is another model
    with torch.no_grad():
        again.get_parameter("head.bias").add_(1.0)
    again.save_pretrained(tmp_path / "third")
    assert not (tmp_path / "third" / "events.json").exists()
    assert model_rules(from_pretrained(tmp_path / "third")) == EventRules()


def test_events_are_told_by_the_thresholds_that_a_model_was_saved_with(tmp_path: Path) -> None:
    write_blinking(tmp_path / "a.mp4", 5, 8, 5)
    plain = _saved(tmp_path / "plain", EventRules())
    long = _saved(tmp_path / "long", EventRules(least_seconds=2.0))
    for found in (from_pretrained(plain), str(plain)):
        assert len(list(stream_events(found, tmp_path / "a.mp4"))) == 2
        assert len(predict_events(found, tmp_path / "a.mp4")[0].events) == 1
    for found in (from_pretrained(long), str(long)):
        assert not list(stream_events(found, tmp_path / "a.mp4"))
        assert not predict_events(found, tmp_path / "a.mp4")[0].events


def test_damaged_thresholds_beside_a_model_are_an_error_of_ours(tmp_path: Path) -> None:
    (_saved(tmp_path, EventRules()) / "events.json").write_text("[1")
    with pytest.raises(CheckpointError, match=r"events\.json"):
        from_pretrained(tmp_path)


def test_a_model_without_a_background_says_what_that_means(
    model: PKS4, causal_model: PKS4, caplog: pytest.LogCaptureFixture
) -> None:
    model_rules(model)
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    model_rules(causal_model)
    assert [record.args for record in caplog.records if record.levelno == logging.WARNING] == [(causal_model.name,)]
