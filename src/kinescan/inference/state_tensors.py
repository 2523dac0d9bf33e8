"""A stream's state from named tensors, as a file or an exported step gives them."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from kinescan.errors import CheckpointError
from kinescan.layers.mamba import MambaState
from kinescan.models.pks4_state import PREVIOUS, STILL, PKS4State
from kinescan.models.still import StillState

SCANNER, RECENT = "scanner", "recent"
_ROUTE = "class_tokens."
_NAMES = (PREVIOUS, "kinematic.correlation", "kinematic.variation", SCANNER, "average", RECENT)
ANEW = "Give the file of a stream of this model, or start anew without it."


def state_of(tensors: Mapping[str, Tensor], frames_seen: int) -> PKS4State:
    """The inverse of `PKS4State.tensors`.

    Raises:
        CheckpointError: a tensor belongs to no part of a state, is half of a part, or holds NaN or infinity.
    """
    routes = {name: name.removeprefix(_ROUTE) for name in tensors if name.startswith(_ROUTE)}
    scanner = {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] == SCANNER}
    known = {*_NAMES, *scanner, *(f"{STILL}.{field.name}" for field in fields(StillState))}
    unknown = sorted(name for name in tensors if name not in known and not routes.get(name, "").isdecimal())
    if unknown:
        raise CheckpointError(f"{unknown[0]} belongs to no part of a stream's state. {ANEW}")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{name} holds other values than finite numbers. {ANEW}")
    # A plain ViT that answers for every frame carries nothing.
    if tensors and not frames_seen:
        raise CheckpointError(f"it holds {len(tensors)} tensors after {frames_seen} frames. {ANEW}")
    state = PKS4State.from_tensors(tensors, frames_seen, scanner=_scanner_state(scanner))
    if state.still is None and any(name.startswith(f"{STILL}.") for name in tensors):
        raise CheckpointError(f"a part of what is kept of patches that stand still is missing. {ANEW}")
    return state


def _scanner_state(tensors: Mapping[str, Tensor]) -> Any:
    """What these tensors are the state of: PKS4's own scan, or another scanner, whose kind only its model knows."""
    if not tensors or SCANNER in tensors:
        return tensors.get(SCANNER)
    inner = {name.removeprefix(f"{SCANNER}."): tensor for name, tensor in tensors.items()}
    own = {field.name for field in fields(MambaState)}
    if inner.keys() == own:
        return MambaState(**inner)
    if inner.keys() < own:
        raise CheckpointError(f"{SCANNER}.{min(own - inner.keys())} is missing. {ANEW}")
    return inner
