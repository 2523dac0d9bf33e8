"""What `predict`, `stream` and the others are called with: a model at hand or a saved one."""

import logging
from pathlib import Path

import torch

from kinescan.errors import ConfigError
from kinescan.inference.export_record import ExportRecord, is_exported, read_record
from kinescan.inference.exported import ExportedModel, load_exported
from kinescan.models.classifier import VideoClassifier
from kinescan.models.saving.location import locate_model
from kinescan.models.saving.saved_model import is_saved
from kinescan.models.zoo import from_pretrained
from kinescan.runtime.error_text import first_line

logger = logging.getLogger(__name__)

ModelSource = VideoClassifier | str | Path
"""A classifier; the folder or hub name of a saved one; the folder of a run (its best checkpoint) or of an exported
model."""


def holds_export(folder: str | Path) -> bool:
    """Whether a folder holds an exported model and no saved one; the weights of a saved one go before."""
    return is_exported(folder) and not is_saved(folder)


def record_of_export(model: ModelSource) -> ExportRecord | None:
    """The record of an exported model, whose file is not opened; None for any other model.

    Raises:
        CheckpointError: no model has that name, or the record is damaged.
    """
    if isinstance(model, ExportedModel):
        return model.record
    if isinstance(model, VideoClassifier):
        return None
    location = locate_model(model)
    return read_record(location) if holds_export(location) else None


def resolve_model(
    model: ModelSource, device: str | torch.device | None = None, *, allow_code: bool = False
) -> VideoClassifier:
    """The classifier itself, on `device` if one is given.

    Args:
        model: a classifier, or where one is.
        device: where it goes; None leaves it.
        allow_code: open an exported file that may run code of its own; see `load_exported`.

    Raises:
        CheckpointError: a folder or hub name holds no saved model, or one that may run code.
        ConfigError: the device is not available.
    """
    if isinstance(model, VideoClassifier):
        resolved = model
    else:
        location = locate_model(model)
        resolved = (
            load_exported(location, allow_code=allow_code) if holds_export(location) else from_pretrained(location)
        )
    if device is None:
        return resolved
    if isinstance(resolved, ExportedModel):
        if torch.device(device).type != "cpu":
            logger.warning("%s: exported models run on the CPU, not on %s", model, device)
        return resolved
    try:
        return resolved.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {str(device)!r} is not available: {first_line(error)} Use 'cpu', or a device that "
            "`kinescan doctor` lists."
        ) from error
