"""kinescan: video understanding whose cost grows linearly with the number of frames."""

import importlib
from typing import TYPE_CHECKING, Any

from kinescan.version import __version__

if TYPE_CHECKING:
    from kinescan import config as config
    from kinescan import data as data
    from kinescan import errors as errors
    from kinescan import evaluation as evaluation
    from kinescan import layers as layers
    from kinescan import models as models
    from kinescan import ops as ops
    from kinescan import runs as runs
    from kinescan import vlm as vlm
    from kinescan.config import RunConfig as RunConfig
    from kinescan.inference.event_stream import stream_events as stream_events
    from kinescan.inference.export import export as export
    from kinescan.inference.exported import load_exported as load_exported
    from kinescan.inference.predictor import predict as predict
    from kinescan.inference.predictor import predict_iter as predict_iter
    from kinescan.inference.registration import register_transformers as register_transformers
    from kinescan.inference.segments import predict_events as predict_events
    from kinescan.inference.stream import stream as stream
    from kinescan.models.registry import list_models as list_models
    from kinescan.models.registry import register_model as register_model
    from kinescan.models.still import SkipUnchanged as SkipUnchanged
    from kinescan.models.zoo import create_model as create_model
    from kinescan.models.zoo import from_pretrained as from_pretrained
    from kinescan.preprocessing import Preprocessing as Preprocessing
    from kinescan.runs.evaluate import evaluate as evaluate
    from kinescan.runs.train import train as train

_MODULES = {
    "create_model": "kinescan.models.zoo",
    "from_pretrained": "kinescan.models.zoo",
    "list_models": "kinescan.models.registry",
    "register_model": "kinescan.models.registry",
    "predict": "kinescan.inference.predictor",
    "predict_iter": "kinescan.inference.predictor",
    "predict_events": "kinescan.inference.segments",
    "stream": "kinescan.inference.stream",
    "stream_events": "kinescan.inference.event_stream",
    "export": "kinescan.inference.export",
    "load_exported": "kinescan.inference.exported",
    "register_transformers": "kinescan.inference.registration",
    "train": "kinescan.runs.train",
    "evaluate": "kinescan.runs.evaluate",
    "Preprocessing": "kinescan.preprocessing",
    "RunConfig": "kinescan.config",
    "SkipUnchanged": "kinescan.models.still",
}
_PACKAGES = ("ops", "layers", "models", "vlm", "data", "evaluation", "runs", "config", "errors")

__all__ = ["__version__", *_MODULES, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"kinescan.{name}")
    raise AttributeError(f"module 'kinescan' has no attribute {name!r}; there are: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
