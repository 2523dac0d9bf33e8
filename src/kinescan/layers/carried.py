"""What a scanner carries from frame to frame, as named tensors and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kinescan.errors import ConfigError


def named_tensors(state: Any, name: str) -> dict[str, Tensor]:
    """The tensors of a state: a tensor, or a dataclass, mapping or tuple of tensors; None has none.

    Args:
        state: of one part of a model.
        name: of the part; a tensor has this name, the tensors in a state have NAME.FIELD.

    Raises:
        ConfigError: the state is something else.

    Example:
        >>> import torch
        >>> sorted(named_tensors((torch.zeros(1), torch.ones(1)), "scanner"))
        ['scanner.0', 'scanner.1']
    """
    if state is None:
        return {}
    if isinstance(state, Tensor):
        return {name: state}
    inner = _inner(state)
    if inner is None or not all(isinstance(tensor, Tensor) for tensor in inner.values()):
        raise ConfigError(
            f"the state of the {name} must be a tensor, or a dataclass, mapping or tuple of tensors, got "
            f"{type(state).__name__}. Give one of these from its forward."
        )
    return {f"{name}.{field}": tensor for field, tensor in inner.items()}


def shaped_like(example: Any, tensors: Mapping[str, Tensor], name: str) -> Any:
    """The inverse of `named_tensors`, for a state of the kind of `example`, whose names the tensors have.

    Example:
        >>> import torch
        >>> shaped_like((torch.zeros(1),), {"scanner.0": torch.ones(1)}, "scanner")
        (tensor([1.]),)
    """
    if example is None:
        return None
    if isinstance(example, Tensor):
        return tensors[name]
    inner = {field: tensors[f"{name}.{field}"] for field in _inner(example) or {}}
    if isinstance(example, tuple):
        # A named tuple takes its fields one by one.
        return type(example)(*inner.values()) if hasattr(example, "_fields") else tuple(inner.values())
    return inner if isinstance(example, Mapping) else type(example)(**inner)


def _inner(state: Any) -> dict[str, Any] | None:
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    if isinstance(state, Mapping):
        return {str(key): value for key, value in state.items()}
    if isinstance(state, tuple):
        return {str(index): value for index, value in enumerate(state)}
    return None
