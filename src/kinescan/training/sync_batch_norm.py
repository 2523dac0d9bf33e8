from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn

from kinescan.runtime.distributed import Processes
from kinescan.runtime.torch_internals import BatchNorm


class SynchronisedNorms:
    """Batch norms of a model whose mean and variance are those of the clips of all processes together.

    Args:
        processes: those that train together.

    Attributes:
        idle: this process has no clip of its own for this batch: it takes part, and counts nothing.

    Differs: `nn.SyncBatchNorm` runs on GPUs only and cannot leave a process out; this one is for every device.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.idle = False

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model with synchronised norms; alone, or without batch norms, it stays as it is."""
        with ExitStack() as stack:
            for module in model.modules():
                if isinstance(module, BatchNorm) and self.processes.count > 1:
                    # An attribute of the instance comes before the class's method; names and weights stay.
                    vars(module)["forward"] = partial(self.normalise, module)
                    stack.callback(vars(module).pop, "forward")
            yield

    def normalise(self, norm: BatchNorm, maps: Tensor) -> Tensor:
        """What `norm` makes of maps [F, C, ...], with the statistics of all processes while training.

        Args:
            norm: its running statistics are updated.
            maps: of this process; [F, C, ...].
        """
        if not norm.training:
            return type(norm).forward(norm, maps)
        axes = [axis for axis in range(maps.dim()) if axis != 1]
        shape = [1, -1, *[1] * (maps.dim() - 2)]
        wide = maps.float() if maps.dtype in (torch.bfloat16, torch.float16) else maps
        present = 0.0 if self.idle else 1.0
        # Filled on the device: a number copied to it would make every norm wait.
        count = torch.full((), present * maps.numel() / maps.shape[1], dtype=wide.dtype, device=maps.device)
        distributed.all_reduce(count)
        mean = _sum(wide.sum(axes) * present) / count
        centred = wide - mean.view(shape)
        variance = _sum(centred.square().sum(axes) * present) / count
        _track(norm, mean.detach(), variance.detach(), count)
        normed = centred * torch.rsqrt(variance + norm.eps).view(shape)
        if norm.weight is not None:
            normed = normed * norm.weight.view(shape) + norm.bias.view(shape)
        return normed.to(maps.dtype)


class _Sum(torch.autograd.Function):
    """A tensor summed over the processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        summed = tensor.clone()
        distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.contiguous().clone()
        distributed.all_reduce(summed)
        return summed


def _sum(tensor: Tensor) -> Tensor:
    summed: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return summed


@torch.no_grad()
def _track(norm: BatchNorm, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    unbiased = variance * count / (count - 1).clamp(min=1)
    for running, latest in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        # Without a momentum: the mean of all batches, whose number stays on the device.
        weight = 1.0 / norm.num_batches_tracked.to(running.dtype) if norm.momentum is None else norm.momentum
        running.lerp_(latest.to(running.dtype), weight)
