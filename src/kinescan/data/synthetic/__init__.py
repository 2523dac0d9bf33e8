"""Synthetic data: videos in which only the motion, or only the look, tells the class, events, stills."""

from kinescan.data.synthetic.appearance import AppearanceConfig, make_appearance
from kinescan.data.synthetic.event_scene import EVENT_PAIRS
from kinescan.data.synthetic.events import EventsConfig, make_events
from kinescan.data.synthetic.harder import MOTION_LEVELS, level_settings
from kinescan.data.synthetic.motion import MOTION_PAIRS, USUAL_PAIRS, MotionConfig, make_motion
from kinescan.data.synthetic.shapes import SHAPES
from kinescan.data.synthetic.stills import (
    NUM_COLOUR_TARGETS,
    NUM_POSE_TARGETS,
    NUM_STILL_TARGETS,
    StillClips,
    Stills,
    still_batch,
)
from kinescan.data.synthetic.textures import FAMILIES, TEST_TEXTURES, TRAIN_TEXTURES
from kinescan.data.synthetic.windows import WindowConfig, make_windows
from kinescan.data.synthetic.writing import SyntheticConfig, SyntheticReport

__all__ = [
    "EVENT_PAIRS",
    "FAMILIES",
    "MOTION_LEVELS",
    "MOTION_PAIRS",
    "NUM_COLOUR_TARGETS",
    "NUM_POSE_TARGETS",
    "NUM_STILL_TARGETS",
    "SHAPES",
    "TEST_TEXTURES",
    "TRAIN_TEXTURES",
    "USUAL_PAIRS",
    "AppearanceConfig",
    "EventsConfig",
    "MotionConfig",
    "StillClips",
    "Stills",
    "SyntheticConfig",
    "SyntheticReport",
    "WindowConfig",
    "level_settings",
    "make_appearance",
    "make_events",
    "make_motion",
    "make_windows",
    "still_batch",
]
