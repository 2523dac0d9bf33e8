"""Predictions as a function of a batch of paths, for engines that call it in processes of their own."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kinescan.data.video import Limits
from kinescan.errors import ConfigError, NonFiniteError
from kinescan.inference.model_source import resolve_model
from kinescan.inference.precision import Precision
from kinescan.inference.predictor import predict_iter
from kinescan.models.classifier import VideoClassifier
from kinescan.runtime.addresses import is_read_address, is_remote_folder
from kinescan.runtime.device import choose_device
from kinescan.runtime.urls import is_url, mask_url
from kinescan.version import __version__

COLUMNS = ("path", "labels", "scores", "error")


class BatchPredictor:
    """Predicts a batch of paths; pickled, it holds settings only, and each process loads the model at its first call.

    Batches are columns, as Ray Data (`map_batches`), Daft and Spark (`mapInPandas`, through `rows`) give them. A file
    that cannot be read, and a path that is none, is a row with its reason. A row does not depend on its batch.

    Args:
        model: folder or hub name, as for `predict`, which every process can read.
        views: see `predict`.
        top: how many classes to name.
        device: where to compute; "auto": a GPU where the process sees one, as `kinescan predict` does.
        limits: what one file may take.
        allow_short: see `predict`.
        path_column: which column holds the paths.
        precision: see `predict`.

    Raises:
        ConfigError: top is below 1.

    Example:
        >>> import pickle
        >>> again = pickle.loads(pickle.dumps(BatchPredictor("runs/mine", top=3)))
        >>> again.model, again.top
        ('runs/mine', 3)
    """

    def __init__(
        self,
        model: str,
        *,
        views: str | None = None,
        top: int = 5,
        device: str = "auto",
        limits: Limits | None = None,
        allow_short: bool = False,
        path_column: str = "path",
        precision: Precision = "float32",
    ) -> None:
        if top < 1:
            raise ConfigError(f"top must be at least 1, got {top}.")
        self.model, self.views, self.top, self.device = model, views, top, device
        self.limits, self.allow_short, self.path_column = limits, allow_short, path_column
        self.precision = precision
        self._loaded: VideoClassifier | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the model."""
        return {**self.__dict__, "_loaded": None}

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of the batch with labels, scores and error beside them.

        Args:
            batch: columns of equal length, one of them of paths.

        Returns:
            The same columns, and `labels` (lists of texts, the best first), `scores` (their probabilities), `error`
            (why a file could not be read; None for one that was) and `kinescan` (the version that predicted).

        Raises:
            CheckpointError: the model cannot be read.
        """
        rows = self.rows([str(path) for path in batch[self.path_column]])
        return {
            **batch,
            "labels": _objects([row["labels"] for row in rows]),
            "scores": _objects([row["scores"] for row in rows]),
            "error": _objects([row["error"] for row in rows]),
            "kinescan": _objects([__version__] * len(rows)),
        }

    def rows(self, paths: Sequence[str]) -> list[dict[str, Any]]:
        """One row of path (without secrets, where it is an address), labels, scores and error for each path."""
        model = self.load()
        return [self._row(model, path) for path in paths]

    def load(self) -> VideoClassifier:
        """The model, read at the first call, when all that is asked of it is checked, too.

        Raises:
            CheckpointError: it cannot be read.
            ConfigError: the device is not available; or the model answers for every frame, cannot compute in this
                precision, or has no such views.
        """
        if self._loaded is None:
            model = resolve_model(self.model, choose_device(self.device))
            # a wrong call is not an error of one file: it would be the reason of every row
            predict_iter(model, np.zeros((1, 8, 8, 3), np.uint8), **self._options())
            self._loaded = model
        return self._loaded

    def _options(self) -> dict[str, Any]:
        return {
            "views": self.views,
            "top": self.top,
            "precision": self.precision,
            "limits": self.limits,
            "allow_short": self.allow_short,
        }

    def _row(self, model: VideoClassifier, path: str) -> dict[str, Any]:
        shown = mask_url(path)
        try:
            if is_url(path):
                is_read_address(path)
            if os.path.isdir(path) or is_remote_folder(path):
                raise ConfigError("it is a folder. Name each of its videos.")
            [found] = predict_iter(model, path, **self._options())
        except (ConfigError, NonFiniteError, ValueError, OSError) as error:
            return {"path": shown, "labels": [], "scores": [], "error": str(error)}
        return {"path": shown, "labels": [*found.labels], "scores": [*found.scores], "error": found.error}


def _objects(values: Sequence[Any]) -> np.ndarray:
    """[B] of anything: lists of equal length do not become a second axis."""
    column = np.empty(len(values), dtype=object)
    column[:] = [*values]
    return column
