"""In which precision a trained model computes."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch

from kinescan.errors import ConfigError
from kinescan.inference.exported import ExportedModel
from kinescan.models.classifier import VideoClassifier
from kinescan.settings import closest

Precision = Literal["float32", "bfloat16", "float16"]
"""What products are computed in; weights and states stay as they are."""


def computing_in(precision: Precision, model: VideoClassifier) -> AbstractContextManager[Any]:
    """A block in which the model computes in a precision: autocast, for what is below float32.

    Raises:
        ConfigError: it is unknown, the device of the model cannot compute in it, or the model is an exported one.

    Example:
        >>> from kinescan.models.zoo import create_model
        >>> model = create_model("pks4_vit_ti16", num_classes=2)
        >>> with torch.no_grad(), computing_in("bfloat16", model):
        ...     print(model(torch.zeros(1, 2, 3, 224, 224)).dtype)
        torch.bfloat16
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"unknown precision {precision!r}. {closest(str(precision), get_args(Precision))}")
    if precision == "float32":
        return nullcontext()
    if isinstance(model, ExportedModel):
        raise ConfigError(
            f"{model.name} is exported, and its file says how it computes. Leave precision out, or export it anew "
            f"(kinescan export --precision {precision})."
        )
    device = model.device.type
    if precision == "float16" and device == "cpu":
        raise ConfigError('precision "float16" needs a GPU, and the model is on the CPU. Allowed there: bfloat16.')
    return torch.autocast(device, dtype=getattr(torch, precision))
