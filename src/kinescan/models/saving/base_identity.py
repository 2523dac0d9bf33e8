"""Which weights a tuned part belongs to: where they were, and their SHA-256."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinescan.errors import CheckpointError
from kinescan.models.weights.hub import is_hub_name


@dataclass(frozen=True, kw_only=True)
class BaseIdentity:
    """A frozen base.

    Attributes:
        source: file, folder or hub name of its weights.
        sha256: of the weights in that file that are frozen, by name, before any interpolation.
        loaded: of the same tensors in the model, as they were when they had been loaded.
        names: the model's tensors that came from it.
    """

    source: str
    sha256: str
    loaded: str
    names: tuple[str, ...]


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors with their names, types and shapes, whatever file they were in, as 64 hexadecimal digits.

    Example:
        >>> digest({"a": torch.zeros(2)}) == digest({"a": torch.zeros(2)}), digest({})[:8]
        (True, 'e3b0c442')
    """
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def lasting_name(source: str) -> str:
    """A path made absolute, so that it is found from another folder, too; hub names as they are."""
    path = Path(source)
    return str(path.resolve()) if path.exists() else source


def find_base(recorded: Mapping[str, Any], folder: Path, given: str | Path | None) -> str:
    """Where to read the base of a tuned part from.

    Args:
        recorded: what its config.json says of its base.
        folder: the tuned part's; a base beside it is found, too.
        given: where the caller says that it is.

    Raises:
        CheckpointError: it is not where it was.
    """
    if given is not None:
        return str(given)
    source = str(recorded.get("source"))
    for candidate in (Path(source), folder / Path(source).name):
        # Not Path.exists, which raises where a name is too long.
        if os.path.exists(candidate):
            return str(candidate)
    if is_hub_name(source):
        return source
    raise CheckpointError(
        f"{folder} holds only what was tuned on top of {source}, which is not there any more. Say where it is, "
        f"from_pretrained(folder, base=FILE), or put it into {folder}."
    )
