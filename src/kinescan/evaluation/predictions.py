"""What a model said of each video, as files: a line each to read and compare, tensors for everything else."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save

from kinescan.errors import ConfigError
from kinescan.evaluation.multiview import Evaluation, VideoScore
from kinescan.runtime.addresses import shown_path
from kinescan.runtime.atomic_write import atomic_write
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import parse_json, read_text

_KEYS = ("video_id", "label", "prediction")
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
        yield prediction_line(video, evaluation.labels)


def prediction_line(video: VideoScore, labels: Sequence[str]) -> str:
    """The line of one video.

    Args:
        video: what the model says of it.
        labels: the model's classes, in the order of the scores.
    """
    best = video.scores.argsort(descending=True, stable=True)[:TOP].tolist()
    line = {
        "video_id": video.item.video_id,
        "path": shown_path(video.item.path),
        "label": video.label,
        "prediction": video.prediction,
        "right": video.right,
        "scores": {labels[index]: round(float(video.scores[index]), 6) for index in best},
    }
    return to_json(line) + "\n"


def read_predictions(path: str | Path) -> tuple[VideoPrediction, ...]:
    """The lines of a predictions.jsonl.

    Raises:
        ConfigError: the file is missing, or a line has another form.
    """
    # Not splitlines: JSON leaves separators that only Unicode knows inside of texts.
    lines = [line for line in read_text(path, error=_unread).split("\n") if line.strip()]
    return tuple(_read_line(path, number, line) for number, line in enumerate(lines, start=1))


def _unread(text: str) -> ConfigError:
    return ConfigError(f"{text} Score the model first: kinescan eval RUN.")


def _read_line(path: str | Path, number: int, line: str) -> VideoPrediction:
    values = parse_json(line, f"{path}, line {number}")
    texts = {key: values.get(key) for key in _KEYS} if isinstance(values, dict) else {}
    if not texts or not all(isinstance(text, str) for text in texts.values()):
        raise ConfigError(
            f"{path}, line {number}: needs {', '.join(_KEYS)}, each a text. Write it again: kinescan eval."
        )
    return VideoPrediction(**cast(dict[str, str], texts))


def save_features(evaluation: Evaluation, path: str | Path) -> None:
    """Writes what the head took of each video, and every score, as safetensors.

    For n videos, D features and K classes, the file holds `features` [n, D], `scores` [n, K] (float32, probabilities)
    and `targets` [n] (int64, class indices); its metadata holds `video_ids` and `labels` as JSON lists, and `views`.

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
        "video_ids": to_json([item.video_id for item in evaluation.items]),
        "labels": to_json(evaluation.labels),
        "views": str(evaluation.views),
    }
    with atomic_write(path, advice="Choose another file for the features.") as aside:
        aside.write_bytes(save(tensors, metadata))
