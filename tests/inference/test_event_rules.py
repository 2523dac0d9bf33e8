import logging
from pathlib import Path

import pytest
from tests.bright_model import bright_model

from kinescan.errors import ConfigError
from kinescan.events.rules import ClassRules, EventRules, save_rules
from kinescan.inference.event_rules import model_rules
from kinescan.models.pks4 import PKS4
from kinescan.runtime.fingerprint import fingerprint_of


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


def test_a_model_without_a_background_says_what_that_means(
    model: PKS4, causal_model: PKS4, caplog: pytest.LogCaptureFixture
) -> None:
    model_rules(model)
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    model_rules(causal_model)
    assert [record.args for record in caplog.records if record.levelno == logging.WARNING] == [(causal_model.name,)]
