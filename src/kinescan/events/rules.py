"""When scores of frames are an event: thresholds, times, and the file that keeps them with a model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinescan.errors import ConfigError
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import read_json_object, read_toml
from kinescan.runtime.run_folder import RULES_FILE
from kinescan.settings import build_settings, closest, to_plain
from kinescan.shapes import BACKGROUND

_OFF_RATIO = 0.8


@dataclass(frozen=True, kw_only=True)
class ClassRules:
    """What differs for one class; None is as for all.

    Attributes:
        on: score from which the class is there.
        off: score below which it is gone; None with an own `on` is 0.8 times that.
        least_seconds: as in `EventRules`.
        merge_seconds: as in `EventRules`.

    Raises:
        ConfigError: a threshold is not in (0, 1], off is above on, or a time is negative.
    """

    on: float | None = None
    off: float | None = None
    least_seconds: float | None = None
    merge_seconds: float | None = None

    def __post_init__(self) -> None:
        _check_thresholds(self.on, self.off)
        _check_times(least_seconds=self.least_seconds, merge_seconds=self.merge_seconds)


@dataclass(frozen=True, kw_only=True)
class EventRules:
    """How scores of frames become events: hysteresis thresholds and times, for each class by itself.

    A class is there from the first frame with a score of at least `on` to the first one with a score below `off`. Less
    than `merge_seconds` without it are a part of the event. The event's start is told at the first frame at which it
    has lasted `least_seconds`, merged pauses included; its end at the first frame at which `merge_seconds` have passed
    without it. An event that never lasts long enough is never told.

    Attributes:
        on: score from which a class is there, in (0, 1].
        off: score below which it is gone, at most `on`; None is 0.8 times `on`.
        least_seconds: how long an event has to last.
        merge_seconds: shorter pauses do not end an event.
        smooth_seconds: time constant of an exponential moving average of the scores, before they are compared with
            thresholds; 0: no smoothing.
        gap_seconds: frames further apart than this, and than four times their usual distance, end every event at the
            frame before, and smoothing starts anew: no event is stretched over a time without frames.
        classes: what differs for a class, by its name.

    Raises:
        ConfigError: a threshold is not in (0, 1], off is above on, or a time is negative or not finite.

    Example:
        >>> rules = EventRules(on=0.6, classes={"fall": ClassRules(on=0.9)})
        >>> rules.of("fall").off, rules.of("walk").on
        (0.72, 0.6)
    """

    on: float = 0.5
    off: float | None = None
    least_seconds: float = 0.2
    merge_seconds: float = 0.5
    smooth_seconds: float = 0.0
    gap_seconds: float = 2.0
    classes: dict[str, ClassRules] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_thresholds(self.on, self.off)
        _check_times(
            least_seconds=self.least_seconds,
            merge_seconds=self.merge_seconds,
            smooth_seconds=self.smooth_seconds,
            gap_seconds=self.gap_seconds,
        )

    def of(self, label: str) -> "LabelRules":
        """The rules of one class: its own where it has any, else those of all classes.

        Raises:
            ConfigError: off is above on.
        """
        own = self.classes.get(label, ClassRules())
        on = self.on if own.on is None else own.on
        general_off = self.off if own.on is None else None
        off = own.off if own.off is not None else general_off
        if off is not None and off > on:
            raise ConfigError(
                f"classes.{label}: off must be at most on, got off = {off} and on = {on}. Give both for this class."
            )
        return LabelRules(
            on=on,
            off=round(_OFF_RATIO * on, 12) if off is None else off,
            least_seconds=self.least_seconds if own.least_seconds is None else own.least_seconds,
            merge_seconds=self.merge_seconds if own.merge_seconds is None else own.merge_seconds,
        )

    def check_classes(self, classes: Sequence[str], *, where: str = "events") -> None:
        """Refuses rules that name a class that a model does not have.

        Raises:
            ConfigError: a class is unknown (the closest is named), or is the background, which is never an event.
        """
        named = [name for name in classes if name != BACKGROUND]
        for name in self.classes:
            if name == BACKGROUND:
                raise ConfigError(f"{where}: classes.{BACKGROUND}: the background is never an event. Leave it out.")
            if name not in named:
                raise ConfigError(f"{where}: the model has no class {name!r}. {closest(name, named)}")
            self.of(name)


@dataclass(frozen=True, kw_only=True)
class LabelRules:
    """The rules of one class, all of them known: what `EventRules.of` gives. Fields are those of `EventRules`."""

    on: float
    off: float
    least_seconds: float
    merge_seconds: float


def save_rules(path: str | Path, rules: EventRules, *, classes: Sequence[str], weights: str) -> None:
    """Writes the rules of a model, to lie beside its config.json.

    Args:
        path: the file, or the model's folder, where it is called events.json.
        rules: thresholds and times.
        classes: the model's, in the order of its scores.
        weights: fingerprint of the model's weights (`kinescan.runtime.fingerprint.fingerprint_of`): thresholds fit no
            other scores.

    Raises:
        ConfigError: the rules name a class that is not there, or the file cannot be written.
    """
    rules.check_classes(classes)
    content = {"weights": weights, "classes": list(classes), "rules": to_plain(rules)}
    write_text(_file(path), to_json(content, indent=2) + "\n")


def load_rules(path: str | Path, *, classes: Sequence[str], weights: str) -> EventRules:
    """Rules from a file, for a model.

    A file of `save_rules` belongs to one model. One that a person wrote (TOML or JSON with the fields of `EventRules`)
    says nothing of a model, and has to fit its classes.

    Args:
        path: a .toml or .json file, or a model's folder.
        classes: the model's.
        weights: the model's fingerprint.

    Raises:
        ConfigError: the file cannot be read, holds other things, names a class that the model does not have, or
            belongs to another model.
    """
    path = _file(path)
    return rules_of_content(read_content(path), where=str(path), classes=classes, weights=weights)


def read_content(path: str | Path) -> dict[str, Any]:
    """What a .toml or .json file of rules holds.

    Raises:
        ConfigError: it cannot be read.
    """
    return read_toml(path) if Path(path).suffix.lower() == ".toml" else read_json_object(path)


def rules_of_content(content: Mapping[str, Any], *, where: str, classes: Sequence[str], weights: str) -> EventRules:
    """The rules in what a file holds, for a model; see `load_rules`.

    Raises:
        ConfigError: as `load_rules`.
    """
    rules = build_rules(_of_model(content, where, classes, weights), where=where)
    rules.check_classes(classes, where=where)
    return rules


def build_rules(values: Mapping[str, Any], *, where: str = "events") -> EventRules:
    """Rules from plain values, such as a table of a TOML file.

    Raises:
        ConfigError: a key is unknown, or a value makes no sense.
    """
    return build_settings(EventRules, values, where=where)


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / RULES_FILE if path.is_dir() else path


def _of_model(content: Mapping[str, Any], path: str, classes: Sequence[str], weights: str) -> Mapping[str, Any]:
    """The rules in a file, where they are of this model or of none."""
    if "weights" not in content and "rules" not in content:
        return content
    kept = content.get("rules")
    if not (
        isinstance(kept, dict) and isinstance(content.get("weights"), str) and isinstance(content.get("classes"), list)
    ):
        raise ConfigError(
            f"{path} must hold weights, classes and rules, as they are saved with a model, or the rules alone. "
            "Save it again (kinescan eval RUN --set thresholds=choose), or write the rules alone."
        )
    if content["classes"] != list(classes):
        raise ConfigError(
            f"{path} holds thresholds of another model: its classes are {_listed(content['classes'])}, this model's "
            f"{_listed(classes)}. Give the file of this model, or one with the rules alone."
        )
    if content["weights"] != weights:
        raise ConfigError(
            f"{path} holds thresholds of other weights, whose scores they fit and not those of this model. Choose "
            "them anew (kinescan eval RUN --set thresholds=choose), or give a file with the rules alone."
        )
    return kept


def _listed(classes: Sequence[Any], most: int = 6) -> str:
    more = f" and {len(classes) - most} more" if len(classes) > most else ""
    return ", ".join(map(str, classes[:most])) + more


def _check_thresholds(on: float | None, off: float | None) -> None:
    for name, value in (("on", on), ("off", off)):
        if value is not None and not 0 < value <= 1:
            raise ConfigError(f"{name} must be a score above 0 and at most 1, got {value}.")
    if on is not None and off is not None and off > on:
        raise ConfigError(f"off must be at most on, got off = {off} and on = {on}.")


def _check_times(**times: float | None) -> None:
    for name, value in times.items():
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{name} must be a number of seconds, 0 or more, got {value}.")
