"""What `predict`, `stream` and the others are called with: a model at hand or a saved one."""

from pathlib import Path

import torch

from kinescan.errors import ConfigError
from kinescan.models.classifier import VideoClassifier
from kinescan.models.zoo import from_pretrained

ModelSource = VideoClassifier | str | Path
"""A classifier, or the folder or hub name of a saved one."""


def resolve_model(model: ModelSource, device: str | torch.device | None = None) -> VideoClassifier:
    """The classifier itself, on `device` if one is given.

    Raises:
        CheckpointError: a folder or hub name holds no saved model.
        ConfigError: the device is not available.
    """
    resolved = model if isinstance(model, VideoClassifier) else from_pretrained(model)
    if device is None:
        return resolved
    try:
        return resolved.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {str(device)!r} is not available: {str(error).splitlines()[0]} Use 'cpu', or a device that "
            "`kinescan doctor` lists."
        ) from error
