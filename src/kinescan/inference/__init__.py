"""A trained model on files and streams, and pictures of what it looks at."""

from typing import TYPE_CHECKING

from kinescan.inference.batch_predictor import BatchPredictor
from kinescan.inference.explain import KinematicMaps, kinematic_maps
from kinescan.inference.export import export
from kinescan.inference.export_record import ExportCheck, ExportRecord
from kinescan.inference.exported import ExportedModel, load_exported
from kinescan.inference.predictor import Prediction, predict, predict_iter
from kinescan.inference.stream import StreamPrediction, StreamSession, stream
from kinescan.inference.stream_state import load_stream_state, save_stream_state
from kinescan.inference.streams import Camera, stream_many
from kinescan.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from kinescan.inference.drawing.strip import draw_strip

__all__ = [
    "BatchPredictor",
    "Camera",
    "ExportCheck",
    "ExportRecord",
    "ExportedModel",
    "KinematicMaps",
    "Prediction",
    "StreamPrediction",
    "StreamSession",
    "draw_strip",
    "export",
    "kinematic_maps",
    "load_exported",
    "load_stream_state",
    "predict",
    "predict_iter",
    "save_stream_state",
    "stream",
    "stream_many",
]

__getattr__ = lazy_names(__name__, {"kinescan.inference.drawing.strip": ["draw_strip"]})
