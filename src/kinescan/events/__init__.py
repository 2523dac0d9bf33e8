"""From scores of frames to events: when something began and ended, and who is told."""

from kinescan.events.decoding import DecodingRules, decode_events, decode_frames
from kinescan.events.detector import Event, EventDetector, EventUpdate, detect_events
from kinescan.events.predictions import FramePredictions
from kinescan.events.rules import ClassRules, EventRules
from kinescan.events.told import Told

__all__ = [
    "ClassRules",
    "DecodingRules",
    "Event",
    "EventDetector",
    "EventRules",
    "EventUpdate",
    "FramePredictions",
    "Told",
    "decode_events",
    "decode_frames",
    "detect_events",
]
