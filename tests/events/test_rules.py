import json
from pathlib import Path

import pytest

from kinescan.errors import ConfigError
from kinescan.events.rules import ClassRules, EventRules, build_rules, load_rules, save_rules
from kinescan.settings import to_plain

CLASSES = ("background", "fall", "walk")


def test_defaults_of_a_class_follow_those_of_all() -> None:
    rules = EventRules(on=0.6, least_seconds=1.0, classes={"fall": ClassRules(on=0.9, merge_seconds=2.0)})
    assert (rules.of("walk").on, rules.of("walk").off) == (0.6, 0.48)
    assert (rules.of("fall").on, rules.of("fall").off) == (0.9, 0.72)
    assert (rules.of("fall").least_seconds, rules.of("fall").merge_seconds) == (1.0, 2.0)
    assert EventRules(on=0.6, off=0.3).of("walk").off == 0.3
    assert EventRules(classes={"fall": ClassRules(off=0.2)}).of("fall").off == 0.2


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"on": 0.0}, "on"),
        ({"on": 1.5}, "on"),
        ({"on": float("nan")}, "on"),
        ({"on": 0.5, "off": 0.6}, "off"),
        ({"least_seconds": -1.0}, "least_seconds"),
        ({"merge_seconds": float("inf")}, "merge_seconds"),
        ({"smooth_seconds": -0.1}, "smooth_seconds"),
        ({"gap_seconds": float("nan")}, "gap_seconds"),
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        EventRules(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"onn": 0.5}, "'on'"),
        ({"on": "high"}, "on"),
        ({"classes": {"fall": {"onn": 0.5}}}, "classes.fall.onn"),
        ({"classes": {"fall": {"on": 2.0}}}, "fall"),
        ({"classes": {"fall": {"on": 0.3, "off": 0.4}}}, "off"),
        ({"classes": {"fall": 0.5}}, "fall"),
        ({"classes": 3}, "classes"),
    ],
)
def test_plain_values_are_checked(values: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build_rules(values)


def test_plain_values_and_back() -> None:
    rules = EventRules(on=0.6, off=0.5, smooth_seconds=0.3, classes={"fall": ClassRules(on=0.9)})
    assert build_rules(to_plain(rules)) == rules


@pytest.mark.parametrize("name", ["fal", "background"])
def test_classes_that_can_be_no_event_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        EventRules(classes={name: ClassRules(on=0.9)}).check_classes(CLASSES)


def test_off_above_a_class_own_on_is_refused() -> None:
    rules = EventRules(on=0.5, classes={"fall": ClassRules(off=0.6)})
    with pytest.raises(ConfigError, match=r"classes\.fall"):
        rules.check_classes(CLASSES)


def test_saved_with_a_model_and_read_for_it_alone(tmp_path: Path) -> None:
    rules = EventRules(on=0.6, classes={"fall": ClassRules(on=0.9)})
    save_rules(tmp_path, rules, classes=CLASSES, weights="abc")
    assert load_rules(tmp_path, classes=CLASSES, weights="abc") == rules
    assert load_rules(tmp_path / "events.json", classes=CLASSES, weights="abc") == rules
    with pytest.raises(ConfigError, match="other weights"):
        load_rules(tmp_path, classes=CLASSES, weights="abx")
    with pytest.raises(ConfigError, match="another model"):
        load_rules(tmp_path, classes=("background", "walk", "fall"), weights="abc")


def test_rules_of_a_person_belong_to_no_model(tmp_path: Path) -> None:
    toml = tmp_path / "rules.toml"
    toml.write_text("on = 0.6\n[classes.fall]\non = 0.9\n")
    as_json = tmp_path / "rules.json"
    as_json.write_text(json.dumps({"on": 0.6, "classes": {"fall": {"on": 0.9}}}))
    wanted = EventRules(on=0.6, classes={"fall": ClassRules(on=0.9)})
    assert load_rules(toml, classes=CLASSES, weights="x") == load_rules(as_json, classes=CLASSES, weights="y") == wanted
    with pytest.raises(ConfigError, match="fall"):
        load_rules(toml, classes=("jump",), weights="x")


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("a.json", "{", "JSON"),
        ("a.json", "[]", "object"),
        ("a.toml", "on = ", "TOML"),
        ("a.json", '{"weights": 3, "rules": {}}', "weights"),
        ("a.json", '{"weights": "abc", "classes": ["a"]}', "rules"),
        ("a.toml", "onset = 0.5", "onset"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, text: str, named: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=named):
        load_rules(tmp_path / name, classes=CLASSES, weights="abc")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load_rules(tmp_path / "none.toml", classes=CLASSES, weights="abc")
