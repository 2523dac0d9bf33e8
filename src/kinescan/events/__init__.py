"""From scores of frames to events: when something began and ended, and who is told."""

from kinescan.events.detector import Event, EventDetector, EventUpdate, detect_events
from kinescan.events.predictions import FramePredictions
from kinescan.events.rules import ClassRules, EventRules
from kinescan.events.told import Told

__all__ = [
    "ClassRules",
    "Event",
    "EventDetector",
    "EventRules",
    "EventUpdate",
    "FramePredictions",
    "Told",
    "detect_events",
]
