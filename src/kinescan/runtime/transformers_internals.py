"""Every name of transformers that it calls private, or documents nowhere, and this package uses; and nothing else.

A release of transformers may change them without notice. `tests/runtime/test_transformers_internals.py` says for each
which feature of kinescan breaks then; the range of versions that was tried is in pyproject.toml. transformers itself is
imported by what is called here, not with this module.
"""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kinescan.runtime.optional_package import optional_package
from kinescan.runtime.torch_internals import remove_forward_hooks

__all__ = [
    "InitialisedWeights",
    "attention_of",
    "cache_argument",
    "forget_attention",
    "forget_hooks",
    "knows_quantiser",
    "knows_vlm",
    "name_processor",
    "name_video_classifier",
    "rope_frequencies",
    "set_attention",
    "without_report",
]

_EXTRA = "vlm"


def attention_of(config: Any) -> str:
    """Name of the attention that a model with this config runs."""
    name: str = config._attn_implementation
    return name


def set_attention(config: Any, name: str) -> None:
    """Makes a model with this config run the attention registered as `name`, from its next forward on."""
    config._attn_implementation = name


def forget_attention(name: str) -> None:
    """Undoes `AttentionInterface.register` and `AttentionMaskInterface.register`, which have no opposite."""
    transformers = optional_package("transformers", _EXTRA)
    for registry in (transformers.AttentionInterface, transformers.AttentionMaskInterface):
        registry._global_mapping.pop(name, None)


def forget_hooks(module: nn.Module) -> None:
    """Removes what a forward with `output_hidden_states` or the like leaves on a module, as if there had been none."""
    remove_forward_hooks(module, "output_capturing_hook")
    vars(module).pop("_output_capturing_hooks_installed", None)


def cache_argument(decoder: nn.Module) -> str:
    """What a forward calls the cache of keys and values: "past_key_values" up to 5.23, "cache" from 5.24 on."""
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


def rope_frequencies(kind: str, config: Any, device: torch.device, *, num_positions: int) -> tuple[Tensor, float]:
    """Rotary frequencies and their scaling, as a decoder takes them for a sequence of `num_positions`.

    Args:
        kind: as in the config's rope parameters, such as "dynamic".
        config: of the decoder.
        device: of the frequencies.
        num_positions: length of the sequence.
    """
    functions = optional_package("transformers.modeling_rope_utils", _EXTRA).ROPE_INIT_FUNCTIONS
    frequencies, scaling = functions[kind](config, device, seq_len=num_positions)
    return frequencies, scaling


def knows_quantiser(method: str | None) -> bool:
    """Whether transformers can read weights that were quantised by this method; it leaves out others silently."""
    return method in optional_package("transformers.quantizers.auto", _EXTRA).AUTO_QUANTIZER_MAPPING


def knows_vlm(model_type: str) -> bool:
    """Whether transformers has a class for text from images or videos of that type."""
    modeling = optional_package("transformers.models.auto.modeling_auto", _EXTRA)
    return model_type in modeling.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def name_video_classifier(model_type: str, class_name: str) -> None:
    """Puts a class on the list of names that the video classification pipeline compares a model's class with."""
    modeling = optional_package("transformers.models.auto.modeling_auto", _EXTRA)
    modeling.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES.setdefault(model_type, class_name)


def name_processor(processor: Any, class_name: str | None) -> None:
    """Sets what `ProcessorMixin` writes into a processor's file beside its own settings."""
    processor._processor_class = class_name


class InitialisedWeights:
    """Base of a PreTrainedModel whose modules have initialised their weights themselves, before transformers would.

    `after_loading` is called with each module that has tensors which no checkpoint holds.
    """

    def after_loading(self, module: nn.Module) -> None:
        """Makes anew what is in no checkpoint."""

    def _init_weights(self, module: nn.Module) -> None:
        self.after_loading(module)


@contextmanager
def without_report() -> Iterator[None]:
    """Keeps transformers from printing a table of the tensors that are missing or left over in a folder.

    `output_loading_info=True` gives them to the caller, who says what they mean.
    """
    logger = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
