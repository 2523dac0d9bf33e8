"""kinescan: video understanding whose cost grows linearly with the number of frames."""

import importlib
from typing import Any

from kinescan.version import __version__

_PLACES = {
    "create_model": "kinescan.models.zoo",
    "from_pretrained": "kinescan.models.zoo",
    "list_models": "kinescan.models.zoo",
    "predict": "kinescan.inference.predictor",
    "stream": "kinescan.inference.stream",
    "export": "kinescan.inference.export",
    "load_exported": "kinescan.inference.exported",
    "register_transformers": "kinescan.inference.registration",
    "train": "kinescan.runs.train",
    "evaluate": "kinescan.runs.evaluate",
    "Preprocessing": "kinescan.preprocessing",
    "RunConfig": "kinescan.config",
}
_PACKAGES = ("ops", "layers", "models", "vlm", "data", "evaluation", "errors")

__all__ = ["__version__", *_PLACES, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"kinescan.{name}")
    raise AttributeError(f"module 'kinescan' has no attribute {name!r}; there are: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
