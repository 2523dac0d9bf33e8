"""Which rules of events belong to a model."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinescan.events.rules import EventRules, build_rules, load_rules, rules_of_content
from kinescan.models.classifier import VideoClassifier
from kinescan.runtime.run_folder import RULES_FILE
from kinescan.settings import to_plain
from kinescan.shapes import BACKGROUND

logger = logging.getLogger(__name__)


def model_rules(
    model: VideoClassifier,
    folder: str | Path | None = None,
    *,
    content: Mapping[str, Any] | None = None,
    where: str = "events",
    changes: Mapping[str, Any] | None = None,
) -> EventRules:
    """The rules for a model: those given, else those saved with it, else the defaults; which, the log says.

    Args:
        model: whose scores they are for.
        folder: the folder that it came from, in which its events.json lies.
        content: what a file of rules holds; see `load_rules`.
        where: name of that file, for messages.
        changes: single settings that go before all of them, nested as in a file: one for all classes goes before what
            a file says of one class, too.

    Raises:
        ConfigError: a setting makes no sense, a class is unknown, or thresholds are those of another model.
    """
    classes, weights = model.class_names, model.weights_fingerprint()
    beside = None if folder is None else Path(folder) / RULES_FILE
    if content:
        rules, origin = rules_of_content(content, where=where, classes=classes, weights=weights), where
    elif beside is not None and beside.is_file():
        rules, origin = load_rules(beside, classes=classes, weights=weights), str(beside)
    elif model.saved_rules is not None:
        where = f"the {RULES_FILE} of {model.name}"
        rules, origin = rules_of_content(model.saved_rules, where=where, classes=classes, weights=weights), where
    else:
        rules, origin = EventRules(), "the defaults; none were chosen for this model"
    if changes:
        rules = build_rules(_merged(_without_own(to_plain(rules), changes), changes))
        rules.check_classes(classes)
    logger.info(
        "events: on = %g, off = %g, least %g s, merge %g s, %d class(es) with their own (%s)",
        *(rules.on, rules.of("").off, rules.least_seconds, rules.merge_seconds, len(rules.classes), origin),
    )
    if BACKGROUND not in classes and not model.overlapping:
        logger.warning(
            "%s has no class for nothing happens: its scores say which class is the likeliest, so that some class is "
            "nearly always an event. Train on labels with a start and an end for a background.",
            model.name,
        )
    return rules


def _without_own(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The rules without those of single classes where `changes` set them for all."""
    general = {name for name in ("on", "off", "least_seconds", "merge_seconds") if name in changes}
    if "on" in general:
        # The threshold for the end is a part of that for the start, unless both are given.
        general.add("off")
        values = values | {"off": None}
    classes = {
        label: {name: value for name, value in own.items() if name not in general}
        for label, own in values["classes"].items()
    }
    return values | {"classes": classes}


def _merged(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, change in changes.items():
        before = merged.get(key)
        both = isinstance(before, dict) and isinstance(change, Mapping)
        merged[key] = _merged(before or {}, change) if both else change
    return merged
