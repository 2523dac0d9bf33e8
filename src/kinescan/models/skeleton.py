"""Models whose parameters have shapes and no values, to compare with weights before memory is taken for them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_DRAWS: tuple[Callable[..., Any], ...] = (nn.init.normal_, nn.init.trunc_normal_, torch.Tensor.normal_)


class _NoValues(TorchFunctionMode):
    """Leaves out draws into tensors without values.

    On no device, torch draws normal numbers by Python of its own, and loads its compiler for that: two seconds of each
    process that opens a model.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls `func`, or leaves its tensor as it is."""
        kwargs = kwargs or {}
        if func in _DRAWS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Within the block, modules are made on no device: sizes and names, no memory and no time for weights.

    Example:
        >>> with shapes_only():
        ...     layer = nn.Linear(1_000_000, 1_000_000)
        >>> layer.weight.shape, layer.weight.is_meta
        (torch.Size([1000000, 1000000]), True)
    """
    with torch.device("meta"), _NoValues():
        yield
