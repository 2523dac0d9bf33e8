"""What a model said of each video, as files: a line each to read and compare, tensors for everything else."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from kinescan.errors import ConfigError
from kinescan.evaluation.multiview import Evaluation

PREDICTIONS_FILE = "predictions.jsonl"
TOP = 5
"""How many classes a line scores; the file of tensors has all."""


@dataclass(frozen=True, kw_only=True)
class VideoPrediction:
    """One line of predictions.jsonl.

    Attributes:
        video_id: names the video wherever its folder lies.
        label: the true class.
        prediction: the best class.
    """

    video_id: str
    label: str
    prediction: str

    @property
    def right(self) -> bool:
        """Whether the prediction is the label."""
        return self.prediction == self.label


def prediction_lines(evaluation: Evaluation) -> Iterator[str]:
    """A JSON object for each video: video_id, path, label, prediction, right, and the five best classes' scores."""
    for video in evaluation.videos:
        best = video.scores.argsort(descending=True, stable=True)[:TOP].tolist()
        line = {
            "video_id": video.item.video_id,
            "path": str(video.item.path),
            "label": video.label,
            "prediction": video.prediction,
            "right": video.right,
            "scores": {evaluation.labels[index]: round(float(video.scores[index]), 6) for index in best},
        }
        yield json.dumps(line, ensure_ascii=False) + "\n"


def read_predictions(path: str | Path) -> tuple[VideoPrediction, ...]:
    """The lines of a predictions.jsonl.

    Raises:
        ConfigError: the file is missing, or a line is not one of ours.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Score the model first: kinescan eval RUN.") from error
    return tuple(_read_line(path, number, line) for number, line in enumerate(lines, start=1))


def _read_line(path: str | Path, number: int, line: str) -> VideoPrediction:
    try:
        values: dict[str, Any] = json.loads(line)
        return VideoPrediction(**{key: str(values[key]) for key in ("video_id", "label", "prediction")})
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}, line {number}: needs video_id, label and prediction ({error!r}). Write it again: kinescan eval."
        ) from error


def save_features(evaluation: Evaluation, path: str | Path) -> None:
    """Writes what the head took of each video, and every score, as safetensors.

    The file holds `features` [n, D] and `scores` [n, K] (float32) and `targets` [n] (int64); its metadata holds
    `video_ids` and `labels` as JSON lists, and `views`.

    Args:
        evaluation: made with with_features=True.
        path: the file; its folder is made if need be.

    Raises:
        ConfigError: the evaluation kept no features, or the file cannot be written.
    """
    if evaluation.features is None:
        raise ConfigError("this evaluation kept no features. Make it with evaluate_model(..., with_features=True).")
    tensors = {
        "features": evaluation.features.contiguous(),
        "scores": evaluation.scores.to(torch.float32),
        "targets": evaluation.targets,
    }
    metadata = {
        "video_ids": json.dumps([item.video_id for item in evaluation.items], ensure_ascii=False),
        "labels": json.dumps(evaluation.labels, ensure_ascii=False),
        "views": str(evaluation.views),
    }
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(save(tensors, metadata))
    except OSError as error:
        raise ConfigError(
            f"features cannot be written to {path}: {error.strerror or error}. Choose another file."
        ) from error
