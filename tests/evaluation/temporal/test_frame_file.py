from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from kinescan.errors import ConfigError
from kinescan.evaluation.temporal.frame_file import read_frame_predictions, save_frame_predictions

from .made_up import predictions


def test_scores_come_back_bit_for_bit(tmp_path: Path) -> None:
    written = [
        predictions((1, 2, "fall", 1 / 3), video="a"),
        predictions(video="empty", length=0),
        predictions(video="ä\udcff"),
    ]
    save_frame_predictions(written, tmp_path / "frames.safetensors")
    for before, after in zip(written, read_frame_predictions(tmp_path / "frames.safetensors"), strict=True):
        assert (before.video_id, before.classes, before.end_seconds) == (
            after.video_id,
            after.classes,
            after.end_seconds,
        )
        assert np.array_equal(before.seconds, after.seconds)
        assert np.array_equal(before.scores, after.scores)
        assert after.scores.dtype == np.float32


def test_only_scores_of_one_model_share_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="least"):
        save_frame_predictions([], tmp_path / "frames.safetensors")


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "frames.safetensors"
    for content in (b"", b"nothing", b"\xff" * 64):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"frames\.safetensors"):
            read_frame_predictions(file)
    tensors = {"seconds": np.zeros(3), "scores": np.zeros((3, 2), dtype=np.float32)}
    for metadata in ({}, {"num_frames": "[2]"}, {"num_frames": "[3]", "video_ids": "3"}, {"num_frames": "{"}):
        save_file(tensors, file, metadata)
        with pytest.raises(ConfigError, match=r"frames\.safetensors"):
            read_frame_predictions(file)
    with pytest.raises(ConfigError):
        read_frame_predictions(tmp_path / "absent")
