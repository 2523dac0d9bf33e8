"""Lets transformers' Auto classes know our classifiers, without importing transformers.

Importing kinescan only leaves word: when a part of transformers that keeps such a list is imported, or has been, our
class is put on that list. Nothing happens where transformers is not installed.
"""

import importlib
import importlib.abc
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)

_LISTS = "transformers.models.auto"
_CLASSES = "kinescan.inference.auto_classes"
_LAST_CLASS = "KinescanVideoProcessor"
_BASE = "transformers.modeling_utils"
"""Holds what our classes inherit from; it imports the list of configurations itself."""


def register() -> None:
    """Puts our classes on transformers' lists, now or as soon as each list is imported; once."""
    if importlib.util.find_spec("transformers") is None or any(isinstance(f, _Finder) for f in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    for name in _ADDERS:
        if name in sys.modules:
            _add(name)


def add_classes(classes: ModuleType) -> None:
    """Puts our classes on every list that has been imported; the module that holds them calls this at its end."""
    for name, (holder, add) in _ADDERS.items():
        # A list that is being imported lacks its class as yet; our step after the import sees to it.
        if hasattr(sys.modules.get(name), holder):
            _try(name, partial(add, sys.modules[name], classes))


def _add(name: str) -> None:
    """Puts our class on one list, which has just been imported."""
    if _BASE in _under_way:
        # Our classes cannot be made before it is there; the step after its own import comes back here.
        return

    def add() -> None:
        classes = importlib.import_module(_CLASSES)
        # While that module is being imported, its own end sees to it.
        if hasattr(classes, _LAST_CLASS):
            _ADDERS[name][1](sys.modules[name], classes)

    _try(name, add)


def _try(name: str, add: Callable[[], None]) -> None:
    try:
        add()
    # Another version of transformers must stay usable for everything else.
    except Exception as error:
        logger.warning("transformers' Auto classes will not know kinescan's models: %s: %s", name, error)


def _add_config(module: ModuleType, ours: ModuleType) -> None:
    module.AutoConfig.register(ours.MODEL_TYPE, ours.KinescanConfig, exist_ok=True)


def _add_model(module: ModuleType, ours: ModuleType) -> None:
    model = ours.KinescanForVideoClassification
    module.AutoModelForVideoClassification.register(ours.KinescanConfig, model, exist_ok=True)
    # The pipeline compares the model's class with this list of names, and complains of others.
    module.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES.setdefault(ours.MODEL_TYPE, model.__name__)


def _add_processor(module: ModuleType, ours: ModuleType) -> None:
    module.AutoVideoProcessor.register(ours.KinescanConfig, ours.KinescanVideoProcessor, exist_ok=True)


_ADDERS: dict[str, tuple[str, Callable[[ModuleType, ModuleType], None]]] = {
    f"{_LISTS}.configuration_auto": ("AutoConfig", _add_config),
    f"{_LISTS}.modeling_auto": ("AutoModelForVideoClassification", _add_model),
    f"{_LISTS}.video_processing_auto": ("AutoVideoProcessor", _add_processor),
}
"""Module that keeps a list -> the class through which it is kept, and what puts ours on it."""


_under_way: set[str] = set()
"""Modules whose import has begun and not ended."""


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: adds a step after the import of the modules in `_ADDERS` and of `_BASE`."""

    def __init__(self) -> None:
        self._looking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders give, its loader followed by our step."""
        if fullname not in (*_ADDERS, _BASE) or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._looking = False
        if spec is None or spec.loader is None:
            return spec
        spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Another loader, and a step after it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The other loader's module."""
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """The other loader's work, then ours."""
        _under_way.add(module.__name__)
        try:
            self._loader.exec_module(module)
        finally:
            _under_way.discard(module.__name__)
        for name in _ADDERS if module.__name__ == _BASE else (module.__name__,):
            if name in sys.modules:
                _add(name)
