"""Scores of the frames of many videos in one file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from kinescan.errors import ConfigError, ShapeError
from kinescan.events.predictions import FramePredictions
from kinescan.runtime.atomic_write import atomic_write
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import parse_json, require_regular


def save_frame_predictions(predictions: Sequence[FramePredictions], path: str | Path) -> None:
    """Writes the scores of every frame as safetensors.

    The file holds `seconds` [N] float64 and `scores` [N, K] float32, the frames of all videos one after the other; its
    metadata holds `video_ids`, `num_frames`, `ends_seconds` and `classes` as JSON lists.

    Args:
        predictions: of videos that were scored by one model.
        path: the file.

    Raises:
        ConfigError: there is none, they have other classes, or the file cannot be written.
    """
    if not predictions or any(one.classes != predictions[0].classes for one in predictions):
        raise ConfigError("scores of at least one video are needed, all of the same classes.")
    tensors: dict[str, NDArray[Any]] = {
        "seconds": np.concatenate([one.seconds for one in predictions]).astype(np.float64),
        "scores": np.ascontiguousarray(np.concatenate([one.scores for one in predictions]), dtype=np.float32),
    }
    metadata = {
        "video_ids": to_json([one.video_id for one in predictions]),
        "num_frames": to_json([len(one.seconds) for one in predictions]),
        "ends_seconds": to_json([one.end_seconds for one in predictions]),
        "classes": to_json(list(predictions[0].classes)),
    }
    with atomic_write(path) as aside:
        aside.write_bytes(save(tensors, metadata))


def read_frame_predictions(path: str | Path) -> tuple[FramePredictions, ...]:
    """What `save_frame_predictions` wrote.

    Raises:
        ConfigError: the file is missing, damaged, or holds something else.
    """
    require_regular(path)
    try:
        with safe_open(path, "np") as file:
            facts = {name: parse_json(text, path) for name, text in (file.metadata() or {}).items()}
            seconds, scores = file.get_tensor("seconds"), file.get_tensor("scores")
        offsets = np.cumsum([0, *facts["num_frames"]])
        if offsets[-1] != len(seconds) or len(scores) != len(seconds):
            raise ValueError
        return tuple(
            FramePredictions(
                video_id=cast(str, video),
                seconds=seconds[first:behind],
                scores=scores[first:behind],
                classes=tuple(facts["classes"]),
                end_seconds=float(end),
            )
            for video, end, first, behind in zip(
                facts["video_ids"], facts["ends_seconds"], offsets[:-1], offsets[1:], strict=True
            )
        )
    except (SafetensorError, KeyError, TypeError, ValueError, ShapeError, OSError):
        raise ConfigError(f"{path} does not hold scores of frames as kinescan eval writes them. Score again.") from None
