"""A folder that `kinescan export --to transformers` wrote, read without transformers.

transformers' own loader takes from config.json which code to run, which kernels to fetch and which other models to
load; here it is read for sizes, labels and preprocessing only.
"""

from pathlib import Path
from typing import Any, cast

import torch

from kinescan.errors import CheckpointError, ConfigError
from kinescan.models.classifier import VideoClassifier
from kinescan.models.registry import find_model
from kinescan.models.weights.tensor_file import read_safetensors
from kinescan.preprocessing import Preprocessing
from kinescan.runtime.files import inside, read_json_object
from kinescan.settings import build_settings

_PREFIX = "classifier."


def read_transformers_folder(weights: Path) -> VideoClassifier:
    """The classifier in such a folder, in evaluation mode.

    Args:
        weights: its model.safetensors.

    Raises:
        CheckpointError: config.json is of something else or damaged, or the weights do not fit it.
    """
    folder = weights.parent
    config = read_json_object(inside(folder, "config.json", error=CheckpointError), error=CheckpointError)
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in read_safetensors(weights).items()}
    # Sizes are compared before memory is taken for them.
    with torch.device("meta"):
        own = _build(config, folder).state_dict()
    wrong = sorted(
        name
        for name in own.keys() | tensors.keys()
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape
    )
    if wrong:
        raise CheckpointError(
            f"{weights} does not fit its config.json: {', '.join(wrong[:3])}{', ...' if wrong[3:] else ''}. One of "
            "them was replaced; export the model again."
        )
    model = _build(config, folder)
    model.load_state_dict(tensors)
    return model.eval()


def _build(config: dict[str, Any], folder: Path) -> VideoClassifier:
    name = config.get("architecture")
    tables = {key: config.get(key) for key in ("options", "id2label", "preprocessing")}
    wrong = [key for key, table in tables.items() if not isinstance(table, dict)]
    found = find_model(name) if isinstance(name, str) else None
    if wrong or found is None or not isinstance(name, str):
        raise CheckpointError(
            f"{folder}/config.json is not what `kinescan export --to transformers` writes "
            f"({', '.join(wrong) or 'architecture'}). Export the model again."
        )
    options, labels, preprocessing = (cast(dict[str, Any], table) for table in tables.values())
    kind = found.model
    try:
        return kind(
            build_settings(kind.config_class, options, where="options"),
            name=name,
            labels=[labels[str(index)] for index in range(len(labels))],
            preprocessing=build_settings(Preprocessing, preprocessing, where="preprocessing"),
        )
    except (ConfigError, KeyError) as error:
        raise CheckpointError(f"{folder}/config.json does not fit {name}: {error} Export it again.") from error
