"""Scores of answers that have a time: intervals, frames, segments, starts and alarms."""

from kinescan.data.intervals import Interval
from kinescan.evaluation.temporal.alarms import Alarm, AlarmScores, score_alarms
from kinescan.evaluation.temporal.detection import (
    ACTIVITYNET_TIOUS,
    THUMOS_TIOUS,
    DetectionScores,
    detection_map,
)
from kinescan.evaluation.temporal.frames import FrameScores, frame_map
from kinescan.evaluation.temporal.intervals import Detection
from kinescan.evaluation.temporal.segmentation import SegmentationScores, segmentation_scores
from kinescan.evaluation.temporal.starts import StartScores, start_map

__all__ = [
    "ACTIVITYNET_TIOUS",
    "THUMOS_TIOUS",
    "Alarm",
    "AlarmScores",
    "Detection",
    "DetectionScores",
    "FrameScores",
    "Interval",
    "SegmentationScores",
    "StartScores",
    "detection_map",
    "frame_map",
    "score_alarms",
    "segmentation_scores",
    "start_map",
]
